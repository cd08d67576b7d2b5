"""Who sent a request, as the door found out before any route saw it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp.web import RequestKey

from rebootd.api.request_id import request_id
from rebootd.core.caller import Caller
from rebootd.core.operations_inputs import Because

if TYPE_CHECKING:
    from aiohttp import web

NOBODY = Caller(identity="anonymous", kind="anonymous", role="")
_CALLER = RequestKey("caller", Caller)


def caller(request: web.Request) -> Caller:
    """Who sent it. A request that the door has not judged is nobody's."""
    known: Caller = request.get(_CALLER, NOBODY)
    return known


def remember(request: web.Request, who: Caller) -> None:
    """What :func:`caller` answers from now on."""
    request[_CALLER] = who


def because(request: web.Request, by: str, reason: str) -> Because:
    """Who asks for a change and why: the identity that was proved, else what the request says."""
    who = caller(request)
    return Because(by=who.identity if who.proved else by, reason=reason, request=request_id(request))

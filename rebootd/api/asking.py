"""A change as it was asked for: who, how, why, and the id by which it is followed through every log."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING

from aiohttp.web import RequestKey

from rebootd.api.callers import caller
from rebootd.core.audit import Asked

if TYPE_CHECKING:
    from aiohttp import web

    from rebootd.core.operations_inputs import Because

HEADER = "X-Request-Id"
_WELL_FORMED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
_ID = RequestKey("request-id", str)


def request_id(request: web.Request) -> str:
    """The id that the request came with, if it is one (up to 64 letters, digits and ``._:-``), else a fresh one."""
    known: str = request.get(_ID, "")
    if not known:
        given = request.headers.get(HEADER, "")
        known = given if _WELL_FORMED.fullmatch(given) else uuid.uuid4().hex
        request[_ID] = known
    return known


def asked(request: web.Request, because: Because | None) -> Asked:
    """What the audit log tells of the request."""
    return Asked(
        caller=caller(request),
        what=f"{request.method} {request.path}"[:400],
        by=because.by if because is not None else "",
        reason=because.reason if because is not None else "",
        request=request_id(request),
    )

"""The id by which one request is followed: from rebootctl through the leader's log and events to the agents."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING

from aiohttp.web import RequestKey

if TYPE_CHECKING:
    from aiohttp import web

HEADER = "X-Request-Id"
_WELL_FORMED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
_ID = RequestKey("request-id", str)


def request_id(request: web.Request) -> str:
    """The id that the request came with, if it is one (up to 64 letters, digits and ``._:-``), else a fresh one."""
    known = known_id(request)
    if not known:
        given = request.headers.get(HEADER, "")
        known = given if _WELL_FORMED.fullmatch(given) else uuid.uuid4().hex
        request[_ID] = known
    return known


def known_id(request: web.Request) -> str:
    """The id that :func:`request_id` has answered for this request, ``""`` if nobody has asked."""
    known: str = request.get(_ID, "")
    return known

"""A change as it was asked for: who, how, why, and the id by which it is followed through every log."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebootd.api.callers import caller
from rebootd.api.request_id import request_id
from rebootd.core.audit import Asked

if TYPE_CHECKING:
    from aiohttp import web

    from rebootd.core.operations_inputs import Because


def asked(request: web.Request, because: Because | None) -> Asked:
    """What the audit log tells of the request."""
    return Asked(
        caller=caller(request),
        what=f"{request.method} {request.path}"[:400],
        by=because.by if because is not None else "",
        reason=because.reason if because is not None else "",
        request=request_id(request),
    )

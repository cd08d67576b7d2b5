"""The HTTP application of a daemon: its routes, and what an error becomes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import structlog
from aiohttp import web

from rebootd.api import openapi, route, table
from rebootd.api.bodies import problem
from rebootd.api.callers import caller
from rebootd.api.daemon import DOCUMENT
from rebootd.api.door import DOOR, Door
from rebootd.api.guard import Guard
from rebootd.api.request_id import HEADER, known_id, request_id
from rebootd.core.errors import (
    Denied,
    Forbidden,
    InvalidInput,
    NotFound,
    OutcomeUnknown,
    RebootdError,
    Refused,
    StoreError,
    Unauthorized,
)
from rebootd.core.wire import Problem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from rebootd.coordinator.desk import Office
    from rebootd.core.audit import Asked

    Told = tuple[int, Problem, Mapping[str, str] | None]

MAX_BODY = 256 * 1024
"""Bytes of any request's body; reports and permits have less (see machines)."""

log = structlog.get_logger(__name__)


def make_app(
    office: Office,
    *,
    token: str = "",
    metrics: Callable[[], bytes] | None = None,
    guard: Guard | None = None,
    refused: Callable[[Asked, str], None] | None = None,
) -> web.Application:
    """The application. ``metrics`` renders what ``GET /metrics`` answers. Who asks is told by ``guard``; without one
    by the shared ``token`` alone, and ``""`` asks for none. ``refused`` hears of every change that somebody who proved
    who he is asked for without a right to it, and why not.
    """
    door = Door(office, table.ROUTES, guard or Guard(token=token), metrics=metrics, refused=refused)
    app = web.Application(middlewares=[_front(door)], client_max_size=MAX_BODY)
    app[DOOR] = door
    app[DOCUMENT] = openapi.rendered()
    route.add(app, table.ROUTES)
    return app


def _front(door: Door) -> Callable[..., Awaitable[web.StreamResponse]]:
    """The only middleware: authentication before, and errors turned into problems after."""

    @web.middleware
    async def front(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        def no(status: int, said: Problem, headers: Mapping[str, str] | None = None) -> web.StreamResponse:
            route = door.route_of(request)
            worded = route.wording(status, said) if route is not None and route.wording is not None else said
            return _with_id(request, problem(status, worded, headers))

        try:
            await door.admit(request)
            return _with_id(request, await handler(request))
        except RebootdError as error:
            response = no(*_told(error))
            door.turned_away(request, error)
            return response
        except web.HTTPException as error:
            return no(*_told_http(error, request))
        except (ConnectionResetError, asyncio.CancelledError):
            raise
        except Exception:
            # The last resort of a server: a mistake in one route must not end the leader.
            log.exception("request failed", method=request.method, path=request.path[:200])
            return no(500, Problem(error="a mistake in rebootd itself: its log has the details"))

    return front


def _with_id(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """With the request's id: of every change, and of whatever came with one. A change is a line in the log."""
    known = known_id(request)
    if known:
        who = caller(request)
        log.info(
            "change",
            request=known,
            method=request.method,
            path=request.path[:200],
            status=response.status,
            identity=who.identity,
            role=who.role,
            address=who.address,
        )
    elif HEADER in request.headers:
        known = request_id(request)
    if known and not response.prepared:
        response.headers[HEADER] = known
    return response


def _told(error: RebootdError) -> Told:
    match error:
        case InvalidInput():
            said = Problem(error=str(error), field=error.field, value=_short(error.value), accepted=error.accepted)
            return 400, said, None
        case Unauthorized():
            return 401, Problem(error=str(error)), {"WWW-Authenticate": "Bearer"}
        case Forbidden():
            return 403, Problem(error=str(error)), None
        case NotFound():
            return 404, Problem(error=str(error)), None
        case Refused():
            return 409, Problem(error=str(error)), None
        case OutcomeUnknown():
            what = "the store did not say whether it was done, and it may still be: look before you ask again"
        case Denied():
            what = f"the store refused for lack of permission (ACL): {error}"
        case StoreError():
            what = f"the store cannot be used: {error}"
        case _:
            what = str(error)
    return 503, Problem(error=what), {"Retry-After": "1"}


def _told_http(error: web.HTTPException, request: web.Request) -> Told:
    what = f"{error.reason}: {request.method} {request.path[:200]}"
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
    if error.status == 404:
        what = f"no such route: {request.method} {request.path[:200]}"
    elif error.status == 405:
        what = f"{request.method} is not for {request.path[:200]}; it takes {error.headers.get('Allow', '')}"
    elif error.status == 413:
        what = f"the body is too large: {error.text}"
    return error.status, Problem(error=what), headers


def _short(value: object) -> str:
    shown = value if isinstance(value, str) else msgspec.json.encode(value, enc_hook=str).decode()
    return shown if len(shown) <= 200 else f"{shown[:200]}..."

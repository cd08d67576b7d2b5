"""The door of a daemon: who may ask, and where the leader is.

A request that needs the leader is answered here when this daemon leads, redirected (307) to the daemon that does, and
parked while nobody does. A redirect carries the path and the query and nothing else.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from aiohttp import web

from rebootd.api.asking import asked
from rebootd.api.callers import caller, remember
from rebootd.core.caller import OPEN, Caller, Role
from rebootd.core.errors import Forbidden, NotLeader, Unauthorized

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from rebootd.api.guard import Guard
    from rebootd.api.route import Route
    from rebootd.coordinator.desk import Desk, Office
    from rebootd.core.audit import Asked
    from rebootd.core.errors import RebootdError

T = TypeVar("T")

PARK = 5.0
"""Seconds that a request without a wait of its own is parked while nobody leads."""
MAX_PARK = 60.0
RETRY = 0.02


class Door:
    """What every route needs: the office, the guard and the metrics. One per application."""

    def __init__(
        self,
        office: Office,
        routes: Sequence[Route],
        guard: Guard,
        *,
        metrics: Callable[[], bytes] | None = None,
        refused: Callable[[Asked, str], None] | None = None,
    ) -> None:
        self.office = office
        self._refused = refused
        self.metrics = metrics
        self._guard = guard
        self._routes = {route.handler: route for route in routes}
        if len(self._routes) != len(routes):
            raise ValueError("two routes with one handler: their roles could not be told apart")

    async def admit(self, request: web.Request) -> None:
        """Finds out who asks and whether that is enough for the route: default deny.

        Raises Unauthorized for nobody, Forbidden for somebody who may not, StoreError when Consul cannot tell who.
        """
        route = self._routes.get(request.match_info.handler)
        if route is not None and route.role == OPEN:
            return
        who = await self._guard.caller(request)
        remember(request, who)
        self._judge(request, route, who)
        # Without a token, a web page that an operator happens to look at could command a daemon on loopback.
        origin = request.headers.get("Origin")
        if origin is not None and request.method not in {"GET", "HEAD"} and _host(origin) != request.host:
            raise Unauthorized(f"requests from pages of {origin[:80]} are not accepted")

    def route_of(self, request: web.Request) -> Route | None:
        """The route that the request is for, if it is in the table."""
        return self._routes.get(request.match_info.handler)

    def _judge(self, request: web.Request, route: Route | None, who: Caller) -> None:
        if who.kind == "anonymous":
            if route is not None and route.bare and not self._guard.tls:
                return
            raise Unauthorized(f"this daemon asks who you are: {self._guard.wanted}")
        if route is None:
            # What is in no table is served to nobody; a path or method that does not exist may be told.
            if request.match_info.http_exception is None:
                raise Forbidden(f"{request.path[:200]} is for nobody")
            return
        need(who, route.role, f"{request.method} {request.path[:200]}")
        # FleetLock's requests have no name in their path: their handler asks once it knows who the client is.
        name = request.match_info.get("name", who.identity)
        if route.role == Role.MACHINE and not who.may_speak_for(name):
            raise Forbidden(f"the certificate is machine {who.identity}'s: it may not speak for {name[:128]}")

    def demand(self, request: web.Request, body: object) -> None:
        """What the body asks for may need a higher role than the route. Raises Forbidden."""
        route = self._routes[request.match_info.handler]
        for field, role in route.stricter.items():
            if getattr(body, field):
                need(caller(request), role, f"{field} at {request.method} {request.path[:200]}")

    def turned_away(self, request: web.Request, error: RebootdError) -> None:
        """Tells the audit log of a change that somebody asked for who has no right to it, if he proved who he is."""
        route = self._routes.get(request.match_info.handler)
        if (
            self._refused is not None
            and isinstance(error, (Unauthorized, Forbidden))
            and (route is None or (route.method != "GET" and route.role != Role.VIEWER))
            and caller(request).proved
        ):
            self._refused(asked(request, None), str(error))

    async def lead(
        self, request: web.Request, act: Callable[[Desk], Awaitable[web.StreamResponse]], wait: float = PARK
    ) -> web.StreamResponse:
        """``act`` on the leader's desk, a redirect to the leader, or NotLeader after ``wait`` seconds without one."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + min(max(wait, 0.0), MAX_PARK)
        while True:
            desk = self.office.desk()
            if desk is not None:
                try:
                    return await act(desk)
                except NotLeader:
                    pass  # Nothing was done: the request may look for the next leader.
            url = self.office.leader_url() if self.office.desk() is None else ""
            if url:
                location = url.rstrip("/") + request.path_qs
                return web.Response(status=307, headers={"Location": location})
            remaining = deadline - clock()
            if remaining <= 0 or not await self.office.wait_leader(remaining):
                raise NotLeader("no daemon leads at present")
            # An office may know that somebody leads a moment before it knows where.
            await asyncio.sleep(min(RETRY, remaining))


def need(who: Caller, least: str, what: str) -> None:
    """Raises Forbidden unless ``who`` has the role for ``what``."""
    if not who.may(least):
        has = f"the role {who.role}" if who.role else "no role"
        raise Forbidden(f"{what} needs the role {least}; {who.kind} {who.identity} has {has}")


def _host(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


DOOR: web.AppKey[Door] = web.AppKey("door", Door)


async def to_the_end(work: Coroutine[object, object, T]) -> T:
    """The outcome of ``work``, which goes on to its end also when the client hangs up meanwhile."""
    task = asyncio.ensure_future(work)
    # Nobody may be left to hear how it ended; asking here keeps the loop from complaining.
    task.add_done_callback(lambda t: t.cancelled() or t.exception())
    return await asyncio.shield(task)

"""The door of a daemon: who may ask, and where the leader is.

A request that needs the leader is answered here when this daemon leads, redirected (307) to the daemon that does, and
parked while nobody does. A redirect carries the path and the query and nothing else.
"""

from __future__ import annotations

import asyncio
import hmac
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from aiohttp import web

from rebootd.core.errors import NotLeader, Unauthorized

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from rebootd.coordinator.desk import Desk, Office

T = TypeVar("T")

PARK = 5.0
"""Seconds that a request without a wait of its own is parked while nobody leads."""
MAX_PARK = 60.0
OPEN_PATHS = frozenset({"/healthz", "/metrics"})
RETRY = 0.02


class Door:
    """What every route needs: the office, the token and the metrics. One per application."""

    def __init__(self, office: Office, *, token: str = "", metrics: Callable[[], bytes] | None = None) -> None:
        self.office = office
        self.metrics = metrics
        self._bearer = b"Bearer " + token.encode() if token else b""

    def admit(self, request: web.Request) -> None:
        """Raises Unauthorized unless the token is right, or none is asked for."""
        if self._bearer and request.path not in OPEN_PATHS:
            given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(given, self._bearer):
                raise Unauthorized("this daemon asks for its token: Authorization: Bearer <token>")
        # Without a token, a web page that an operator happens to look at could command a daemon on loopback.
        origin = request.headers.get("Origin")
        if origin is not None and request.method not in {"GET", "HEAD"} and _host(origin) != request.host:
            raise Unauthorized(f"requests from pages of {origin[:80]} are not accepted")

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

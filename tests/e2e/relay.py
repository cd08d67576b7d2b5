"""A relay in front of a real server: passes HTTP on as it is, and lets a test look at, or break off, each exchange."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import aiohttp
from aiohttp import web
from yarl import URL

Look = Callable[[web.Request, bytes], Awaitable[None]]
After = Callable[[web.Request, bytes, int, bytes], Awaitable[None]]
_HOP = {"connection", "keep-alive", "transfer-encoding", "host", "content-length", "content-encoding"}


class BreakOff(Exception):
    """Raised by a hook: the client gets no answer, its connection just ends."""


async def _pass(*_: object) -> None:
    """Looks at nothing."""


class Relay:
    """Listens on ``url`` and passes requests to ``target``.

    ``before`` sees each request before it is passed on, ``after`` each answer before it is returned.
    """

    def __init__(self, target: str, *, before: Look = _pass, after: After = _pass) -> None:
        self.target = target
        self.before: Look = before
        self.after: After = after
        self.url = ""
        self._session: aiohttp.ClientSession | None = None
        self._runner: web.AppRunner | None = None

    async def start(self, port: int) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None), auto_decompress=False
        )
        app = web.Application(client_max_size=1 << 22)
        app.router.add_route("*", "/{path:.*}", self._relay)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        self.url = f"http://127.0.0.1:{port}"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        if self._session is not None:
            await self._session.close()

    async def _relay(self, request: web.Request) -> web.StreamResponse:
        assert self._session is not None
        body = await request.read()
        try:
            await self.before(request, body)
            headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP}
            url = URL(self.target + request.raw_path, encoded=True)
            async with self._session.request(
                request.method, url, data=body, headers=headers, allow_redirects=False
            ) as answer:
                data = await answer.read()
            await self.after(request, body, answer.status, data)
        except (BreakOff, aiohttp.ClientError, OSError):
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=502)
        kept = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP}
        return web.Response(status=answer.status, headers=kept, body=data)

"""The API on a real server, for tests."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec

from rebootd.api.app import make_app
from rebootd.api.connections import DEFAULT_LIMITS, Limits
from rebootd.api.listen import Serving, serve
from tests.api.fake_desk import FakeDesk, FakeOffice, fleet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rebootd.api.guard import Guard


class Api:
    """A real server on a free port, the desk behind it, and a client that does not follow redirects."""

    def __init__(self, serving: Serving, office: FakeOffice, client: aiohttp.ClientSession) -> None:
        self.url = serving.url
        self.serving = serving
        self.office = office
        self.client = client

    @property
    def desk(self) -> FakeDesk:
        assert self.office.held is not None
        return self.office.held

    async def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) or body is None else msgspec.json.encode(body)
        async with self.client.request(
            method, self.url + path, data=data, headers=headers, allow_redirects=False
        ) as response:
            text = await response.read()
            return response.status, msgspec.json.decode(text) if text else None

    async def good(self, method: str, path: str, body: object = None) -> Any:
        status, answer = await self.ask(method, path, body)
        assert status == 200, answer
        return answer

    async def bad(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """A refusal: its status and problem; nothing may have been applied."""
        applied, events = self.desk.applied, len(self.desk.events)
        status, answer = await self.ask(method, path, body)
        assert 400 <= status < 500, answer
        assert answer["error"]
        assert (self.desk.applied, len(self.desk.events)) == (applied, events)
        return status, answer


@asynccontextmanager
async def running(
    office: FakeOffice | None = None, token: str = "", limits: Limits = DEFAULT_LIMITS, guard: Guard | None = None
) -> AsyncIterator[Api]:
    """A server of its own, with 3 racks of 4 machines unless an office is given."""
    office = office or FakeOffice(FakeDesk(fleet()))
    app = make_app(office, token=token, metrics=lambda: b"rebootd_up 1\n", guard=guard)
    serving = await serve(app, "127.0.0.1", 0, limits)
    try:
        async with aiohttp.ClientSession() as client:
            yield Api(serving, office, client)
    finally:
        await serving.close()

"""The two sides of the store, and how tests meddle with the world around each."""

from __future__ import annotations

import asyncio
import json
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

import pytest

from rebootd.store.consul import ConsulStore
from rebootd.store.memory import MemoryConsul, MemoryStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from rebootd.store.port import Store
    from tests.support.cluster import Agent


class World(Protocol):
    """A store and the hands that tests need around it."""

    @property
    def store(self) -> Store: ...

    @property
    def node(self) -> str:
        """The name of the local agent's node."""
        ...

    async def set_check(self, check: str, status: str) -> None:
        """A node check on the local node becomes ``passing``, ``warning`` or ``critical``."""

    def unanswered(self) -> AbstractAsyncContextManager[None]:
        """While inside, no call gets an answer; writes sent inside may land, also later."""


class MemoryWorld:
    def __init__(self) -> None:
        self.consul = MemoryConsul(node="local")
        self.store = MemoryStore(self.consul)
        self.node = "local"

    async def set_check(self, check: str, status: str) -> None:
        self.consul.set_check(self.node, check, status)

    @asynccontextmanager
    async def unanswered(self) -> AsyncIterator[None]:
        self.consul.faults.partitioned = True
        yield
        self.consul.faults.partitioned = False


class ConsulWorld:
    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.store = ConsulStore.open(agent.settings)
        self.node = agent.name
        self._checks: set[str] = set()

    async def set_check(self, check: str, status: str) -> None:
        http = self.store.client.http
        if check not in self._checks:
            self._checks.add(check)
            wish = {"ID": check, "Name": check, "TTL": "1h", "Status": status}
            await http.request("PUT", "/v1/agent/check/register", None, json.dumps(wish))
        wish = {"Status": status}
        await http.request("PUT", f"/v1/agent/check/update/{check}", None, json.dumps(wish))

        async def synced() -> bool:
            known = await http.request("GET", f"/v1/health/node/{self.node}")
            return any(one["CheckID"] == check and one["Status"] == status for one in json.loads(known.body))

        await eventually(synced, f"{check} to be {status}")

    @asynccontextmanager
    async def unanswered(self) -> AsyncIterator[None]:
        self.agent.pause()
        try:
            yield
        finally:
            self.agent.resume()

    async def tidy(self) -> None:
        for check in self._checks:
            await self.store.client.http.request("PUT", f"/v1/agent/check/deregister/{check}")


@pytest.fixture(params=["memory", "consul"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    if request.param == "memory":
        yield MemoryWorld()
        return
    real = ConsulWorld(request.getfixturevalue("dev_consul"))
    yield real
    await real.tidy()
    await real.store.close()


@pytest.fixture
def store(world: World) -> Store:
    return world.store


@pytest.fixture
def check_id() -> str:
    return f"check-{uuid.uuid4().hex[:8]}"


async def eventually(question: Callable[[], Awaitable[object]], what: str, timeout: float = 10.0) -> None:
    """Waits until ``question`` answers truly."""
    try:
        async with asyncio.timeout(timeout):
            while not await question():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"waited {timeout:g} s for {what}") from None

"""Writes against a real cluster of three servers while its leader is frozen and killed.

What is checked: no acknowledged write is lost, every unknown outcome ends definite when the same transaction is sent
again, and each increment happens exactly once, whatever was frozen or killed in between.
"""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from rebootd.core.errors import Conflict, OutcomeUnknown, StoreError
from rebootd.store.consul import ConsulStore
from rebootd.store.port import CheckSession, Lock, Op, Set
from tests.support.cluster import cluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from rebootd.store.port import Entry
    from tests.support.cluster import Cluster

TIMEOUT = 1.0
"""Seconds until a writer gives a commit up: shorter than an election, so that outcomes do become unknown."""
PATIENCE = 40.0


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(folder=tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.fixture(autouse=True)
async def _whole(servers: Cluster) -> AsyncIterator[None]:
    yield
    for index, server in enumerate(servers.servers):
        servers.resume(index)
        if not server.running:
            server.spawn()
    await asyncio.to_thread(servers.wait_healthy)


class Writer:
    """Appends write ids to one record by fenced compare-and-set, through one server after another.

    The record keeps all of them, so that the end can tell what was applied and how often.
    """

    def __init__(self, servers: Cluster, key: str, fence: tuple[str, str], rng: random.Random) -> None:
        self.stores = [ConsulStore.open(server.settings) for server in servers.servers]
        self.key = key
        self.fence = CheckSession(*fence)
        self.acknowledged: list[str] = []
        self.seen: Counter[str] = Counter()
        self._at = rng.randrange(len(self.stores))
        self._index = 0
        self._ids: list[str] = []

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self.increment()

    async def increment(self) -> None:
        """One increment, pursued until its outcome is definite."""
        write_id = uuid.uuid4().hex[:12]
        value = json.dumps([*self._ids, write_id]).encode()
        transaction: list[Op] = [self.fence, Set(self.key, value, cas=self._index)]
        index = await self._pursue(transaction)
        if index is None:
            entry = await self.read()
            assert json.loads(entry.value)[-1] == write_id, "refused, though nobody else writes this key"
            index = entry.modify_index
        self._index = index
        self._ids.append(write_id)
        self.acknowledged.append(write_id)
        self.seen["landed"] += 1

    async def _pursue(self, transaction: list[Op]) -> int | None:
        """The new index, or None when a sending whose answer was lost had landed before."""
        unknown = 0
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    written = await self.stores[self._at].commit(transaction, timeout=TIMEOUT)
                except OutcomeUnknown:
                    unknown += 1
                    self.seen["unknown"] += 1
                    self._at = (self._at + 1) % len(self.stores)
                    await asyncio.sleep(0.05)
                except Conflict as conflict:
                    if not unknown or [(one.index, one.reason) for one in conflict.failed] != [(1, "cas")]:
                        raise
                    self.seen["had landed"] += 1
                    return None
                else:
                    self.seen["landed when sent again"] += bool(unknown)
                    return written[self.key]

    async def read(self) -> Entry:
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    entry = await self.stores[self._at].get(self.key, consistent=True, timeout=TIMEOUT)
                except StoreError:
                    self._at = (self._at + 1) % len(self.stores)
                    await asyncio.sleep(0.05)
                    continue
                assert entry is not None
                return entry

    async def close(self) -> None:
        for store in self.stores:
            await store.close()


async def _others(servers: Cluster, old: int) -> int:
    """The leader that the servers other than ``old`` agree on."""
    return await asyncio.to_thread(servers.leader, [i for i in range(len(servers.servers)) if i != old])


async def _freeze(servers: Cluster) -> None:
    old = await asyncio.to_thread(servers.leader)
    servers.pause(old)
    assert await _others(servers, old) != old
    await asyncio.sleep(0.5)
    servers.resume(old)


async def _kill(servers: Cluster) -> None:
    old = await asyncio.to_thread(servers.leader)
    servers.kill(old)
    assert await _others(servers, old) != old
    await asyncio.sleep(0.5)
    await asyncio.to_thread(servers.restart, old)


async def _blink(servers: Cluster) -> None:
    """The leader is frozen for less than an election takes: it answers late, or not any more."""
    old = await asyncio.to_thread(servers.leader)
    for _ in range(4):
        servers.pause(old)
        await asyncio.sleep(1.2)
        servers.resume(old)
        await asyncio.sleep(0.3)


@pytest.mark.parametrize("disturb", [_freeze, _kill, _blink], ids=["freeze", "kill", "blink"])
async def test_every_increment_lands_exactly_once(servers: Cluster, prefix: str, disturb: object) -> None:
    assert callable(disturb)
    rng = random.Random(prefix)
    keeper = ConsulStore.open(servers.servers[0].settings)
    await keeper.ensure_lock_node("rebootd-locks")
    session = await keeper.create_session("leader", node="rebootd-locks")
    await keeper.commit([Lock(f"{prefix}leader", b"", session)])
    await keeper.close()

    writers = [Writer(servers, f"{prefix}counter/{n}", (f"{prefix}leader", session), rng) for n in range(4)]
    stop = asyncio.Event()
    running = [asyncio.create_task(writer.run(stop)) for writer in writers]
    try:
        await asyncio.sleep(0.5)
        before = sum(writer.seen["landed"] for writer in writers)
        assert before > 0
        await disturb(servers)
        await asyncio.sleep(0.5)
        stop.set()
        await asyncio.gather(*running)
        seen: Counter[str] = Counter()
        for writer in writers:
            entry = await writer.read()
            # Exactly the acknowledged increments, each once and in order: none lost, none doubled, none from nowhere.
            assert json.loads(entry.value) == writer.acknowledged
            seen += writer.seen
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for writer in writers:
            await writer.close()
    print(dict(seen))
    assert seen["landed"] > before
    assert seen["unknown"] > 0, "nothing was disturbed"

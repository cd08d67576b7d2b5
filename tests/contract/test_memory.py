"""What only the memory side has: its faults, and time that a test can turn."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from rebootd.core.errors import Conflict, Denied, OutcomeUnknown, SessionLost, Unreachable
from rebootd.store.memory import LOST_REPLY, NEVER, MemoryStore, late
from rebootd.store.port import CheckIndex, CheckNotExists, Delete, Lock, Set, Store, Unlock
from tests.support.virtual_time import run

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


def virtual(test: Callable[[MemoryStore], Coroutine[object, object, None]]) -> Callable[[], None]:
    def main() -> None:
        run(test(MemoryStore()))

    main.__name__ = test.__name__
    return main


def now() -> float:
    return asyncio.get_running_loop().time()


async def value(store: Store, key: str) -> bytes | None:
    entry = await store.get(key, consistent=True)
    return entry.value if entry else None


async def holder(store: Store, key: str) -> str:
    entry = await store.get(key)
    assert entry is not None
    return entry.session


@virtual
async def test_ttl_ends_a_session_after_twice_its_length(store: MemoryStore) -> None:
    session = await store.create_session("s", ttl=10)
    await store.commit([Lock("l", b"", session)])
    await asyncio.sleep(15)
    await store.renew_session(session)
    await asyncio.sleep(19.9)
    assert await holder(store, "l") == session
    await asyncio.sleep(0.2)
    assert not await holder(store, "l")
    with pytest.raises(SessionLost):
        await store.renew_session(session)


@virtual
async def test_lock_delay_follows_the_end_of_a_session_but_not_an_unlock(store: MemoryStore) -> None:
    first, second = await store.create_session("1", lock_delay=15), await store.create_session("2")
    await store.commit([Lock("l", b"", first)])
    await store.commit([Unlock("l", b"", first)])
    await store.commit([Lock("l", b"", second)])
    await store.commit([Unlock("l", b"", second)])
    await store.commit([Lock("l", b"", first)])
    await store.destroy_session(first)
    await store.commit([Delete("l")])
    await asyncio.sleep(14.9)
    with pytest.raises(Conflict) as refused:
        await store.commit([CheckNotExists("absent"), CheckIndex("absent", 3), Lock("l", b"", second)])
    assert [(f.index, f.reason) for f in refused.value.failed] == [(2, "locked")]
    await asyncio.sleep(0.2)
    await store.commit([Lock("l", b"", second)])


@virtual
async def test_a_node_that_goes_takes_its_sessions_along(store: MemoryStore) -> None:
    store.consul.register_node("h1", {"rack": "r1"})
    session = await store.create_session("s", node="h1", checks=["serfHealth"])
    await store.commit([Lock("l", b"", session)])
    assert {node.name: node.meta for node in (await store.watch_nodes(0, 0))[0]} == {"h1": {"rack": "r1"}, "local": {}}
    store.consul.remove_node("h1")
    assert not await holder(store, "l")
    assert [node.name for node in (await store.watch_nodes(0, 0))[0]] == ["local"]


@virtual
async def test_a_removed_check_ends_its_sessions(store: MemoryStore) -> None:
    store.consul.set_check("local", "c", "warning")
    session = await store.create_session("s", checks=["c"])
    store.consul.set_check("local", "c", "")
    with pytest.raises(SessionLost):
        await store.renew_session(session)


@virtual
async def test_what_becomes_of_a_write_without_answer(store: MemoryStore) -> None:
    store.faults.fates += [LOST_REPLY, NEVER, late(3)]
    for key in "abc":
        with pytest.raises(OutcomeUnknown):
            await store.commit([Set(key, b"1")])
    assert [await value(store, key) for key in "abc"] == [b"1", None, None]
    await asyncio.sleep(3.1)
    assert [await value(store, key) for key in "abc"] == [b"1", None, b"1"]


@virtual
async def test_a_slow_write_lands_after_its_client_gave_up(store: MemoryStore) -> None:
    store.faults.delay = 4
    with pytest.raises(OutcomeUnknown):
        await store.commit([Set("k", b"1")], timeout=1)
    assert now() == 1
    with pytest.raises(Unreachable):
        await store.get("k", timeout=1)
    abandoned = asyncio.create_task(store.commit([Set("other", b"1")]))
    await asyncio.sleep(0.1)
    abandoned.cancel()
    store.faults.heal()
    await asyncio.sleep(4)
    assert await value(store, "k") == await value(store, "other") == b"1"


@virtual
async def test_an_outage_and_a_partition(store: MemoryStore) -> None:
    other = MemoryStore(store.consul)
    watching = asyncio.create_task(store.watch("k", (await store.list("k"))[1], 60))
    await asyncio.sleep(0)
    store.faults.partitioned = True
    before = now()
    with pytest.raises(Unreachable):
        await store.get("k", timeout=2)
    with pytest.raises(OutcomeUnknown):
        await store.commit([Set("k", b"1")], timeout=3)
    assert now() - before == 5
    await other.commit([Set("k", b"2")])
    with pytest.raises(Unreachable):
        await watching
    store.faults.heal()
    store.consul.faults.unavailable = True
    for client in (store, other):
        with pytest.raises(OutcomeUnknown):
            await client.commit([Set("k", b"3")])
        with pytest.raises(Unreachable):
            await client.list("")
    store.consul.faults.heal()
    assert await value(store, "k") == b"2"


@virtual
async def test_an_outage_swallows_what_is_under_way(store: MemoryStore) -> None:
    store.faults.delay = 1
    writing = asyncio.create_task(store.commit([Set("k", b"1")]))
    await asyncio.sleep(0.5)
    store.consul.faults.unavailable = True
    with pytest.raises(OutcomeUnknown):
        await writing
    store.consul.faults.heal()
    store.faults.heal()
    assert await value(store, "k") is None


@virtual
async def test_denied_by_prefix(store: MemoryStore) -> None:
    store.faults.denied = ("m/",)
    with pytest.raises(Denied) as denied:
        await store.commit([Set("ok", b""), Set("m/1", b"")])
    assert [f.index for f in denied.value.failed] == [1]
    await store.commit([Set("ok", b"")])
    store.faults.unreadable = ("ok",)
    with pytest.raises(Denied):
        await store.get("ok")
    with pytest.raises(Denied):
        await store.commit([CheckIndex("ok", 1)])
    assert (await store.list(""))[0] == []
    with pytest.raises(Denied):
        await store.list("ok/")


@virtual
async def test_stale_reads_are_only_those_that_are_not_consistent(store: MemoryStore) -> None:
    await store.commit([Set("k", b"old")])
    store.faults.stale = store.consul.view()
    await store.commit([Set("k", b"new")])
    stale, consistent = await store.get("k"), await store.get("k", consistent=True)
    assert stale is not None
    assert consistent is not None
    assert (stale.value, consistent.value) == (b"old", b"new")
    assert [entry.value for entry in (await store.list("k"))[0]] == [b"old"]


@virtual
async def test_an_index_reset_wakes_watchers_and_makes_every_index_stale(store: MemoryStore) -> None:
    first = 0
    for number in range(50):
        first = (await store.commit([Set("k", b"%d" % number)]))["k"]
    watching = asyncio.create_task(store.watch("k", first, 60))
    await asyncio.sleep(0)
    store.consul.reset_index()
    entries, index = await watching
    assert [entry.value for entry in entries] == [b"49"]
    assert index == 0
    with pytest.raises(Conflict):
        await store.commit([Set("k", b"x", cas=first)])


@virtual
async def test_observers_hear_of_what_landed(store: MemoryStore) -> None:
    heard: list[tuple[int, int]] = []
    store.consul.observers.append(lambda index, ops: heard.append((index, len(ops))))
    index = (await store.commit([Set("k", b"1", cas=0)]))["k"]
    with pytest.raises(Conflict):
        await store.commit([Set("k", b"2", cas=0)])
    assert heard == [(index, 1)]


@virtual
async def test_forgotten_deletions_don_t_hide_a_change(store: MemoryStore) -> None:
    _, index = await store.list("gone/")
    for number in range(5000):
        await store.commit([Set(f"gone/{number}", b""), Delete(f"other/{number}")])
        await store.commit([Delete(f"gone/{number}")])
    assert (await store.list("gone/"))[1] > index


def test_time_stands_while_nothing_is_due() -> None:
    async def stuck() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="no timer"):
        run(stuck())


def test_two_stores_without_a_cluster_don_t_share_one() -> None:
    assert MemoryStore().consul is not MemoryStore().consul

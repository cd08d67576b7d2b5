"""What both sides of the store promise about locks, sessions and nodes, held to a real Consul."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from rebootd.core.errors import Refused, SessionLost
from rebootd.store.port import LOCK_FLAGS, CheckSession, Delete, Entry, Lock, Set, Unlock
from tests.contract.conftest import eventually
from tests.contract.test_store_contract import DEAD, put, refused

if TYPE_CHECKING:
    from rebootd.store.port import Op, Store
    from tests.contract.conftest import World


async def read(store: Store, key: str) -> Entry:
    entry = await store.get(key)
    assert entry is not None
    return entry


async def test_lock_and_unlock(store: Store, prefix: str) -> None:
    key = f"{prefix}.lock"
    ours, theirs = await store.create_session("ours"), await store.create_session("theirs")
    written = await store.commit([Lock(key, b"1", ours)])
    assert await read(store, key) == Entry(key, b"1", written[key], LOCK_FLAGS, ours, 1)
    assert await refused(store, Lock(key, b"x", theirs)) == [(0, "locked")]
    assert await refused(store, Unlock(key, b"x", theirs)) == [(0, "session")]
    again = await store.commit([Lock(key, b"2", ours)])
    assert (await read(store, key)).lock_index == 1
    written = await store.commit([Unlock(key, b"3", ours, flags=7)])
    assert written[key] > again[key]
    assert await read(store, key) == Entry(key, b"3", written[key], 7, "", 1)
    assert await refused(store, Unlock(key, b"x", ours)) == [(0, "session")]
    await store.commit([Lock(key, b"4", theirs)])
    taken = await read(store, key)
    assert (taken.session, taken.lock_index, taken.flags) == (theirs, 2, LOCK_FLAGS)


async def test_lock_needs_a_living_session(store: Store, prefix: str) -> None:
    assert await refused(store, Lock(f"{prefix}l", b"", DEAD)) == [(0, "session")]
    assert await refused(store, Unlock(f"{prefix}absent", b"", DEAD)) == [(0, "session")]
    ended = await store.create_session("ended")
    await store.destroy_session(ended)
    assert await refused(store, Lock(f"{prefix}l", b"", ended)) == [(0, "session")]


async def test_check_session(store: Store, prefix: str) -> None:
    key = f"{prefix}.lock"
    ours, theirs = await store.create_session("ours"), await store.create_session("theirs")
    assert await refused(store, CheckSession(key, ours)) == [(0, "missing")]
    await put(store, key)
    assert await refused(store, CheckSession(key, ours)) == [(0, "session")]
    await store.commit([Lock(key, b"", ours), CheckSession(key, ours)])
    assert await store.commit([CheckSession(key, ours)]) == {}
    await store.commit([CheckSession(key, ours), Set(f"{prefix}k", b"1")])
    assert await refused(store, Set(f"{prefix}k", b"2"), CheckSession(key, theirs)) == [(1, "session")]
    assert await refused(store, CheckSession(key, DEAD), Set(f"{prefix}k", b"2")) == [(0, "session")]
    assert (await read(store, f"{prefix}k")).value == b"1"


async def test_an_empty_session_is_a_programming_error(store: Store, prefix: str) -> None:
    await put(store, f"{prefix}k")
    for op in (CheckSession(f"{prefix}k", ""), Lock(f"{prefix}k", b"", ""), Unlock(f"{prefix}k", b"", "")):
        with pytest.raises(ValueError, match="empty session"):
            await store.commit([op])


async def test_a_plain_write_keeps_the_holder_but_drops_the_flags(store: Store, prefix: str) -> None:
    key = f"{prefix}.lock"
    ours = await store.create_session("ours")
    await store.commit([Lock(key, b"1", ours)])
    await store.commit([Set(key, b"2")])
    entry = await read(store, key)
    assert (entry.value, entry.session, entry.flags, entry.lock_index) == (b"2", ours, 0, 0)


async def test_deleting_the_key_gives_the_lock_up(store: Store, prefix: str) -> None:
    key = f"{prefix}.lock"
    ours, theirs = await store.create_session("ours", lock_delay=5), await store.create_session("theirs")
    await store.commit([Lock(key, b"1", ours)])
    await store.commit([Delete(key)])
    assert await refused(store, CheckSession(key, ours)) == [(0, "missing")]
    await store.commit([Lock(key, b"1", theirs)])
    assert (await read(store, key)).lock_index == 1


async def test_locks_ride_with_other_operations_or_not_at_all(store: Store, prefix: str) -> None:
    ours = await store.create_session("ours")
    record = await put(store, f"{prefix}record", b"1", cas=0)
    stale: list[Op] = [Lock(f"{prefix}.lock", b"", ours), Set(f"{prefix}record", b"2", cas=record + 1000)]
    assert await refused(store, *stale) == [(1, "cas")]
    assert await store.get(f"{prefix}.lock") is None
    await store.commit([Lock(f"{prefix}.lock", b"", ours), Set(f"{prefix}record", b"2", cas=record)])
    assert (await read(store, f"{prefix}.lock")).session == ours


async def test_destroying_a_session_releases_its_locks_and_keeps_the_values(store: Store, prefix: str) -> None:
    ours, theirs = await store.create_session("ours"), await store.create_session("theirs")
    await store.commit([Lock(f"{prefix}{name}", b"held", ours) for name in "ab"])
    await store.destroy_session(ours)
    await store.destroy_session(ours)
    for name in "ab":
        entry = await read(store, f"{prefix}{name}")
        assert (entry.value, entry.session, entry.flags) == (b"held", "", LOCK_FLAGS)
        assert await refused(store, CheckSession(f"{prefix}{name}", ours)) == [(0, "session")]
    await store.commit([Lock(f"{prefix}{name}", b"next", theirs) for name in "ab"])


async def test_lock_delay_follows_a_lost_session_but_not_an_unlock(store: Store, prefix: str) -> None:
    key = f"{prefix}.lock"
    theirs = await store.create_session("theirs")
    ours = await store.create_session("ours", lock_delay=0.6)
    await store.commit([Lock(key, b"", ours)])
    await store.commit([Unlock(key, b"", ours)])
    await store.commit([Lock(key, b"", theirs)])
    await store.commit([Unlock(key, b"", theirs)])
    await store.commit([Lock(key, b"", ours)])
    started = time.monotonic()
    await store.destroy_session(ours)
    assert await refused(store, Lock(key, b"", theirs)) == [(0, "locked")]
    # The delay is found before anything is tried: it hides the other reasons.
    assert await refused(store, Set(f"{prefix}x", b"", cas=999), Lock(key, b"", theirs)) == [(1, "locked")]
    await store.commit([Set(key, b"a plain write is let through")])

    async def taken() -> bool:
        try:
            await store.commit([Lock(key, b"", theirs)])
        except Exception:  # noqa: BLE001  # asked again until it succeeds
            return False
        return True

    await eventually(taken, "the lock-delay to end")
    assert 0.4 < time.monotonic() - started < 2


async def test_sessions_are_listed_as_they_were_made(world: World, prefix: str) -> None:
    store = world.store
    await store.ensure_lock_node(f"{prefix[:-1]}-locks")
    plain = await store.create_session(f"{prefix}plain")
    full = await store.create_session(
        f"{prefix}full", node=world.node, ttl=12.5, lock_delay=0.25, checks=["serfHealth"]
    )
    away = await store.create_session(f"{prefix}away", node=f"{prefix[:-1]}-locks", lock_delay=1.0)
    listed = {one.id: one for one in await store.sessions()}
    assert (listed[plain].name, listed[plain].node, listed[plain].checks) == (f"{prefix}plain", world.node, ())
    assert (listed[plain].ttl, listed[plain].lock_delay) == (0, 0)
    assert (listed[full].ttl, listed[full].lock_delay, listed[full].checks) == (12.5, 0.25, ("serfHealth",))
    assert listed[away].node == f"{prefix[:-1]}-locks"
    assert [one.id for one in await store.sessions(node=f"{prefix[:-1]}-locks")] == [away]
    assert away not in {one.id for one in await store.sessions(node=world.node)}
    assert await store.sessions(node="no-such-node") == []
    for session in (plain, full, away):
        await store.destroy_session(session)
    assert not {plain, full, away} & {one.id for one in await store.sessions()}


async def test_renewing(store: Store) -> None:
    session = await store.create_session("x", ttl=10)
    await store.renew_session(session)
    await store.destroy_session(session)
    with pytest.raises(SessionLost):
        await store.renew_session(session)
    with pytest.raises(SessionLost):
        await store.renew_session("not-a-uuid")
    await store.destroy_session("not-a-uuid")


async def test_a_session_ends_when_one_of_its_checks_turns_critical(world: World, prefix: str, check_id: str) -> None:
    store = world.store
    await world.set_check(check_id, "passing")
    bound = await store.create_session("bound", checks=["serfHealth", check_id])
    free = await store.create_session("free")
    await store.commit([Lock(f"{prefix}bound", b"", bound), Lock(f"{prefix}free", b"", free)])
    await world.set_check(check_id, "warning")
    await store.renew_session(bound)
    await world.set_check(check_id, "critical")

    async def released() -> bool:
        return not (await read(store, f"{prefix}bound")).session

    await eventually(released, "the session to end")
    with pytest.raises(SessionLost):
        await store.renew_session(bound)
    assert (await read(store, f"{prefix}free")).session == free


async def test_a_session_cannot_be_made_on_what_is_missing_or_critical(world: World, check_id: str) -> None:
    store = world.store
    with pytest.raises(Refused):
        await store.create_session("x", checks=[check_id])
    await world.set_check(check_id, "critical")
    with pytest.raises(Refused):
        await store.create_session("x", checks=[check_id])
    await world.set_check(check_id, "passing")
    await store.create_session("x", checks=[check_id])
    with pytest.raises(Refused):
        await store.create_session("x", node="no-such-node")
    with pytest.raises(Refused):
        await store.create_session("x", ttl=1)


async def test_the_lock_node_is_registered_once_and_holds_sessions(world: World, prefix: str, check_id: str) -> None:
    store, name = world.store, f"{prefix[:-1]}-locks"
    await store.ensure_lock_node(name)
    session = await store.create_session("rack r1", node=name)
    await store.commit([Lock(f"{prefix}.lock", b"", session)])
    await store.ensure_lock_node(name)
    found = {node.name: node for node in (await store.watch_nodes(0, 0))[0]}
    assert found[name].meta == {"external-node": "true"}
    assert world.node in found
    # What happens to the host of the daemon does not touch it.
    await world.set_check(check_id, "critical")
    assert (await read(store, f"{prefix}.lock")).session == session
    with pytest.raises(Refused):
        await store.create_session("x", node=name, checks=["serfHealth"])


@pytest.mark.slow
async def test_a_session_that_is_not_renewed_expires(store: Store, prefix: str) -> None:
    session = await store.create_session("x", ttl=10)
    await store.commit([Lock(f"{prefix}.lock", b"", session)])
    started = time.monotonic()

    async def released() -> bool:
        return not (await read(store, f"{prefix}.lock")).session

    await eventually(released, "the session to expire", timeout=30)
    assert 9.5 < time.monotonic() - started < 25


async def test_who_watches_the_catalog_hears_of_a_node_that_comes(world: World, prefix: str) -> None:
    store, name = world.store, f"{prefix[:-1]}-new"
    nodes, first = await store.watch_nodes(0, 30)
    assert first > 0
    assert name not in {n.name for n in nodes}

    async def heard() -> int:
        index = first
        while True:
            # A cluster's catalog changes for other reasons, too.
            nodes, index = await store.watch_nodes(index, 30)
            if name in {n.name for n in nodes}:
                return index

    watching = asyncio.create_task(heard())
    await asyncio.sleep(0.2)
    assert not watching.done()
    await store.ensure_lock_node(name)
    assert await asyncio.wait_for(watching, 10) > first

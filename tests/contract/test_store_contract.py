"""What both sides of the store promise about keys and transactions, held to a real Consul."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from rebootd.core.errors import Conflict, OutcomeUnknown, TooLarge, Unreachable
from rebootd.store.port import (
    LOCK_FLAGS,
    MAX_BODY,
    MAX_OPS,
    CheckIndex,
    CheckNotExists,
    CheckSession,
    Delete,
    Entry,
    Lock,
    Set,
    Unlock,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rebootd.store.port import Op, Store
    from tests.contract.conftest import World

DEAD = "11111111-2222-3333-4444-555555555555"


async def refused(store: Store, *ops: Op) -> list[tuple[int, str]]:
    """The (index, reason) of each operation that a commit of ``ops`` is refused for."""
    with pytest.raises(Conflict) as caught:
        await store.commit(ops)
    assert all(one.what for one in caught.value.failed)
    return [(one.index, one.reason) for one in caught.value.failed]


async def put(store: Store, key: str, value: bytes = b"v", cas: int | None = None) -> int:
    return (await store.commit([Set(key, value, cas)]))[key]


async def values(store: Store, prefix: str) -> dict[str, bytes]:
    entries, _ = await store.list(prefix)
    return {entry.key: entry.value for entry in entries}


async def test_a_key_reads_back_as_it_was_written(store: Store, prefix: str) -> None:
    key = f"{prefix}a b/ü?&#%2F+"
    value = bytes(range(256))
    written = await store.commit([Set(key, value, flags=LOCK_FLAGS)])
    assert await store.get(key, consistent=True) == Entry(key, value, written[key], LOCK_FLAGS)
    assert await store.get(f"{prefix}absent") is None
    await put(store, f"{prefix}empty", b"")
    empty = await store.get(f"{prefix}empty")
    assert empty is not None
    assert empty.value == b""


async def test_list_is_sorted_and_keeps_to_its_prefix(store: Store, prefix: str) -> None:
    inside = [f"{prefix}x/{name}" for name in ("b", "a", "c/d", "a-")]
    await store.commit([Set(key, key.encode()) for key in (*inside, f"{prefix}xy")])
    entries, index = await store.list(f"{prefix}x/", consistent=True)
    assert [entry.key for entry in entries] == sorted(inside)
    assert index >= entries[0].modify_index > 0
    nothing, index = await store.list(f"{prefix}nothing/")
    assert nothing == []
    assert index > 0


async def test_set_without_cas_always_writes(store: Store, prefix: str) -> None:
    first = await put(store, f"{prefix}k", b"1")
    assert await put(store, f"{prefix}k", b"2") > first
    assert await values(store, prefix) == {f"{prefix}k": b"2"}


async def test_a_write_that_changes_nothing_keeps_the_index(store: Store, prefix: str) -> None:
    first = await put(store, f"{prefix}k", b"1")
    assert await put(store, f"{prefix}k", b"1") == first
    assert await put(store, f"{prefix}k", b"1", cas=first) == first


async def test_cas_writes_at_its_index_only(store: Store, prefix: str) -> None:
    key = f"{prefix}k"
    first = await put(store, key, b"1", cas=0)
    assert await refused(store, Set(key, b"x", cas=0)) == [(0, "cas")]
    second = await put(store, key, b"2", cas=first)
    assert second > first
    assert await refused(store, Set(key, b"x", cas=first)) == [(0, "cas")]
    assert await refused(store, Set(f"{prefix}absent", b"x", cas=first)) == [(0, "cas")]
    assert await values(store, prefix) == {key: b"2"}


async def test_delete(store: Store, prefix: str) -> None:
    key = f"{prefix}k"
    first = await put(store, key)
    assert await refused(store, Delete(key, cas=first + 1000)) == [(0, "cas")]
    assert await store.commit([Delete(key, cas=first)]) == {}
    assert await store.get(key) is None
    await store.commit([Delete(key)])
    await store.commit([Delete(key, cas=first)])
    await put(store, key, b"again", cas=0)
    await store.commit([Delete(key)])
    assert await values(store, prefix) == {}


async def test_check_index(store: Store, prefix: str) -> None:
    key = f"{prefix}k"
    index = await put(store, key)
    assert await store.commit([CheckIndex(key, index)]) == {}
    written = await store.commit([CheckIndex(key, index), Set(f"{prefix}other", b"1")])
    assert set(written) == {f"{prefix}other"}
    assert await refused(store, CheckIndex(key, index + 1)) == [(0, "cas")]
    assert await refused(store, CheckIndex(f"{prefix}absent", 1)) == [(0, "missing")]
    assert await refused(store, CheckIndex(f"{prefix}absent", 0)) == [(0, "missing")]
    assert await refused(store, Set(f"{prefix}z", b""), CheckIndex(key, index + 1)) == [(1, "cas")]


async def test_check_not_exists(store: Store, prefix: str) -> None:
    await put(store, f"{prefix}k")
    assert await refused(store, CheckNotExists(f"{prefix}k")) == [(0, "exists")]
    assert await store.commit([CheckNotExists(f"{prefix}absent")]) == {}


async def test_a_refused_commit_changes_nothing_and_names_every_reason(store: Store, prefix: str) -> None:
    kept = await put(store, f"{prefix}kept", b"1")
    ops: Sequence[Op] = [
        Set(f"{prefix}new", b"x"),
        CheckNotExists(f"{prefix}kept"),
        Delete(f"{prefix}kept"),
        Set(f"{prefix}kept2", b"x", cas=kept),
        CheckIndex(f"{prefix}absent", 3),
        Unlock(f"{prefix}kept", b"", DEAD),
        CheckSession(f"{prefix}absent", DEAD),
        Lock(f"{prefix}lock", b"", DEAD),
    ]
    assert await refused(store, *ops) == [
        (1, "exists"),
        (3, "cas"),
        (4, "missing"),
        (5, "session"),
        (6, "missing"),
        (7, "session"),
    ]
    assert await values(store, prefix) == {f"{prefix}kept": b"1"}


async def test_operations_see_what_earlier_ones_did(store: Store, prefix: str) -> None:
    key = f"{prefix}k"
    assert await refused(store, Set(key, b"1"), CheckNotExists(key)) == [(1, "exists")]
    await store.commit([CheckNotExists(key), Set(key, b"1", cas=0), Set(f"{key}2", b"1"), Delete(f"{key}2")])
    assert await values(store, prefix) == {key: b"1"}


async def test_one_commit_gives_every_key_the_same_index(store: Store, prefix: str) -> None:
    keys = [f"{prefix}{number:02}" for number in range(MAX_OPS)]
    written = await store.commit([Set(key, b"1", cas=0) for key in keys])
    assert sorted(written) == keys
    assert len(set(written.values())) == 1
    entries, _ = await store.list(prefix)
    assert {entry.key: entry.modify_index for entry in entries} == written


async def test_too_much_is_refused_before_it_is_sent(store: Store, prefix: str) -> None:
    with pytest.raises(ValueError, match="operations"):
        await store.commit([Set(f"{prefix}{number}", b"") for number in range(MAX_OPS + 1)])
    with pytest.raises(TooLarge):
        await store.commit([Set(f"{prefix}a", b"x" * MAX_BODY)])
    assert await store.commit([]) == {}
    assert await values(store, prefix) == {}


async def test_a_body_just_below_the_limit_is_taken(store: Store, prefix: str) -> None:
    size = MAX_BODY // 4 * 3 // MAX_OPS - 200
    await store.commit([Set(f"{prefix}{number:02}", b"x" * size) for number in range(MAX_OPS)])
    assert len(await values(store, prefix)) == MAX_OPS


async def test_watch_answers_at_once_without_an_index(store: Store, prefix: str) -> None:
    await put(store, f"{prefix}k", b"1")
    async with asyncio.timeout(2):
        entries, index = await store.watch(prefix, 0, 30)
    assert [entry.value for entry in entries] == [b"1"]
    assert index > 0


@pytest.mark.parametrize("change", ["new", "set", "delete"])
async def test_watch_wakes_on_a_change(store: Store, prefix: str, change: str) -> None:
    await put(store, f"{prefix}k", b"1")
    _, index = await store.list(prefix)
    watching = asyncio.create_task(store.watch(prefix, index, 30))
    done, _ = await asyncio.wait([watching], timeout=0.15)
    assert not done
    changes: dict[str, Op] = {
        "new": Set(f"{prefix}n", b"1"),
        "set": Set(f"{prefix}k", b"2"),
        "delete": Delete(f"{prefix}k"),
    }
    await store.commit([changes[change]])
    async with asyncio.timeout(2):
        entries, now = await watching
    assert {entry.key: entry.value for entry in entries} == await values(store, prefix)
    assert now > index


async def test_watch_wakes_on_the_first_key_under_an_empty_prefix(store: Store, prefix: str) -> None:
    _, index = await store.list(prefix)
    watching = asyncio.create_task(store.watch(prefix, index, 30))
    await put(store, f"{prefix}k", b"1")
    async with asyncio.timeout(2):
        entries, now = await watching
        while not entries:
            entries, now = await store.watch(prefix, now, 30)
    assert [entry.value for entry in entries] == [b"1"]


async def test_watch_returns_after_its_wait(store: Store, prefix: str) -> None:
    await put(store, f"{prefix}k", b"1")
    _, index = await store.list(prefix)
    started = time.monotonic()
    entries, now = await store.watch(prefix, index, 0.3)
    assert 0.25 < time.monotonic() - started < 2
    assert [entry.value for entry in entries] == [b"1"]
    assert now == index


async def test_an_index_from_the_future_is_reset(store: Store, prefix: str) -> None:
    await put(store, f"{prefix}k", b"1")
    async with asyncio.timeout(5):
        entries, now = await store.watch(prefix, 10**9, 0.2)
        assert now == 0
        assert [entry.value for entry in entries] == [b"1"]
        _, now = await store.watch(prefix, now, 30)
    assert now > 0


async def test_concurrent_increments_by_cas_are_all_counted(store: Store, prefix: str) -> None:
    key = f"{prefix}counter"
    await put(store, key, b"0", cas=0)

    async def increment(times: int) -> None:
        while times:
            entry = await store.get(key)
            assert entry is not None
            try:
                await store.commit([Set(key, b"%d" % (int(entry.value) + 1), cas=entry.modify_index)])
            except Conflict:
                continue
            times -= 1

    await asyncio.gather(*(increment(10) for _ in range(4)))
    assert await values(store, prefix) == {key: b"40"}


async def test_no_answer_is_unreachable_for_reads_and_unknown_for_writes(world: World, prefix: str) -> None:
    store, key = world.store, f"{prefix}k"
    first = await put(store, key, b"before", cas=0)
    transaction = [Set(key, b"ours", cas=first)]
    async with world.unanswered():
        with pytest.raises(OutcomeUnknown):
            await store.commit(transaction, timeout=0.3)
        with pytest.raises(Unreachable):
            await store.get(key, timeout=0.2)
        with pytest.raises(Unreachable):
            await store.list(prefix, timeout=0.2)
        with pytest.raises(Unreachable):
            await store.create_session("x", timeout=0.2)
    # Unknown is settled by sending the same again: it lands now, or is refused because it had landed.
    reasons = []
    try:
        await store.commit(transaction)
    except Conflict as conflict:
        reasons = [(one.index, one.reason) for one in conflict.failed]
    assert reasons in ([], [(0, "cas")])
    assert await values(store, prefix) == {key: b"ours"}

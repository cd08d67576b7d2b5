"""The fenced writer when answers are lost: what it finds out, and what it makes sure of."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING

import pytest

from rebootd.store.memory import LOST_REPLY, NEVER, late
from rebootd.store.port import CheckIndex, CheckNotExists, Delete, Entry, Lock, Op, Set
from rebootd.store.writer import Blocked, Committed, Dropped, Step
from tests.contract.writer_bench import HALT, Bench, record, step, virtual
from tests.support.virtual_time import run

if TYPE_CHECKING:
    from collections.abc import Sequence


@virtual()
async def test_a_lost_reply_is_settled_as_committed(bench: Bench) -> None:
    bench.store.faults.fates.append(LOST_REPLY)
    outcomes = await bench.writer.commit([step("m/1"), step("m/2")])
    assert outcomes == [Committed({key: await bench.index(key)}) for key in ("m/1", "m/2")]
    assert (bench.writes("m/1"), [outcome for _, outcome in bench.sent]) == (1, ["unknown", "refused"])


@virtual()
async def test_an_outage_is_waited_out(bench: Bench) -> None:
    bench.store.consul.faults.unavailable = True
    writing = asyncio.create_task(bench.one(step("m")))
    await asyncio.sleep(60)
    assert 30 < len(bench.sent) < 70
    bench.store.consul.faults.heal()
    assert isinstance(await writing, Committed)
    assert bench.writes("m") == 1


@virtual()
async def test_landed_although_its_guard_would_refuse_it_now(bench: Bench) -> None:
    """A halt that comes right after a permit landed does not make the permit unsaid."""
    bench.store.faults.fates.append(LOST_REPLY)
    policy = CheckIndex("policy", (await bench.other.commit([Set("policy", b"")]))["policy"])
    writing = asyncio.create_task(bench.one(step("m", 0, HALT, policy)))
    await asyncio.sleep(0.01)
    await bench.other.commit([Set("halt", b"stop")])
    assert await writing == Committed({"m": await bench.index("m")})


@virtual()
async def test_a_lock_that_passes_twice_lands_once(bench: Bench) -> None:
    bench.store.faults.fates.append(LOST_REPLY)
    rack = Step((record("rack"), Lock("rack/.lock", b"", bench.session)))
    assert isinstance(await bench.one(rack), Committed)
    assert bench.writes("rack") == 1


@virtual()
async def test_a_refused_step_is_killed_before_it_is_reported(bench: Bench) -> None:
    """The first send is still on its way when the guard refuses the second; later the guard is gone."""
    first = await bench.index("m") or (await bench.other.commit([record("m")]))["m"]
    bench.store.faults.fates.append(late(5))
    writing = asyncio.create_task(bench.writer.commit([step("m", first, HALT), step("n")]))
    await asyncio.sleep(0.01)
    await bench.other.commit([Set("halt", b"stop")])
    dropped, committed = await writing
    assert isinstance(dropped, Dropped)
    assert dropped.settled
    assert isinstance(committed, Committed)
    await bench.other.commit([Delete("halt")])
    await asyncio.sleep(10)
    assert (bench.writes("m"), bench.writes("n")) == (1, 1)
    assert await bench.index("m") > first


@pytest.mark.parametrize("moment", ["before the kill reads", "before the kill lands"])
def test_a_late_landing_that_beats_the_kill_counts(moment: str) -> None:
    async def story() -> None:
        bench = await Bench().open()
        consul, commit, get = bench.store.consul, bench.store.commit, bench.store.get
        first = consul.apply([record("m")])["m"]
        sent: list[Sequence[Op]] = []
        reads = count(1)

        def arrive() -> None:
            consul.apply([Delete("halt")])
            consul.apply(sent[0])

        async def watched_commit(ops: Sequence[Op], *, timeout: float = 5.0) -> dict[str, int]:
            sent.append(ops)
            if len(sent) == 2:
                consul.apply([Set("halt", b"stop")])
            if len(sent) == 3 and moment == "before the kill lands":
                arrive()
            return await commit(ops, timeout=timeout)

        async def watched_get(key: str, *, consistent: bool = False, timeout: float = 5.0) -> Entry | None:
            if next(reads) == 2 and moment == "before the kill reads":
                arrive()
            return await get(key, consistent=consistent, timeout=timeout)

        bench.store.commit = watched_commit  # type: ignore[method-assign]
        bench.store.get = watched_get  # type: ignore[method-assign]
        bench.store.faults.fates.append(NEVER)
        assert await bench.one(step("m", first, HALT)) == Committed({"m": consul.entries["m"].modify_index})
        assert len(sent) == (2 if moment == "before the kill reads" else 3)
        assert bench.writes("m") == 2

    run(story())


@virtual()
async def test_a_creation_that_only_a_guard_refused_stays_open(bench: Bench) -> None:
    bench.store.faults.fates.append(NEVER)
    writing = asyncio.create_task(bench.one(step("m", 0, HALT)))
    await asyncio.sleep(0.01)
    await bench.other.commit([Set("halt", b"stop")])
    outcome = await writing
    assert isinstance(outcome, Dropped)
    assert not outcome.settled


@virtual()
async def test_what_shared_a_form_that_stays_open_stays_open(bench: Bench) -> None:
    """The second form is refused without a doubt of its own, but the first may still land."""
    consul, commit = bench.store.consul, bench.store.commit
    obstacles = iter([(), ("halt",), ("other",)])

    async def obstructed(ops: Sequence[Op], *, timeout: float = 5.0) -> dict[str, int]:
        for key in next(obstacles):
            consul.apply([Set(key, b"stop")])
        return await commit(ops, timeout=timeout)

    bench.store.commit = obstructed  # type: ignore[method-assign]
    bench.store.faults.fates.append(NEVER)
    outcomes = await bench.writer.commit([step("a", 0, HALT), step("b", 0, CheckNotExists("other"))])
    assert [outcome.settled for outcome in outcomes if isinstance(outcome, Dropped)] == [False, False]


@virtual()
async def test_an_edit_after_it_landed_shows_as_an_unknown_index(bench: Bench) -> None:
    bench.store.faults.fates.append(LOST_REPLY)
    writing = asyncio.create_task(bench.writer.commit([step("a"), step("b")]))
    await asyncio.sleep(0.01)
    landed = await bench.index("a")
    for key in "ab":
        entry = await bench.other.get(key)
        assert entry is not None
        await bench.other.commit([Set(key, entry.value + b" ")])
    assert await writing == [Committed({"a": 0}), Committed({"b": 0})]
    assert await bench.index("a") > landed


@virtual()
async def test_one_witness_speaks_for_all(bench: Bench) -> None:
    bench.store.faults.fates.append(LOST_REPLY)
    writing = asyncio.create_task(bench.writer.commit([step("a"), Step((Set("policy", b"a: 1", 0),)), step("b")]))
    await asyncio.sleep(0.01)
    landed = await bench.index("b")
    await bench.other.commit([Set("a", b"by hand"), Set("policy", b"by hand")])
    assert await writing == [Committed({key: landed}) for key in ("a", "policy", "b")]


@virtual()
async def test_text_without_a_write_id_speaks_by_its_bytes(bench: Bench) -> None:
    bench.store.faults.fates.append(LOST_REPLY)
    assert isinstance(await bench.one(Step((Set("policy", b"a: 1", 0),))), Committed)
    bench.store.faults.fates.append(LOST_REPLY)
    assert isinstance(await bench.one(Step((Delete("policy", await bench.index("policy")),))), Committed)


@virtual()
async def test_a_request_that_was_doubled_on_the_way_counts_once(bench: Bench) -> None:
    commit = bench.store.commit

    async def doubled(ops: Sequence[Op], *, timeout: float = 5.0) -> dict[str, int]:
        await commit(ops, timeout=timeout)
        return await commit(ops, timeout=timeout)

    bench.store.commit = doubled  # type: ignore[method-assign]
    assert isinstance(await bench.one(step("m")), Committed)
    assert bench.writes("m") == 1


@virtual()
async def test_denied_after_no_answer_is_open(bench: Bench) -> None:
    first = (await bench.other.commit([record("m")]))["m"]
    bench.store.faults.fates.append(NEVER)
    writing = asyncio.create_task(bench.one(step("m", first)))
    await asyncio.sleep(0.01)
    bench.store.faults.denied = bench.store.faults.unreadable = ("m",)
    assert await writing == Blocked("Permission denied", settled=False)

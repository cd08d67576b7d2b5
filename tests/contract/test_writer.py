"""The fenced writer on the memory side, in virtual time, with faults put in by hand."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from rebootd.core.errors import FenceLost, TooLarge
from rebootd.store.consul_txn import encode
from rebootd.store.memory import LOST_REPLY, NEVER, MemoryStore, late
from rebootd.store.port import (
    MAX_BODY,
    MAX_OPS,
    CheckIndex,
    CheckNotExists,
    CheckSession,
    Delete,
    Entry,
    Lock,
    Op,
    Set,
    Unlock,
)
from rebootd.store.writer import Blocked, Committed, Dropped, FencedWriter, Step
from rebootd.store.writer_steps import Batch, Item, Queue, op_size
from tests.support.virtual_time import run

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

HALT = CheckNotExists("halt")
ids = count(1)


def record(key: str, cas: int = 0, **more: object) -> Set:
    return Set(key, json.dumps({"write_id": f"w{next(ids)}", **more}).encode(), cas)


def step(key: str, cas: int = 0, *guards: CheckNotExists | CheckIndex | CheckSession, lane: str = "") -> Step:
    return Step((record(key, cas),), guards, lane)


class Bench:
    """A cluster, a leader with a writer, and a second client for what others do."""

    async def open(self, **options: Any) -> Bench:
        self.store = MemoryStore()
        self.other = MemoryStore(self.store.consul)
        self.session = await self.store.create_session("leader")
        await self.store.commit([Lock("leader", b"", self.session)])
        self.landed: list[tuple[Op, ...]] = []
        self.sent: list[tuple[int, str]] = []
        self.store.consul.observers.append(lambda _, ops: self.landed.append(tuple(ops)))
        self.writer = FencedWriter(
            self.store,
            "leader",
            self.session,
            new_write_id=lambda: uuid.uuid4().hex,
            on_commit=lambda _, ops, outcome: self.sent.append((ops, outcome)),
            **options,
        )
        return self

    async def one(self, step: Step) -> object:
        return (await self.writer.commit([step]))[0]

    async def index(self, key: str) -> int:
        entry = await self.other.get(key)
        return entry.modify_index if entry else 0

    def writes(self, key: str) -> int:
        """How often a record with a write id landed at ``key``."""
        return sum(isinstance(op, Set) and op.key == key and not op.flags for ops in self.landed for op in ops)


def virtual(**options: object) -> Callable[[Callable[[Bench], Coroutine[object, object, None]]], Callable[[], None]]:
    def decorate(test: Callable[[Bench], Coroutine[object, object, None]]) -> Callable[[], None]:
        async def main() -> None:
            bench = await Bench().open(**options)
            await test(bench)
            await bench.writer.close()

        def sync() -> None:
            run(main())

        return sync

    return decorate


# ------------------------------------------------------------------------------------------------- packing


@virtual()
async def test_steps_share_transactions_within_the_limits(bench: Bench) -> None:
    steps = [step(f"m/{n:03}", 0, HALT) for n in range(200)]
    outcomes = await bench.writer.commit(steps)
    assert all(isinstance(outcome, Committed) and outcome.indexes[f"m/{n:03}"] for n, outcome in enumerate(outcomes))
    assert [len(ops) for ops in bench.landed] == [64, 64, 64, 16]
    assert all(ops[:2] == (CheckSession("leader", bench.session), HALT) for ops in bench.landed)
    assert [op.key for ops in bench.landed for op in ops[2:]] == [s.ops[0].key for s in steps]


@virtual()
async def test_transactions_are_cut_by_bytes(bench: Bench) -> None:
    steps = [Step((record(f"m/{n}", pad="x" * 100_000),)) for n in range(7)]
    assert all(isinstance(outcome, Committed) for outcome in await bench.writer.commit(steps))
    assert [len(ops) - 1 for ops in bench.landed] == [2, 2, 2, 1]


@virtual()
async def test_lanes_never_share_and_take_turns(bench: Bench) -> None:
    steps = [step(f"{lane}/{n}", lane=lane) for lane in ("out", "back") for n in range(130)]
    await bench.writer.commit(steps)
    lanes = [{op.key.split("/")[0] for op in ops[1:]} for ops in bench.landed]
    assert lanes == [{"out"}, {"back"}] * 3


@virtual()
async def test_a_step_that_is_too_large_is_dropped_alone(bench: Bench) -> None:
    many = Step(tuple(record(f"x/{n}") for n in range(MAX_OPS)))
    big = Step((record("big", pad="x" * MAX_BODY),))
    outcomes = await bench.writer.commit([many, step("m"), big])
    assert [type(outcome) for outcome in outcomes] == [Dropped, Committed, Dropped]
    assert await bench.writer.commit([]) == []


@virtual()
async def test_a_step_without_cas_is_a_programming_error(bench: Bench) -> None:
    with pytest.raises(ValueError, match="cas"):
        await bench.writer.commit([Step((Set("k", b""),))])


def test_the_estimate_of_size_is_never_below_the_encoded_one() -> None:
    ops: list[Op] = [CheckIndex("ü\x01/a", 2**63), CheckNotExists("k"), CheckSession("k", str(uuid.uuid4()))]
    for n in (0, 1, 2, 3, 500, 100_000):
        ops += [Set("k" * n or "k", b"\xff" * n, 2**63, 2**63), Delete("d", 2**63)]
        ops += [kind("l", b"x" * n, str(uuid.uuid4())) for kind in (Lock, Unlock)]
    for op in ops:
        assert len(encode([op])) - 1 <= op_size(op) <= 1.5 * len(encode([op])) + 250


def test_ten_thousand_steps_pack_quickly() -> None:
    async def pack() -> float:
        value = b"x" * 500
        steps = [
            Step((Set(f"rebootd/machines/m{n:05}", value, n + 1),), (HALT, CheckIndex("policy", 7)))
            for n in range(10_000)
        ]
        began = time.process_time()
        batch = Batch(len(steps), asyncio.get_running_loop().create_future())
        queue = Queue()
        for n, one in enumerate(steps):
            queue.add(Item(one, batch, n))
        packs = 0
        while items := queue.take():
            queue.release(items)
            packs += 1
        assert packs == 10_000 // 62 + 1
        return time.process_time() - began

    spent = min(run(pack()) for _ in range(3))
    print(f"10,000 steps packed in {spent * 1000:.0f} ms")
    assert spent < 0.3


def test_a_crowd_on_one_key_is_linear() -> None:
    async def crowd(size: int) -> float:
        bench = await Bench().open()
        began = time.process_time()
        outcomes = await bench.writer.commit([step("same", 0) for _ in range(size)])
        assert sum(isinstance(outcome, Committed) for outcome in outcomes) == 1
        return time.process_time() - began

    assert run(crowd(4000)) < 20 * run(crowd(500)) + 0.2


# ---------------------------------------------------------------------------------------- order and sharing


@virtual()
async def test_callers_of_one_moment_share_a_transaction(bench: Bench) -> None:
    outcomes = await asyncio.gather(*(bench.one(step(f"m/{n}")) for n in range(10)))
    assert all(isinstance(outcome, Committed) for outcome in outcomes)
    assert len(bench.landed) == 1


@virtual(concurrency=2)
async def test_no_more_than_concurrency_are_out_and_the_rest_gathers(bench: Bench) -> None:
    bench.store.faults.delay = 1
    began = asyncio.get_running_loop().time()
    calls = []
    for n in range(20):
        calls.append(asyncio.create_task(bench.one(step(f"m/{n}"))))
        await asyncio.sleep(0.01)
    await asyncio.gather(*calls)
    assert [len(ops) - 1 for ops in bench.landed] == [1, 1, 18]
    assert asyncio.get_running_loop().time() - began == pytest.approx(2, abs=0.1)


@virtual()
async def test_steps_on_one_key_follow_each_other(bench: Bench) -> None:
    rack = Step((record("rack"), Lock("rack/.lock", b"", bench.session)))
    drains = [step(f"m/{n}", 0, CheckSession("rack/.lock", bench.session)) for n in range(3)]
    steps = [rack, *drains, Step((Unlock("rack/.lock", b"", bench.session), record("m/9"))), step("z")]
    outcomes = await bench.writer.commit(steps)
    assert all(isinstance(outcome, Committed) for outcome in outcomes)
    assert [len(ops) for ops in bench.landed] == [4, 5, 3]


@virtual()
async def test_a_cancelled_caller_sends_nothing_more(bench: Bench) -> None:
    bench.store.faults.delay = 1
    calls = [asyncio.create_task(bench.one(step(f"m/{n}", lane=str(n)))) for n in range(6)]
    await asyncio.sleep(0.5)
    for call in calls:
        call.cancel()
    again = await bench.one(step("m/5"))
    assert isinstance(again, Committed)
    assert sorted(ops[1].key for ops in bench.landed) == ["m/0", "m/1", "m/2", "m/3", "m/5"]


# ------------------------------------------------------------------------------------------------- refusals


@virtual()
async def test_what_is_refused_is_dropped_and_the_rest_is_sent_again(bench: Bench) -> None:
    await bench.other.commit([Set("halt", b"stop"), Set("policy", b"1"), Set("m/2", b"by hand")])
    stale = CheckIndex("policy", 1)
    steps = [step("m/0"), step("m/1", 0, HALT), step("m/2"), step("m/3", 0, stale, HALT), step("m/4", 0, stale)]
    outcomes = await bench.writer.commit(steps)
    assert isinstance(outcomes[0], Committed)
    reasons = [[(f.index, f.reason) for f in o.failed] for o in outcomes if isinstance(o, Dropped) and o.settled]
    assert reasons == [[(0, "exists")], [(0, "cas")], [(1, "exists"), (0, "cas")], [(0, "cas")]]
    assert bench.sent == [(8, "refused"), (2, "committed")]


@virtual()
async def test_denied_blocks_its_step_only(bench: Bench) -> None:
    bench.store.faults.denied = ("secret/",)
    outcomes = await bench.writer.commit([step("m"), step("secret/1")])
    assert [type(outcome) for outcome in outcomes] == [Committed, Blocked]
    bench.store.faults.denied = ("",)
    assert await bench.one(step("m/2")) == Blocked("Permission denied")
    bench.store.faults.heal()
    bench.store.faults.unreadable = ("leader",)
    assert await bench.one(step("m/2")) == Blocked("Permission denied")
    bench.store.faults.heal()
    assert isinstance(await bench.one(step("m/2")), Committed)
    assert not bench.writer.ended


@virtual()
async def test_too_large_for_the_store_is_halved(bench: Bench) -> None:
    commit = bench.store.commit

    async def small(ops: Sequence[Op], *, timeout: float = 5.0) -> dict[str, int]:
        if len(ops) > 3 or ops[-1].key == "m/4":
            raise TooLarge("too large")
        return await commit(ops, timeout=timeout)

    bench.store.commit = small  # type: ignore[method-assign]
    outcomes = await bench.writer.commit([step(f"m/{n}") for n in range(7)])
    assert [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Dropped)] == [4]


# -------------------------------------------------------------------------------------------------- the fence


@virtual()
async def test_a_lost_fence_ends_the_writer(bench: Bench) -> None:
    await bench.other.destroy_session(bench.session)
    calls = [asyncio.create_task(bench.one(step(f"m/{n}", lane=str(n)))) for n in range(9)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(result, FenceLost) for result in results)
    with pytest.raises(FenceLost):
        await bench.one(step("m"))
    assert not bench.landed


@virtual()
async def test_a_deleted_leader_key_is_a_lost_fence(bench: Bench) -> None:
    await bench.other.commit([Delete("leader")])
    with pytest.raises(FenceLost, match="exist"):
        await bench.one(step("m"))


@virtual()
async def test_a_late_write_does_not_pass_the_next_leader(bench: Bench) -> None:
    bench.store.faults.fates.append(late(5))
    writing = asyncio.create_task(bench.one(step("m")))
    await asyncio.sleep(0)
    bench.store.faults.partitioned = True
    await asyncio.sleep(1)
    await bench.other.destroy_session(bench.session)
    await bench.other.commit([Lock("leader", b"", await bench.other.create_session("next"))])
    await asyncio.sleep(10)
    bench.store.faults.heal()
    with pytest.raises(FenceLost):
        await writing
    assert bench.writes("m") == 0


@virtual()
async def test_close_ends_what_waits(bench: Bench) -> None:
    bench.store.consul.faults.unavailable = True
    writing = asyncio.create_task(bench.one(step("m")))
    await asyncio.sleep(30)
    assert not writing.done()
    await bench.writer.close()
    with pytest.raises(FenceLost, match="closed"):
        await writing


# ------------------------------------------------------------------------------------------------ no answer


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


# ------------------------------------------------------------------------------------------------- the seal


def chunk(slot: int = 1) -> Callable[[list[Step]], Op]:
    return lambda steps: Set(f"events/{slot}", json.dumps([step.note for step in steps]).encode())


@virtual(seal=chunk())
async def test_the_seal_tells_of_exactly_the_steps_that_landed(bench: Bench) -> None:
    await bench.other.commit([Set("halt", b"stop")])
    steps = [Step((record(f"m/{n}"),), (HALT,) if n == 1 else (), note=n) for n in range(3)]
    await bench.writer.commit(steps)
    entry = await bench.other.get("events/1")
    assert entry is not None
    assert json.loads(entry.value) == [0, 2]
    many = await bench.writer.commit([Step((record(f"x/{n}"),)) for n in range(63)])
    assert all(isinstance(outcome, Committed) for outcome in many)
    assert [len(ops) for ops in bench.landed[-2:]] == [64, 3]


@virtual(seal=lambda _: Set("events/1", b"", 99))
async def test_a_seal_that_is_refused_holds_nobody_up(bench: Bench) -> None:
    assert isinstance(await bench.one(step("m")), Committed)
    assert [outcome for _, outcome in bench.sent] == ["refused"] * 3 + ["committed"]


@virtual(seal=lambda _: 1 / 0)
async def test_a_bug_in_the_seal_reaches_the_caller(bench: Bench) -> None:
    with pytest.raises(ZeroDivisionError):
        await bench.one(step("m"))

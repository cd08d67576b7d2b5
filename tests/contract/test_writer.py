"""The fenced writer on the memory side: packing, order, refusals, the fence, the seal."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from typing import TYPE_CHECKING

import pytest

from rebootd.core.errors import FenceLost, TooLarge
from rebootd.store.consul_txn import encode
from rebootd.store.memory import late
from rebootd.store.port import (
    MAX_BODY,
    MAX_OPS,
    CheckIndex,
    CheckNotExists,
    CheckSession,
    Delete,
    Lock,
    Op,
    Set,
    Unlock,
)
from rebootd.store.writer import Blocked, Committed, Dropped, Step
from rebootd.store.writer_steps import Batch, Item, Queue, op_size
from tests.contract.writer_bench import HALT, Bench, record, step, virtual
from tests.support.virtual_time import run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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

"""A gate is overdue when it keeps machines in, not when it is shut for nobody who waits."""

from __future__ import annotations

import asyncio

from rebootd.api import views, views_gates
from rebootd.core.operations_cycles import start_cycle
from rebootd.core.operations_inputs import Because
from tests.coordinator.lab import eventually, start
from tests.coordinator.test_gates_keeper import POLICY, Scripted, leading

SHUT = POLICY.replace("max_age: 60s", "max_age: 1s, max_block: 1s, covers: name=m2")


async def test_a_gate_that_covers_nobody_who_waits_is_never_overdue() -> None:
    sight = Scripted(None)
    waits = "limits: [{name: never, selector: '*', max: 0}]\n" + SHUT
    async with leading(sight, waits) as (leader, _, _):
        await start(leader, selector="name=m1")
        await eventually(lambda: len(sight.read_at) > 1)
        await asyncio.sleep(1.5)
        (row,) = views_gates.gates(leader.snapshot(), leader.decision()).gates
        assert (row.verdict, row.shut, row.overdue) == ("unknown", None, False)
        assert row.since is not None
        assert [e for e in leader.recent(50) if e.kind == "gate"] == []
        assert views.alarms(leader.snapshot()) == ()
        # Now it keeps somebody in, from now on and not since it is shut.
        at = leader.snapshot().now
        await start(leader, "k2", selector="name=m2")
        await eventually(lambda: any(e.kind == "gate" for e in leader.recent(50)))
        (row,) = views_gates.gates(leader.snapshot(), leader.decision()).gates
        assert row.shut is not None
        assert at <= row.shut <= leader.snapshot().now - 1.0


async def test_a_gate_that_an_emergency_goes_past_keeps_nobody_in() -> None:
    sight = Scripted(None)
    waits = "limits: [{name: never, selector: '*', max: 0}]\n" + SHUT
    async with leading(sight, waits) as (leader, _, _):
        because = Because("ann", "CVE")
        await leader.apply(
            lambda s: start_cycle(
                s, cycle_id="k1", selector="name=m2", because=because, emergency=True, skip_gates=("load",)
            )
        )
        await eventually(lambda: len(sight.read_at) > 1)
        await asyncio.sleep(1.5)
        assert [e for e in leader.recent(50) if e.kind == "gate"] == []
        assert views.alarms(leader.snapshot()) == ()

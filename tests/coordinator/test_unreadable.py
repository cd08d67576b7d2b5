"""A machine's record that cannot be read for a while: no cycle takes it for done, and all goes on once it can."""

from __future__ import annotations

import asyncio

import pytest

from rebootd.api import views
from rebootd.core.model import CycleState
from rebootd.store.port import Set
from tests.coordinator.lab import Host, Lab, eventually, start


@pytest.mark.parametrize("new_leader", [False, True])
async def test_a_cycle_waits_for_a_machine_whose_record_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, new_leader: bool
) -> None:
    monkeypatch.setattr("rebootd.coordinator.follow.CATALOG_WAIT", 0.1)
    monkeypatch.setattr("rebootd.coordinator.follow.CATALOG_PAUSE", 0.1)
    lab, hosts = Lab({"r1": ["a1"], "r2": ["a2"]}), [Host("a1"), Host("a2")]
    lab.consul.apply([Set("rebootd/policy", b"racks: {open: 2, unavailable: 2}")])
    async with lab.leader() as leader:
        for host in hosts:
            await host.join(leader)
        good = lab.value("machines/a2")
        if not new_leader:
            await start(leader, selector="rack in (r1,r2)")
            lab.consul.apply([Set("rebootd/machines/a2", b"oops")])
            leader.fleet.absorb(lab.consul.entries["rebootd/machines/a2"], leader.snapshot().now)
    if new_leader:
        lab.consul.apply([Set("rebootd/machines/a2", b"oops")])
    async with lab.leader() as leader, asyncio.timeout(30):
        if new_leader:
            await start(leader, selector="rack in (r1,r2)")
        alive = asyncio.create_task(hosts[0].live(leader))
        await eventually(lambda: leader.fleet.machines["a1"].outcomes.get("k1") == "rebooted", 20)
        await asyncio.sleep(0.5)
        assert leader.fleet.cycles["k1"].state is CycleState.RUNNING
        shown = views.cycle(leader.snapshot(), leader.decision(), "k1")
        assert shown.machines["a2"] == "unreadable"
        assert any(r.blocker.kind == "aside" and "waits for it" in r.blocker.what for r in shown.blockers)
        lab.consul.apply([Set("rebootd/machines/a2", good)])
        await eventually(lambda: "a2" in leader.fleet.machines)
        other = asyncio.create_task(hosts[1].live(leader))
        await eventually(lambda: leader.fleet.cycles["k1"].state is CycleState.DONE, 20)
        assert leader.fleet.cycles["k1"].totals["rebooted"] == 2
        for task in (alive, other):
            task.cancel()

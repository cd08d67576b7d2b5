"""Since when the leader knows of what keeps machines in: the same at every look, and anew when it comes again."""

from __future__ import annotations

import asyncio

import pytest

from rebootd.core.errors import Refused
from rebootd.store.port import Lock
from tests.coordinator.lab import Host, Lab, eventually, start


async def test_a_fault_a_conflict_and_a_foreign_lock_are_known_since_they_were_seen() -> None:
    lab, hosts = Lab({"r1": ["a1", "a2"]}), [Host("a1"), Host("a2")]
    async with lab.leader() as leader:
        for host in hosts:
            await host.join(leader)
        began = leader.snapshot().now
        leader.fleet.faults["x"] = "something is wrong"
        with pytest.raises(Refused):
            await Host("a1", machine_id="another").report(leader)
        session = await lab.store.create_session("x")
        lab.consul.apply([Lock("rebootd/racks/r1/.lock", b"", session)])
        await start(leader)
        await eventually(lambda: leader.snapshot().racks.get("r1") is not None)
        await eventually(lambda: "a2" in leader.decision().reasons)
        first = leader.snapshot()
        await asyncio.sleep(0.2)
        later = leader.snapshot()
        for known in (first, later):
            assert began <= known.fault_since["something is wrong"] <= first.now
            assert began <= known.conflict_since["a1"] <= first.now
            assert began <= known.racks["r1"].since <= first.now
        assert (later.fault_since, later.conflict_since) == (first.fault_since, first.conflict_since)
        sinces = {b.kind: b.since for b in leader.decision().reasons["a2"]}
        assert sinces["store"] == first.fault_since["something is wrong"]
        assert sinces["rack-lock"] == first.racks["r1"].since
        del leader.fleet.faults["x"]
        gone = leader.snapshot()
        leader.fleet.faults["x"] = "something is wrong"
        assert leader.snapshot().fault_since["something is wrong"] >= gone.now


async def test_a_rack_lock_that_is_refused_again_and_again_is_known_since_the_first_time() -> None:
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    async with lab.leader() as leader:
        await host.join(leader)
        leader.fleet.book.refused("r1", 100.0)
        leader.fleet.book.refused("r1", 101.5)
        assert leader.fleet.book.locks(101.6)["r1"].since == 100.0
        leader.fleet.book.refused("r1", 110.0)
        assert leader.fleet.book.locks(110.1)["r1"].since == 110.0
        assert "r1" not in leader.fleet.book.locks(112.0)


async def test_a_virgin_fleet_is_not_worked_on_before_it_has_called() -> None:
    lab, early = Lab({"r1": ["a1", "a2"]}), Host("a1")
    async with lab.leader() as leader:
        await early.join(leader)
        await start(leader)
        await eventually(lambda: "a1" in leader.decision().reasons)
        settle = {b.kind: b for b in leader.decision().reasons["a1"]}["settle"]
        assert "a2" in settle.what
        await Host("a2").join(leader)
        await early.until(leader, "drained")

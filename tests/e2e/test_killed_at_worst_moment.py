"""Killed at the worst moment: whoever is killed when, each machine reboots once, and everything ends well."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.fleet import Blow, Fleet

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.cluster import Agent

BACK = "verifying|enabling"
"""A boot that is verified at once lands as one commit."""
WAY = [
    ("", BACK),
    ("in-service", "draining"),
    ("draining", "drained"),
    ("drained", "rebooting"),
    ("rebooting", BACK),
    ("enabling", "in-service"),
]


async def held_together(fleet: Fleet, since: int) -> None:
    """What must hold after any story in which every machine rebooted once."""
    machines = fleet.supervisor.machines.values()
    assert {m.name: (m.boots, m.asked) for m in machines} == {name: (1, 1) for name in fleet.names}
    assert fleet.ledger.reboots() == dict.fromkeys(fleet.names, 1)
    assert {boot: len(nonces) for boot, nonces in fleet.ledger.permits().items() if len(nonces) != 1} == {}
    assert fleet.ledger.most_racks_open(since) == 1
    states = await fleet.states()
    assert {name: states[name] for name in fleet.names} == dict.fromkeys(fleet.names, "in-service")
    marks = [c["Node"] for c in fleet.consul.ask("/v1/health/state/critical") if c["CheckID"] == "rebootd"]
    assert [name for name in marks if name in fleet.names] == []
    for rack in {rack for _, rack in fleet.nodes}:

        async def free(rack: str = rack) -> bool:
            [lock] = fleet.consul.ask(f"/v1/kv/{fleet.run}/racks/{rack}/.lock")
            return "Session" not in lock

        await fleet.until(free, f"the lock of {rack} to be free")
    for name in fleet.names:
        path = [e for e in await fleet.events() if e.machine == name and e.kind == "transition"]
        assert [e.frm for e in path[1:]] == [e.to for e in path[:-1]], "history has a gap"


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_leader_is_killed_at_every_commit(dev_consul: Agent, tmp_path: Path, moment: str) -> None:
    async with Fleet(dev_consul, tmp_path) as fleet:
        first, second = fleet.names
        fleet.blows = [Blow(moment, first, frm, to) for frm, to in WAY[:1]]
        fleet.blows += [Blow(moment, second, "enabling", "in-service")]
        await fleet.supervisor.start()
        await fleet.all_in_service()
        assert fleet.blows == []
        since = len(fleet.ledger.records)
        fleet.blows = [Blow(moment, first, frm, to) for frm, to in WAY[1:]]
        await fleet.start_cycle("k")
        await fleet.cycle_done("k")
        assert fleet.blows == []
        assert fleet.kills == 7
        await held_together(fleet, since)

"""Killed at the worst moment: whoever is killed when, each machine reboots once, and everything ends well."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import pytest

from rebootd.core.wire import Answer, PermitAnswer, Report
from tests.e2e.fleet import Blow, Fleet
from tests.e2e.relay import BreakOff

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


async def held_together(fleet: Fleet, since: int, reboots: dict[str, int] | None = None) -> None:
    """What must hold after any story; ``reboots`` by machine, if not one each."""
    expected = reboots if reboots is not None else dict.fromkeys(fleet.names, 1)
    machines = fleet.supervisor.machines.values()
    assert {m.name: (m.boots, m.asked) for m in machines} == {name: (n, n) for name, n in expected.items()}
    assert fleet.ledger.reboots() == {name: n for name, n in expected.items() if n}
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


@pytest.mark.parametrize("moment", [pytest.param("before", marks=pytest.mark.slow), "after"])
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


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_leader_is_killed_at_every_commit_off_the_way(dev_consul: Agent, tmp_path: Path, moment: str) -> None:
    async with Fleet(dev_consul, tmp_path, racks=1, machines=2) as fleet:
        kept, failing = fleet.names
        await fleet.supervisor.start()
        await fleet.all_in_service()
        fleet.blows = [
            Blow(moment, kept, "in-service", "draining"),
            Blow(moment, kept, "draining", "drained|held"),
            Blow(moment, kept, "drained", "held"),
        ]
        await fleet.ask("PUT", f"/v1/holds/machine/{kept}", reason="new disk", by="test")
        await fleet.reach(kept, "held")
        fleet.blows = [Blow(moment, kept, "held", "enabling"), Blow(moment, kept, "enabling", "in-service")]
        await fleet.release(kept)
        await fleet.reach(kept, "in-service")
        assert fleet.blows == []
        since = len(fleet.ledger.records)
        # Checks that fail are asked for again after a minute; this story wants its quarantine now.
        await fleet.apply_policy("failures: {retry: {checks: 0}}\n")
        hook = fleet.supervisor.machines[failing].folder / "hooks" / "post-boot.d" / "10-disk"
        hook.parent.mkdir()
        hook.write_text("#!/bin/sh\nsleep 0.3\nexit 1\n", encoding="ascii")
        hook.chmod(0o755)
        fleet.blows = [
            Blow(moment, failing, "rebooting", "verifying"),
            Blow(moment, failing, "verifying", "quarantined"),
        ]
        await fleet.start_cycle("k", failure_budget=5)
        await fleet.reach(failing, "quarantined")
        hook.unlink()
        fleet.blows += [
            Blow(moment, failing, "quarantined", "verifying|enabling"),
            Blow(moment, failing, "enabling", "in-service"),
        ]
        await fleet.clear(failing)
        await fleet.all_in_service()
        await fleet.cycle_done("k")
        assert fleet.blows == []
        await held_together(fleet, since)


@pytest.mark.slow
async def test_leader_is_killed_around_unplanned_boots(dev_consul: Agent, tmp_path: Path) -> None:
    async with Fleet(dev_consul, tmp_path) as fleet:
        await fleet.supervisor.start()
        await fleet.all_in_service()
        fleet.blows = [
            Blow(moment, name, frm, to)
            for name, moment in zip(fleet.names, ("before", "after"), strict=True)
            for frm, to in (("in-service", BACK), ("enabling", "in-service"))
        ]
        for machine in fleet.supervisor.machines.values():
            machine.reboot.set()

        async def received() -> bool:
            return not fleet.blows and set((await fleet.states()).values()) == {"in-service"}

        await fleet.until(received, "both boots to be received")
        assert [(m.boots, m.asked) for m in fleet.supervisor.machines.values()] == [(1, 0), (1, 0)]
        assert fleet.ledger.reboots() == {}
        unplanned = [e.machine for e in await fleet.events() if e.cause == "unplanned boot"]
        assert sorted(unplanned) == fleet.names


class AgentBlow(NamedTuple):
    """When the agent is killed: ``untold`` before it hears of a directive, ``done`` before it says that it was carried
    out, ``said`` before it hears the answer to that; for a permit ``asked``, ``granted`` (it never hears of it) and
    ``holding`` (it has it since ``delay`` seconds).
    """

    moment: str
    kind: str
    delay: float = 0.0


EVERY_DIRECTIVE = [
    *(AgentBlow("untold", "drain"), AgentBlow("done", "drain"), AgentBlow("said", "drain")),
    *(AgentBlow("untold", "reboot"), AgentBlow("asked", "permit"), AgentBlow("granted", "permit")),
    AgentBlow("holding", "permit"),
    *(AgentBlow("untold", "enable"), AgentBlow("done", "enable"), AgentBlow("said", "enable")),
]


class Assassin:
    """Kills agents at their appointed moments; ``plan`` holds what is still to be done."""

    def __init__(self, fleet: Fleet, plan: dict[str, list[AgentBlow]], *, leader_too: bool = False) -> None:
        self.fleet = fleet
        self.plan = plan
        self.leader_too = leader_too
        fleet.on_ask, fleet.on_tell = self.ask, self.tell

    async def ask(self, name: str, what: str, body: bytes) -> None:
        if what == "permit":
            self.strike(name, "asked", "permit")
        else:
            result = msgspec.json.decode(body, type=Report).result
            if result is not None:
                self.strike(name, "done", result.kind.value)

    async def tell(self, name: str, what: str, body: bytes, answer: bytes) -> None:
        if what == "permit":
            if msgspec.json.decode(answer, type=PermitAnswer).granted:
                self.strike(name, "granted", "permit")
                self.strike(name, "holding", "permit")
            return
        result = msgspec.json.decode(body, type=Report).result
        if result is not None:
            self.strike(name, "said", result.kind.value)
        directive = msgspec.json.decode(answer, type=Answer).directive
        if directive is not None:
            self.strike(name, "untold", directive.kind.value)

    def strike(self, name: str, moment: str, kind: str) -> None:
        blow = next((b for b in self.plan.get(name, []) if (b.moment, b.kind) == (moment, kind)), None)
        if blow is None:
            return
        self.plan[name].remove(blow)
        if moment == "holding":
            asyncio.get_running_loop().call_later(blow.delay, self.fleet.kill_agent, name)
            return
        self.fleet.kill_agent(name)
        if self.leader_too:
            self.fleet.kill_leader()
        raise BreakOff


@pytest.mark.slow
async def test_agent_is_killed_at_every_directive(dev_consul: Agent, tmp_path: Path) -> None:
    async with Fleet(dev_consul, tmp_path, daemons=1, machines=2) as fleet:
        first, *others = fleet.names
        await fleet.supervisor.start()
        await fleet.all_in_service()
        since = len(fleet.ledger.records)
        plan = {first: list(EVERY_DIRECTIVE)}
        for name, delay in zip(others, (0.005, 0.02, 0.06), strict=True):
            plan[name] = [AgentBlow("holding", "permit", delay)]
        Assassin(fleet, plan)
        await fleet.start_cycle("k")
        await fleet.cycle_done("k")
        assert not any(plan.values()), plan
        await held_together(fleet, since)


@pytest.mark.slow
async def test_leader_and_agent_are_killed_together(dev_consul: Agent, tmp_path: Path) -> None:
    async with Fleet(dev_consul, tmp_path) as fleet:
        await fleet.supervisor.start()
        await fleet.all_in_service()
        since = len(fleet.ledger.records)
        plan = {name: list(EVERY_DIRECTIVE) for name in fleet.names}
        Assassin(fleet, plan, leader_too=True)
        await fleet.start_cycle("k")
        await fleet.cycle_done("k", timeout=115)
        assert not any(plan.values()), plan
        await held_together(fleet, since)

"""Interrupted plans: a small fleet's cycle, cut after each single commit, must end well under a new leader."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebootd.consul.leadership import Tuning
from rebootd.store.port import Set
from tests.sim.plan import Plan
from tests.sim.run import run_world
from tests.sim.world import World

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rebootd.store.port import Op
    from tests.sim.run import Outcome

CUTS = ("killed-before", "killed-after", "answer-lost", "late", "frozen", "session-lost")
"""What happens to the leader at the commit: it dies before or after it lands, it hears nothing, it hears too late..."""


def small_plan() -> Plan:
    """Two racks of two machines, two daemons, one cycle, no fault."""
    racks = {"r1": ["m1a", "m1b"], "r2": ["m2a", "m2b"]}
    return Plan(
        seed=7,
        profile="quiet",
        racks=racks,
        labels={name: {"role": "web"} for names in racks.values() for name in names},
        daemons=["ctl1", "ctl2"],
        policy="racks:\n  open: 1\n  unavailable: 1\nsettle: 20s\n",
        faults_for=400.0,
        failure_budget=0,
        boot_seconds=(3.0, 8.0),
        tick=2.0,
        tuning=Tuning(proof_every=1.0, proof_timeout=0.7, deadline=4.0),
    )


def run_cut(number: int, how: str) -> tuple[Outcome, bool]:
    """The small plan, cut at its ``number``-th commit that moves a machine; whether there was such a commit."""
    world = World(small_plan())
    passed = 0
    cut = False

    def ambush(actor: str, ops: Sequence[Op]) -> str | None:
        nonlocal passed, cut
        if not any(isinstance(op, Set) and op.key.startswith("rebootd/machines/") for op in ops):
            return None
        passed += 1
        if passed != number:
            return None
        cut = True
        return _spring(world, actor, how)

    world.servers.ambushes.append(ambush)
    outcome = run_world(world, faults=[(0, None)])
    return outcome, cut


def _spring(world: World, actor: str, how: str) -> str:
    daemon = world.daemons[actor]
    process = daemon.process
    assert process is not None
    world.say(f"CUT {how} at {actor}")
    match how:
        case "killed-before":
            process.kill()
            return "refused"
        case "killed-after":
            process.kill()
        case "answer-lost":
            return "lost"
        case "late":
            return "late"
        case "frozen":
            daemon.stop()
            world.loop.after(60.0, daemon.go_on)
        case "session-lost":
            world.consul.destroy_session(world.consul.entries["rebootd/leader"].session)
    return ""

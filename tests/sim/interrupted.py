"""Interrupted plans: a small fleet's cycle, cut after each single commit, must end well under a new leader."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rebootd.consul.leadership import Tuning
from rebootd.store.port import Set
from tests.sim.features import Features
from tests.sim.plan import Fault, Plan
from tests.sim.run import run_world
from tests.sim.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rebootd.store.port import Op
    from tests.sim.run import Outcome

CUTTABLE = ("rebootd/machines/", "rebootd/power/", "rebootd/cycles/")
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


def _plan(policy: str, **facts: Any) -> Plan:
    plan = small_plan()
    plan.policy = f"settle: 20s\n{policy}\n"
    for name, value in facts.items():
        setattr(plan, name, value)
    return plan


POWER = "failures: {power: {address: 'https://{name}.bmc.test', after: 5s}}\ndeadlines: {rebooting: 1m, verifying: 1m}"
QUICK = "deadlines: {draining: 40s, drained: 40s, rebooting: 40s, verifying: 40s, enabling: 40s}"
PLANS: dict[str, Callable[[], Plan]] = {
    "plain": small_plan,
    "power": lambda: _plan(
        f"{POWER}\nunreachable_after: 40s",
        features=Features(power=True),
        failure_budget=100,
        faults=[Fault(21.0, "stuck", "m1a")],
    ),
    "waves": lambda: _plan(
        "waves: [{size: 1, soak: 20s}, {size: 2, soak: 10s}, {size: 100%}]\nracks: {order: [r2, r1]}"
    ),
    "standing": lambda: _plan(
        "standing: {enabled: true, every: 1h}",
        features=Features(standing=True),
        required={"m1a", "m1b", "m2a", "m2b"},
        cycle_at=1e9,
    ),
    "emergency": lambda: _plan(
        "windows: {required: true, calendar: [{name: later, start: '0 0 1 1 *', duration: 1h}]}",
        faults=[Fault(25.0, "emergency")],
    ),
    "gates": lambda: _plan(
        "gates: [{name: prometheus, kind: prometheus, address: 'http://p:9090', query: errors, holds_when: < 5}]\n"
        "quorums: [{name: trio, selector: 'name in (m1a, m1b, m2a)'}]",
        features=Features(sight=True, gates=("prometheus",), quorums=True),
    ),
    "holds": lambda: _plan(
        "racks: {unavailable: 2}",
        boot_seconds=(20.0, 25.0),
        faults=[
            Fault(14.0, "hold", "m2b", 60.0),
            Fault(15.0, "ambush-hold", "drained"),
            Fault(20.5, "hold", "m1a", 12.0),
            Fault(30.0, "power-cut", "m2b"),
            Fault(35.0, "ambush-hold", "verifying"),
        ],
    ),
    "failures": lambda: _plan(
        f"{QUICK}\nracks: {{unavailable: 2}}",
        failure_budget=100,
        faults=[
            Fault(19.0, "post-boot-fails", "m2a", 300.0),
            Fault(20.003, "hook-fails", "m1a", 120.0),
            Fault(20.004, "stop-agent", "m1b", 60.0),
        ],
    ),
    "stuck": lambda: _plan(
        QUICK,
        failure_budget=100,
        faults=[
            Fault(19.0, "stuck", "m1b"),
            Fault(20.6, "raw-halt", "", 80.0),
            Fault(120.0, "hook-fails", "m2a", 20.0),
        ],
    ),
    "crashes": lambda: _plan(
        "soak: 10s",
        failure_budget=100,
        hook_seconds=10.0,
        faults=[Fault(20.5 + 13.0 * i, "power-cut", "out") for i in range(8)],
    ),
    "returns": lambda: _plan(
        "gates: [{name: prometheus, kind: prometheus, address: 'http://p:9090', query: errors, holds_when: < 5}]",
        features=Features(sight=True, gates=("prometheus",)),
        failure_budget=100,
        faults=[
            Fault(20.5, "gate-blocks", "prometheus", 20.0),
            Fault(60.001, "hook-fails", "m2a", 60.0),
            Fault(100.0, "ambush-gate", "draining"),
        ],
    ),
    "by-hand": lambda: _plan(
        "soak: 20s",
        failure_budget=100,
        hook_seconds=10.0,
        faults=[
            Fault(14.0, "hold", "m2b", 60.0),
            *(Fault(21.0 + 7.0 * i, "by-hand", "out") for i in range(9)),
            Fault(40.0, "by-hand", "m2b"),
            Fault(100.0, "post-boot-fails", "m2a", 100.0),
        ],
    ),
    "clients": lambda: _plan(
        "fleetlock: {enabled: true, wish: 2m}",
        features=Features(sight=True),
        lock_clients={"m1a": "m1a", "m2b": "0123456789abcdef0123456789abcdef"},
        staged=[(60.0, "m1a"), (60.0, "m2b")],
        faults_for=500.0,
    ),
    "undone": lambda: _plan(
        "failures: {retry: {after: 10s}}\ndeadlines: {rebooting: 3m, verifying: 3m}\nracks: {unavailable: 2}",
        failure_budget=100,
        reboot_timeout=30.0,
        faults=[
            Fault(19.002, "hook-fails", "m1a", 40.0),
            Fault(19.0, "post-boot-fails", "m1b", 150.0),
            Fault(19.001, "hook-fails", "m2a", 150.0),
            Fault(19.0, "no-reboot", "m2b", 300.0),
        ],
    ),
    "asleep": lambda: _plan(
        f"{QUICK}\nracks: {{unavailable: 2}}",
        failure_budget=100,
        hook_seconds=5.0,
        faults=[
            Fault(19.0, "ambush-stop-agent", "drained", 300.0, 60.0),
            Fault(19.0, "ambush-stop-agent", "enabling", 300.0, 60.0),
            Fault(19.0, "ambush-by-hand", "quarantined", 300.0, 30.0),
            Fault(19.0, "ambush-crash", "draining", 300.0, 0.5),
            Fault(150.0, "bad-journal", "m2a"),
        ],
    ),
    "taken-by-hand": lambda: _plan(
        "soak: 20s",
        failure_budget=100,
        hook_seconds=10.0,
        faults=[
            Fault(19.0, "no-reboot", "m1b", 120.0),
            Fault(19.0, "no-reboot", "m2a", 300.0),
            *(Fault(19.0, "ambush-by-hand", state, 300.0, 0.5) for state in ("drained", "verifying", "enabling")),
            Fault(60.0, "ambush-by-hand", "rebooting", 300.0, 1.0),
        ],
    ),
}
"""Small plans, which have every transition of the state table between them (test_transitions). None of their machines
reboots more than once; a FleetLock client does so once more at the end, when every client is given another update.
"""
FOUR = 4
"""Machines of a small plan."""
ALL_REBOOT = dict.fromkeys(("plain", "power", "waves", "standing", "emergency", "gates", "returns"), FOUR) | {
    "clients": FOUR + 2
}
"""Those in which each machine reboots once (each FleetLock client twice), wherever they are cut, and how many reboots
these are. A cycle does not wait for who is held or quarantined, and needs no reboot of who has crashed meanwhile.
"""


def run_whole(world: World) -> Outcome:
    """The world of a small plan, with the faults of the plan."""
    return run_world(world, faults=[(0, None), *enumerate(world.plan.faults, 1)])


def run_cut(number: int, how: str, plan: str = "plain") -> tuple[Outcome, bool]:
    """A small plan, cut at its ``number``-th commit that moves a machine, a power cycle or a cycle; whether there was
    such a commit.
    """
    world = World(PLANS[plan]())
    passed = 0
    cut = False

    def ambush(actor: str, ops: Sequence[Op]) -> str | None:
        nonlocal passed, cut
        if not any(isinstance(op, Set) and op.key.startswith(CUTTABLE) for op in ops):
            return None
        passed += 1
        if passed != number:
            return None
        cut = True
        return _spring(world, actor, how)

    world.servers.ambushes.append(ambush)
    return run_whole(world), cut


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

"""What people, others and accidents do to the simulation, one function each; ``disturb`` does some of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from rebootd.core.advance import ENDED
from rebootd.core.amounts import Amount
from rebootd.core.model import Aside, Cycle, Halt, Hold, OpenWindow, RackLock, State
from rebootd.core.operations import clear_quarantine, halt, unhalt
from rebootd.core.operations_cycles import LEGAL, move_cycle
from rebootd.core.operations_inputs import Because
from rebootd.core.policy import Deadlines, Limit, Policy
from rebootd.core.policy_waves import Expected
from rebootd.core.selectors import parse_selector
from tests.core.worlds import OTHER

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.core.simulation import Simulation

BECAUSE = Because(by="alice", reason="the simulation")
DEADLINES = Deadlines(draining=60, drained=60, rebooting=90, verifying=60, enabling=60)
BRISK = Expected(drain=6, prepare=4, reboot=20, verify=4, enable=6)
GENTLE = Policy(deadlines=DEADLINES, settle=20, unreachable_after=45, expected=BRISK)
DB, WEB, ALL = (parse_selector(text) for text in ("role=db", "role=web", "*"))
POLICIES = (
    GENTLE,
    replace(GENTLE, open_racks=2, rack_unavailable=Amount(2)),
    replace(GENTLE, rack_unavailable=Amount(50, True), limits=(Limit("db", DB, Amount(1)),)),
    replace(GENTLE, window_required=True, soak=90),
    replace(GENTLE, open_racks=2, limits=(Limit("all", ALL, Amount(25, True)), Limit("web", WEB, Amount(2)))),
    replace(GENTLE, open_racks=3, rack_unavailable=Amount(3), limits=(Limit("db", DB, Amount(0)),)),
    replace(GENTLE, rack_unavailable=Amount(0)),
)


# --- operators ---------------------------------------------------------------------------


def holds(sim: Simulation) -> None:
    name = sim.rng.choice(list(sim.hosts))
    sim.machine_holds[name] = Hold(kind="machine", name=name, since=sim.now, by="alice", reason="disk")


def holds_a_rack(sim: Simulation) -> None:
    rack = sim.rng.choice(["r1", "r2", "r3"])
    sim.rack_holds[rack] = Hold(kind="rack", name=rack, since=sim.now, by="bob")


def releases(sim: Simulation) -> None:
    for held in (sim.machine_holds, sim.rack_holds):
        if held:
            del held[sim.rng.choice(list(held))]


def halts(sim: Simulation) -> None:
    assert halt(sim.snapshot(), BECAUSE).writes
    sim.halt = Halt(reason="drill", since=sim.now)


def unhalts(sim: Simulation) -> None:
    if sim.halt is not None:
        assert unhalt(sim.snapshot(), BECAUSE).writes
        sim.halt = None


def moves_a_cycle(sim: Simulation) -> None:
    alive = [c for c in sim.cycles.values() if c.state not in ENDED]
    if alive:
        cycle = sim.rng.choice(alive)
        verb = sim.rng.choice(["pause", "resume", "resume", "resume", "cancel"])
        if cycle.state in LEGAL[verb][0] and not (cycle.standing and verb == "cancel"):
            asked = move_cycle(sim.snapshot(), verb, cycle.id, BECAUSE)
            sim.take_over(asked)


def starts_a_cycle(sim: Simulation) -> None:
    if len([c for c in sim.cycles.values() if c.state not in ENDED]) < 3:
        cycle_id = f"k{len(sim.cycles)}"
        selector = sim.rng.choice(["*", "*", "role=db", "rack in (r1,r2)"])
        target = sim.rng.choice(["", "", "kernel=6.12"])
        budget = sim.rng.choice([0, 2, 20, 20])
        sim.cycles[cycle_id] = Cycle(
            id=cycle_id, selector=selector, target=target, created=sim.now, failure_budget=budget
        )


def opens_a_window(sim: Simulation) -> None:
    start = sim.now + sim.rng.uniform(-5, 60)
    sim.windows["w"] = OpenWindow(id="w", start=start, end=start + sim.rng.uniform(20, 400))


def closes_windows(sim: Simulation) -> None:
    sim.windows.clear()


def changes_the_policy(sim: Simulation) -> None:
    sim.policy = sim.rng.choice(POLICIES)


def clears_a_quarantine(sim: Simulation) -> None:
    away = [m.name for m in sim.machines.values() if m.state is State.QUARANTINED]
    if away:
        sim.take_over(clear_quarantine(sim.snapshot(), sim.rng.choice(away), BECAUSE))


# --- others ------------------------------------------------------------------------------


def locks_a_rack(sim: Simulation) -> None:
    rack = sim.rng.choice(["r1", "r2", "r3", "r9"])
    if sim.racks.get(rack, RackLock()).holder == "free":
        sim.racks[rack] = OTHER


def unlocks_racks(sim: Simulation) -> None:
    sim.racks = {rack: lock for rack, lock in sim.racks.items() if lock is not OTHER}


def ends_our_session(sim: Simulation) -> None:
    for rack, lock in list(sim.racks.items()):
        if lock is not OTHER:
            del sim.racks[rack]


def spoils_a_record(sim: Simulation) -> None:
    if sim.machines and len(sim.asides) < 2:
        name = sim.rng.choice(list(sim.machines))
        record = sim.machines.pop(name)
        sim.set_aside[name] = record
        sim.asides[name] = Aside(name=name, rack=record.rack, error="invalid JSON", since=sim.now)


def mends_records(sim: Simulation) -> None:
    sim.machines |= sim.set_aside
    sim.set_aside, sim.asides = {}, {}


def claims_a_name(sim: Simulation) -> None:
    host = sim.rng.choice(list(sim.hosts.values()))
    clone = replace(host.report(sim), machine_id="id-of-a-clone", boot_id=f"{host.name}-clone", in_service=True)
    if sim.rng.random() < 0.5:
        sim.called(clone)
    else:
        # It called when there was no record yet that could tell the two apart.
        sim.late.append(clone)


def settles_conflicts(sim: Simulation) -> None:
    sim.conflicts.clear()


# --- accidents ---------------------------------------------------------------------------


def crashes(sim: Simulation) -> None:
    host = sim.rng.choice(list(sim.hosts.values()))
    host.down(sim.time + sim.rng.uniform(1, 40))


def power_is_lost(sim: Simulation) -> None:
    if sim.rng.random() < 0.1:
        for host in sim.hosts.values():
            host.down(sim.time + sim.rng.uniform(5, 30))


def disappears(sim: Simulation) -> None:
    if sim.rng.random() < 0.3:
        sim.rng.choice(list(sim.hosts.values())).agent = False


def appears(sim: Simulation) -> None:
    for host in sim.hosts.values():
        host.agent = host.up


def is_enabled_by_hand(sim: Simulation) -> None:
    out = [sim.hosts[m.name] for m in sim.machines.values() if m.state is not State.IN_SERVICE]
    sim.rng.choice(out or list(sim.hosts.values())).enabled_by_hand()


def loses_a_journal(sim: Simulation) -> None:
    permitted = [sim.hosts[m.name] for m in sim.machines.values() if m.permit is not None]
    sim.rng.choice(permitted or list(sim.hosts.values())).loses_journal()


def lies(sim: Simulation) -> None:
    sim.rng.choice(list(sim.hosts.values())).lies(sim)


def leader_changes(sim: Simulation) -> None:
    sim.offset = sim.rng.choice([0.0, 0.0, 2.0, -3.0, 45.0])
    sim.leads_anew()


def clock_jumps(sim: Simulation) -> None:
    sim.offset = sim.rng.choice([0.0, 0.0, 0.0, -200.0, 90.0])


def store_stumbles(sim: Simulation) -> None:
    sim.faults = ("control/ cannot be watched: no answer",)


def store_recovers(sim: Simulation) -> None:
    sim.faults = ()


RARE: tuple[Callable[[Simulation], None], ...] = (
    holds, holds_a_rack, halts, closes_windows, changes_the_policy, locks_a_rack, ends_our_session, spoils_a_record,
    claims_a_name, power_is_lost, disappears, is_enabled_by_hand, loses_a_journal, leader_changes, clock_jumps,
    store_stumbles, lies, crashes,
)  # fmt: skip
OFTEN: tuple[Callable[[Simulation], None], ...] = (
    releases, unhalts, moves_a_cycle, starts_a_cycle, opens_a_window, clears_a_quarantine, unlocks_racks,
    mends_records, settles_conflicts, appears, store_recovers,
)  # fmt: skip


def begin(sim: Simulation) -> None:
    """A fleet that has come into service; from now on everything may go wrong, and there is a cycle."""
    for _ in range(6):
        sim.round(3)
    sim.faulty = True
    starts_a_cycle(sim)


def disturb(sim: Simulation) -> None:
    """Some of it: things are put right about as often as they go wrong."""
    if sim.rng.random() < 0.15:
        sim.rng.choice(RARE)(sim)
    for _ in range(2):
        if sim.rng.random() < 0.3:
            sim.rng.choice(OFTEN)(sim)

"""What operators are shown of machines, cycles and the fleet: snapshots and decisions turned into shapes. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rebootd.api import shapes
from rebootd.api.views_places import racks, windows
from rebootd.core.advance import ENDED, at_target, selected
from rebootd.core.breakers import Breakers
from rebootd.core.counts import Counts
from rebootd.core.errors import InvalidInput
from rebootd.core.failures import power_loss
from rebootd.core.gates import overdue
from rebootd.core.limits import Capacity, unheard
from rebootd.core.model import CycleState, State
from rebootd.core.operations import known_racks, need_machine, need_rack
from rebootd.core.operations_cycles import need_cycle, progress
from rebootd.core.power import spent
from rebootd.core.selectors import parse_selector
from rebootd.core.standing import wants
from rebootd.core.unreadable import awaited
from rebootd.core.walk import limit_of

if TYPE_CHECKING:
    from rebootd.core.decision import Decision
    from rebootd.core.model import Blocker, Cycle, Machine, Snapshot

UNREADABLE = "unreadable"
SHOWN_ENDED = 3
"""Ended cycles that ``status`` still shows."""


def _seen(snapshot: Snapshot, name: str) -> float | None:
    record = snapshot.machines.get(name)
    if record is not None and record.fleetlock is not None:
        # What is observed of it is what the leader says in its place.
        return record.fleetlock.called or None
    observation = snapshot.observed.get(name)
    return observation.at if observation is not None else None


def machine_row(snapshot: Snapshot, decision: Decision, machine: Machine) -> shapes.MachineRow:
    """One line of the list."""
    blockers = decision.reasons.get(machine.name, ())
    return shapes.MachineRow(
        name=machine.name,
        rack=machine.rack,
        state=machine.state.value,
        since=machine.since,
        cycle=machine.cycle,
        kernel=machine.kernel,
        labels=machine.labels,
        reboot_required=machine.reboot_required.value,
        seen=_seen(snapshot, machine.name),
        held=machine.name in snapshot.machine_holds or machine.rack in snapshot.rack_holds,
        waiting=blockers[0].what if blockers else "",
    )


def machines(
    snapshot: Snapshot, decision: Decision, *, state: str = "", rack: str = "", selector: str = ""
) -> shapes.Machines:
    """The list. Raises InvalidInput for a state or selector that does not exist, NotFound for a rack."""
    states = [s.value for s in State] + [UNREADABLE]
    if state and state not in states:
        raise InvalidInput("state", state, f"one of {', '.join(states)}")
    if rack and known_racks(snapshot):
        need_rack(snapshot, rack)
    chosen = parse_selector(selector) if selector else None
    rows = [
        machine_row(snapshot, decision, m)
        for m in snapshot.machines.values()
        if (not state or m.state.value == state)
        and (not rack or m.rack == rack)
        and (chosen is None or chosen.matches(m))
    ]
    if chosen is None and state in {"", UNREADABLE}:
        rows += [
            shapes.MachineRow(
                name=a.name, rack=a.rack, state=UNREADABLE, since=a.since, seen=_seen(snapshot, a.name), waiting=a.error
            )
            for a in snapshot.asides.values()
            if not rack or a.rack == rack
        ]
    rows.sort(key=lambda r: (r.rack, r.name))
    known = len(snapshot.machines) + len(snapshot.asides)
    return shapes.Machines(now=snapshot.now, known=known, machines=tuple(rows))


def machine(snapshot: Snapshot, decision: Decision, name: str) -> shapes.MachineShow:
    """One machine. Raises NotFound."""
    record = _record(snapshot, decision, name)
    observation = snapshot.observed.get(name)
    problem = snapshot.asides[name].error if name in snapshot.asides else snapshot.conflicts.get(name, "")
    hold = snapshot.machine_holds.get(name) or snapshot.rack_holds.get(record.rack if record else "")
    return shapes.MachineShow(
        now=snapshot.now,
        name=name,
        record=record,
        report=observation.report if observation and (record is None or record.fleetlock is None) else None,
        seen=_seen(snapshot, name),
        hold=hold,
        blockers=tuple(decision.reasons.get(name, ())),
        problem=problem,
    )


def explanation(snapshot: Snapshot, decision: Decision, name: str) -> shapes.Explanation:
    """Why the machine is where it is, and what it waits for. Raises NotFound."""
    record = _record(snapshot, decision, name)
    seen = _seen(snapshot, name)
    age = max(0.0, snapshot.now - seen) if seen is not None else None
    blockers = tuple(decision.reasons.get(name, ()))
    if record is None:
        aside = snapshot.asides.get(name)
        return shapes.Explanation(
            now=snapshot.now,
            machine=name,
            state=UNREADABLE if aside else "unknown",
            since=aside.since if aside else snapshot.now,
            rack=aside.rack if aside else "",
            report_age=age,
            blockers=blockers,
            says=_says(snapshot, record, blockers),
        )
    limit = limit_of(snapshot.policy, record)
    return shapes.Explanation(
        now=snapshot.now,
        machine=name,
        state=record.state.value,
        since=record.since,
        rack=record.rack,
        cycle=record.cycle,
        cause=record.cause,
        report_age=age,
        reboot_required=record.reboot_required.value,
        reboot_reasons=record.reboot_reasons,
        blockers=blockers,
        says=_says(snapshot, record, blockers),
        deadline=max(record.since, snapshot.leading_since) + limit if limit is not None else None,
        flag=record.flag,
        wanted=_wanted(snapshot, record),
    )


def _wanted(snapshot: Snapshot, machine: Machine) -> tuple[str, ...]:
    """The cycles that have the machine before them, oldest first."""
    if machine.state is not State.IN_SERVICE:
        return ()
    cycles = sorted((c for c in snapshot.cycles.values() if c.state not in ENDED), key=lambda c: (c.created, c.id))
    policy, now = snapshot.policy, snapshot.now
    return tuple(c.id for c in cycles if (wants(policy, c, now)(machine) if c.standing else _before_it(c, machine)))


def _before_it(cycle: Cycle, machine: Machine) -> bool:
    return cycle.id not in machine.outcomes and selected(cycle, machine) and not at_target(cycle, machine)


def _says(snapshot: Snapshot, record: Machine | None, blockers: tuple[Blocker, ...]) -> str:
    """What there is to say of a machine that waits for nothing."""
    if blockers:
        return ""
    if record is None:
        return "it has no record yet"
    if record.state is not State.IN_SERVICE:
        return "nothing blocks it: it goes on at the leader's next tick"
    if unheard(snapshot, record.name):
        return "nothing wants it out; its agent does not call, so it counts as unavailable"
    return "nothing wants it out: nobody holds it, and no cycle waits for it"


def _record(snapshot: Snapshot, decision: Decision, name: str) -> Machine | None:
    """The record, or None for one that cannot be read or that is only reported yet. Raises NotFound."""
    record = snapshot.machines.get(name)
    if record is None and name not in decision.reasons:
        need_machine(snapshot, name)
    return record


def cycle_view(snapshot: Snapshot, cycle: Cycle) -> shapes.CycleView:
    """A cycle and its counts. An ended one is not counted again: it has its totals."""
    if cycle.totals:
        totals = {k: v for k, v in cycle.totals.items() if k in Counts.__struct_fields__}
        return shapes.CycleView(cycle=cycle, counts=Counts(**totals))
    counts, by_rack = progress(cycle, snapshot.machines.values())
    return shapes.CycleView(cycle=cycle, counts=counts, racks=by_rack)


def cycles(snapshot: Snapshot) -> shapes.Cycles:
    """All cycles, newest first."""
    ordered = sorted(snapshot.cycles.values(), key=lambda c: (-c.created, c.id))
    return shapes.Cycles(now=snapshot.now, cycles=tuple(cycle_view(snapshot, c) for c in ordered))


def cycle(snapshot: Snapshot, decision: Decision, cycle_id: str) -> shapes.CycleShow:
    """One cycle with its machines and why they wait. Raises NotFound."""
    record = need_cycle(snapshot, cycle_id)
    counts, by_rack = progress(record, snapshot.machines.values())
    out: dict[str, str] = {}
    failed: dict[str, str] = {}
    skipped: dict[str, str] = {}
    waiting: Counter[Blocker] = Counter()
    chosen = parse_selector(record.selector)
    for m in snapshot.machines.values():
        outcome = m.outcomes.get(cycle_id, "")
        if outcome.startswith("failed"):
            failed[m.name] = outcome
        elif outcome.startswith("skipped"):
            skipped[m.name] = outcome
        elif not outcome and m.cycle == cycle_id and m.state is not State.IN_SERVICE:
            out[m.name] = m.state.value
        if not outcome and record.state not in ENDED and m.name in decision.reasons and chosen.matches(m):
            waiting.update(decision.reasons[m.name])
    for name, aside in snapshot.asides.items():
        if record.state not in ENDED and awaited(record, aside):
            out[name] = "unreadable"
            waiting.update(decision.reasons.get(name, ()))
    return shapes.CycleShow(
        now=snapshot.now,
        cycle=record,
        counts=counts,
        racks=dict(sorted(by_rack.items())),
        machines=dict(sorted(out.items())),
        failed=dict(sorted(failed.items())),
        skipped=dict(sorted(skipped.items())),
        blockers=tuple(shapes.Reason(b, n) for b, n in waiting.most_common(12)),
    )


def quarantine(snapshot: Snapshot) -> shapes.Quarantine:
    """All quarantined machines, those that wait longest first."""
    rows = [
        shapes.QuarantineRow(
            name=m.name,
            rack=m.rack,
            since=m.since,
            cause=m.cause,
            cycle=m.cycle,
            evidence=m.evidence,
            seen=_seen(snapshot, m.name),
        )
        for m in snapshot.machines.values()
        if m.state is State.QUARANTINED
    ]
    return shapes.Quarantine(now=snapshot.now, machines=tuple(sorted(rows, key=lambda r: (r.since, r.name))))


def holds(snapshot: Snapshot) -> shapes.Holds:
    """All holds, racks' first."""
    every = [
        *sorted(snapshot.rack_holds.values(), key=lambda h: h.name),
        *sorted(snapshot.machine_holds.values(), key=lambda h: h.name),
    ]
    return shapes.Holds(now=snapshot.now, holds=tuple(every))


def alarms(snapshot: Snapshot) -> tuple[shapes.Alarm, ...]:
    """What a person must look at, the gravest first."""
    out = [shapes.Alarm(kind="store", what=what, since=snapshot.now) for what in (*snapshot.faults, *snapshot.alarms)]
    out += [shapes.Alarm(kind="conflict", what=what, machine=name) for name, what in sorted(snapshot.conflicts.items())]
    out += [
        shapes.Alarm(kind="aside", what=f"record cannot be read: {a.error}", since=a.since, machine=a.name)
        for a in sorted(snapshot.asides.values(), key=lambda a: a.name)
    ]
    if abs(snapshot.clock_skew) > snapshot.policy.clock_tolerance:
        what = f"the leader's clock is {snapshot.clock_skew:+.0f} s off its agents' median; windows count as closed"
        out.append(shapes.Alarm(kind="clock", what=what))
    out += [
        shapes.Alarm(kind="gate", what=f"gate {name} keeps machines in for longer than its max_block", since=shut)
        for name, shut in overdue(snapshot).items()
    ]
    out += [
        shapes.Alarm(kind="cycle", what=f"cycle {c.id} is halted: {c.why}", since=c.changed)
        for c in snapshot.cycles.values()
        if c.state is CycleState.HALTED
    ]
    out += _failures(snapshot)
    out += [
        shapes.Alarm(kind="quarantine", what=row.cause, since=row.since, machine=row.name)
        for row in quarantine(snapshot).machines
    ]
    return tuple(out)


def _failures(snapshot: Snapshot) -> list[shapes.Alarm]:
    """Breakers that are open, caps that are reached, reboots that changed nothing, and a power loss."""
    out = [shapes.Alarm(kind="breaker", what=b.blocker.what, since=b.since) for b in Breakers(snapshot).open]
    rule, count = snapshot.policy.failures.power, spent(snapshot)
    if rule.address and count >= rule.per_hour:
        what = f"{count} power cycles in the last hour, at most {rule.per_hour} are allowed: no more are made"
        out.append(shapes.Alarm(kind="power", what=what))
    lost = power_loss(snapshot)
    if lost:
        what = f"{lost} machines boot unplanned together: a power loss, nobody is quarantined for flapping"
        out.append(shapes.Alarm(kind="power-loss", what=what))
    flagged = [m for m in snapshot.machines.values() if m.flag]
    return out + [shapes.Alarm(kind="flag", what=m.flag, since=m.since, machine=m.name) for m in flagged]


def status(snapshot: Snapshot, daemon: dict[str, object]) -> shapes.Status:
    """The fleet on one screen."""
    states = Counter(m.state.value for m in snapshot.machines.values())
    if snapshot.asides:
        states[UNREADABLE] = len(snapshot.asides)
    active = sorted((c for c in snapshot.cycles.values() if c.state not in ENDED), key=lambda c: (c.created, c.id))
    ended = sorted((c for c in snapshot.cycles.values() if c.state in ENDED), key=lambda c: -c.changed)[:SHOWN_ENDED]
    all_racks = racks(snapshot, Capacity(snapshot))
    plain = {k: v if isinstance(v, (str, int, float, bool)) or v is None else str(v) for k, v in daemon.items()}
    return shapes.Status(
        now=snapshot.now,
        daemon=plain,
        epoch=snapshot.epoch,
        leading_since=snapshot.leading_since,
        halt=snapshot.halt,
        windows=windows(snapshot),
        machines={s.value: states[s.value] for s in State if states[s.value]}
        | ({UNREADABLE: states[UNREADABLE]} if states[UNREADABLE] else {}),
        known=len(snapshot.machines) + len(snapshot.asides),
        unheard=sum(1 for name in snapshot.machines if unheard(snapshot, name)),
        racks=tuple(r for r in all_racks.racks if r.open),
        open_racks=snapshot.policy.open_racks,
        holds=len(snapshot.machine_holds) + len(snapshot.rack_holds),
        cycles=tuple(cycle_view(snapshot, c) for c in (*active, *ended)),
        alarms=alarms(snapshot),
    )

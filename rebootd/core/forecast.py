"""The forecast: which machine goes when, in how many windows, when a cycle ends, and who can never go and why.

It runs the deciding rules forward over expected durations (see :mod:`rebootd.core.forecast_course`) on a snapshot that
it may call its own, and changes nothing. :func:`forecast` is a generator, so that a leader can do other things between
its slices; its result is what it returns.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from msgspec.structs import replace

from rebootd.core.advance import ENDED, at_target, selected
from rebootd.core.durations import ALL, Durations
from rebootd.core.explain import explain
from rebootd.core.forecast_course import Course
from rebootd.core.forecast_told import Basis, Estimate, Forecast, Never, PastError, Planned
from rebootd.core.gates import Word
from rebootd.core.model import Blocker, Cycle, CycleState, Machine, Observation, State
from rebootd.core.policy_drains import Drains
from rebootd.core.policy_waves import PHASES
from rebootd.core.settle import settle
from rebootd.core.states import WORKING
from rebootd.core.unreadable import set_aside
from rebootd.core.view import View
from rebootd.core.wire import Report, Tri
from rebootd.core.wishes import Wishes

if TYPE_CHECKING:
    from collections.abc import Generator

    from rebootd.core.model import Snapshot

_WAITED = WORKING | {State.IN_SERVICE}
REESTIMATES = 8
"""How many later estimates of a cycle are written into its record."""
SHORTEST = 60.0
"""Seconds between two of them at least."""
STAYS = (
    "gates, holds, halts, locks of others and failures stay as they are",
    "every machine takes as long as expected, and none fails",
)


def past_errors(snapshot: Snapshot, most: int = 10) -> tuple[PastError, ...]:
    """The errors of the estimates of cycles that came to their end, newest first."""
    done = [
        c for c in snapshot.cycles.values() if c.state is CycleState.DONE and c.estimated and c.estimated > c.created
    ]
    done.sort(key=lambda c: -c.changed)
    out = []
    for cycle in done[:most]:
        made = ((cycle.estimated_at, cycle.estimated), *cycle.reestimated)
        for number, (at, end) in enumerate(made):
            late = cycle.changed - end
            length = max(1.0, cycle.changed - at)
            out.append(PastError(cycle.id, round(late, 1), round(late / length, 3), number))
    return tuple(out)


def estimate_due(cycle: Cycle, now: float) -> bool:
    """Whether an estimate of the cycle's end should be written down: the first, or the next when half is over."""
    if cycle.state is not CycleState.RUNNING or cycle.standing or len(cycle.reestimated) >= REESTIMATES:
        return False
    at, end = cycle.reestimated[-1] if cycle.reestimated else (cycle.estimated_at, cycle.estimated)
    return not cycle.estimated or now - at >= max(SHORTEST, (end - at) / 2)


def with_estimate(cycle: Cycle, estimate: Estimate) -> Cycle:
    """The cycle with an estimate that is due; the same one if it tells of no end."""
    if estimate.last is None:
        return cycle
    if not cycle.estimated:
        return replace(cycle, estimated=estimate.last, estimated_at=estimate.at)
    return replace(cycle, reestimated=(*cycle.reestimated, (estimate.at, estimate.last)))


def prepared(
    snapshot: Snapshot, cycle_id: str = ""
) -> tuple[Snapshot, dict[str, tuple[Blocker, ...]], tuple[str, ...]]:
    """The snapshot as a forecast needs it, machines that gates keep in, and what is assumed besides ``STAYS``.

    Agents that have called go on calling. What shows a cycle's target now counts as skipped, since what a reboot will
    change cannot be known. A cycle that is asked for runs, even if it is paused or halted now.
    """
    assumes: list[str] = []
    # A phase takes as long as it does with Nomad's part in it; what Nomad says now would never change here.
    machines = {name: m if m.nomad is None else replace(m, nomad=None) for name, m in snapshot.machines.items()}
    cycles = dict(snapshot.cycles)
    asked = cycles.get(cycle_id)
    if asked is not None and asked.state in {CycleState.PAUSED, CycleState.HALTED}:
        assumes.append(f"cycle {cycle_id}, which is {asked.state.value}, is resumed now")
        failed = sum(m.outcomes.get(cycle_id, "").startswith("failed") for m in machines.values())
        cycles[cycle_id] = replace(asked, state=CycleState.RUNNING, failure_budget=max(asked.failure_budget, failed))
    for cycle in [c for c in cycles.values() if c.target and c.state not in ENDED]:
        for name, m in machines.items():
            if m.cycle != cycle.id and cycle.id not in m.outcomes and selected(cycle, m) and at_target(cycle, m):
                machines[name] = replace(m, outcomes={**m.outcomes, cycle.id: "skipped: at target"})
        cycles[cycle.id] = replace(cycle, target="")
    gated = _gated(snapshot)
    plain = replace(
        snapshot,
        policy=replace(snapshot.policy, gates=(), drains=Drains()),
        machines=machines,
        cycles=cycles,
        observed=_heard(snapshot),
        asking={},
        readings={},
        gate_since={},
        # It goes last whoever leads; that leadership is handed over first takes no time worth a forecast.
        successors=frozenset(),
    )
    return plain, gated, tuple(assumes)


def _heard(snapshot: Snapshot) -> dict[str, Observation]:
    """Who has called goes on calling; who has not called a leader that has just begun will."""
    now, patience = snapshot.now, snapshot.policy.unreachable_after
    heard = {
        name: Observation(seen.report, inf, seen.enabled_at) if now - seen.at <= patience else seen
        for name, seen in snapshot.observed.items()
    }
    if now - snapshot.leading_since < snapshot.policy.settle:
        for m in snapshot.machines.values():
            if m.name not in heard:
                report = Report(name=m.name, machine_id=m.machine_id, boot_id=m.boot_id, labels=m.labels)
                heard[m.name] = Observation(report, inf)
    return heard


def _gated(snapshot: Snapshot) -> dict[str, tuple[Blocker, ...]]:
    """Machines that gates keep in for more than a moment.

    A gate that only waits for its next reading, or that covers a machine which is out just now, is taken to pass.
    """
    if not snapshot.policy.gates:
        return {}
    working = [m for m in snapshot.machines.values() if m.state in WORKING]
    emergencies = [c for c in snapshot.cycles.values() if c.emergency and c.state not in ENDED]
    out: dict[str, tuple[Blocker, ...]] = {}
    for gate in View(snapshot).safeguards.gates:
        if gate.open_to_all or any(gate.covers(m) for m in working):
            continue
        skipping = [c for c in emergencies if gate.gate.name in c.skip_gates]
        for m in snapshot.machines.values():
            if not gate.covers(m) or any(selected(c, m) for c in skipping):
                continue
            verdict, blocker = gate.verdict(m), gate.blocker(m)
            if verdict.word is not Word.PASS and not verdict.renewing and blocker is not None:
                out[m.name] = (*out.get(m.name, ()), blocker)
    return out


def forecast(snapshot: Snapshot, cycle_id: str = "") -> Generator[float, None, Forecast]:
    """The forecast of one cycle of the snapshot, or of all together (``""``). Yields now and then.

    All cycles take part whichever is asked for, since they share racks, limits and windows.
    """
    plain, gated, assumes = prepared(snapshot, cycle_id)
    course = Course(plain, frozenset(gated))
    yield from course.run()
    view = course.view
    waves = {
        (cycle.id, name): number + 1
        for cycle in view.cycles
        if (plan := view.pace.plans.get(cycle.id)) is not None
        for name, number in plan.index.items()
    }
    planned = sorted(
        (
            Planned(name, course.machines[name].rack, t.cycle, t.start, t.back, waves.get((t.cycle, name), 0))
            for name, t in course.trips.items()
            if t.back is not None and t.cycle and (not cycle_id or t.cycle == cycle_id)
        ),
        key=lambda p: (p.start, p.machine),
    )
    never = _never(course, plain, cycle_id, gated)
    asked = plain.cycles.get(cycle_id)
    cycles = {
        c.id: _estimate(c, snapshot.now, planned, never, course.machines)
        for c in plain.cycles.values()
        if c.state not in ENDED and (not cycle_id or c.id == cycle_id)
    }
    return Forecast(
        now=snapshot.now,
        cycle=cycle_id,
        selector=asked.selector if asked is not None else "",
        done=sum(m.outcomes.get(cycle_id, "") != "" for m in snapshot.machines.values()) if cycle_id else 0,
        planned=tuple(planned),
        never=never,
        windows=len(course.started - {0.0}),
        last=max((p.back for p in planned), default=None),
        ends=cycles[cycle_id].ends if cycle_id in cycles else None,
        assumes=(*STAYS, *assumes),
        basis=basis(snapshot),
        errors=past_errors(snapshot),
        cycles=cycles,
    )


def _estimate(
    cycle: Cycle, now: float, planned: list[Planned], never: tuple[Never, ...], machines: dict[str, Machine]
) -> Estimate:
    backs = [p.back for p in planned if p.cycle == cycle.id]
    left = [n for n in never if n.cycle == cycle.id]
    last = max(backs, default=None)
    # Held and quarantined machines, and those without a rack, are not waited for.
    kept = any(n.rack and n.machine in machines and machines[n.machine].state in _WAITED for n in left)
    ends = None if kept or cycle.standing or cycle.state is not CycleState.RUNNING else last or now
    return Estimate(at=now, to_go=len(backs), never=len(left), last=last, ends=ends)


def basis(snapshot: Snapshot) -> tuple[Basis, ...]:
    """What phases are expected to take over all machines together."""
    durations = snapshot.durations or Durations()
    out = []
    for phase in PHASES:
        seconds = durations.expected(phase, (), snapshot.policy)
        mean = durations.phases.get(phase, {}).get(ALL)
        out.append(Basis(phase=phase, seconds=round(seconds, 1)))
        if mean is not None:
            out[-1] = Basis(phase=phase, seconds=round(seconds, 1), samples=mean.count, spread=mean.spread)
    return tuple(out)


def _never(course: Course, plain: Snapshot, cycle_id: str, gated: dict[str, tuple[Blocker, ...]]) -> tuple[Never, ...]:
    """Who is left when nothing moves any more, with everything that was in the way the last time windows were open."""
    machines = course.machines
    view = View(replace(course.view.snapshot, now=course.rested, policy=plain.policy))
    wanting = Wishes(view).gathered(())
    left = {
        m.name: cycle.id
        for wishes in wanting.wishes.values()
        for m, cycle, _ in wishes
        if cycle is not None and (not cycle_id or cycle.id == cycle_id)
    }
    told = explain(view, wanting) if left else {}
    out = [Never(n, machines[n].rack, c, _both(told.get(n, ()), gated.get(n, ()))) for n, c in left.items()]
    cycles = [c for c in plain.cycles.values() if c.state not in ENDED and (not cycle_id or c.id == cycle_id)]
    for m in machines.values():
        if m.state is State.IN_SERVICE:
            continue
        cycle = next((c for c in cycles if _left_out(c, m)), None)
        if cycle is not None:
            out.append(Never(m.name, m.rack, cycle.id, settle(view, m, plain.observed.get(m.name)).blockers))
    out += [
        Never(
            a.name,
            a.rack,
            cycle_id,
            (set_aside(a, ()),),
        )
        for a in plain.asides.values()
        if cycles
    ]
    return tuple(sorted(out, key=lambda n: (n.rack, n.machine)))


def _both(told: tuple[Blocker, ...], gated: tuple[Blocker, ...]) -> tuple[Blocker, ...]:
    """Both; that nothing else blocks a machine is no reason any more once a gate does."""
    return (*(b for b in told if b.kind != "next" or not gated), *gated)


def _left_out(cycle: Cycle, machine: Machine) -> bool:
    """Whether the cycle wants a machine that is out of service and did not come back."""
    if cycle.standing:
        return machine.reboot_required is Tri.YES and selected(cycle, machine)
    return cycle.id not in machine.outcomes and selected(cycle, machine)


def run(snapshot: Snapshot, cycle_id: str = "") -> Forecast:
    """The whole forecast at once."""
    course = forecast(snapshot, cycle_id)
    while True:
        try:
            next(course)
        except StopIteration as stop:
            result: Forecast = stop.value
            return result

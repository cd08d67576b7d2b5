"""Who may go out of service next, and for everyone else every reason why not (S1, S2, S7, S8)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from rebootd.core.advance import advance, at_target, selected
from rebootd.core.decision import Guard, Lane, MachineStep
from rebootd.core.limits import Tally, unheard
from rebootd.core.model import Blocker, Cycle, CycleState, State
from rebootd.core.permits import open_racks
from rebootd.core.selectors import parse_selector
from rebootd.core.settle import held_by
from rebootd.core.states import Happening

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rebootd.core.model import Hold, Machine
    from rebootd.core.view import View

CYCLE_GUARDS = frozenset(Guard)
HOLD_GUARDS = frozenset({Guard.NO_HALT, Guard.POLICY_UNCHANGED, Guard.RACK_LOCKED})


class Admission:
    """What :func:`admit` found."""

    def __init__(self) -> None:
        self.steps: list[MachineStep] = []
        self.reasons: dict[str, tuple[Blocker, ...]] = {}
        self.wanted: set[str] = set()
        """Racks in which somebody still waits to go and nothing but capacity is in the way."""


def admit(view: View, settled: frozenset[str]) -> Admission:
    """Chooses the machines that go out now; ``settled`` already have a step in this decision.

    Racks that are open go on before another is opened; racks and machines go by name, the leader's
    own machine last in its rack.
    """
    out = Admission()
    wanting = _wanting(view, settled)
    ordered = sorted(wanting, key=lambda rack: (rack not in view.capacity.open, rack))
    for rack in ordered:
        _admit_rack(view, rack, wanting[rack], out)
    taken = {step.name for step in out.steps}
    _explain(view, wanting, taken, out)
    return out


Wish = tuple["Machine", "Cycle | None", "Hold | None"]


def _wanting(view: View, settled: frozenset[str]) -> dict[str, list[Wish]]:
    """Machines in service that a hold or a cycle wants out, by rack."""
    snapshot = view.snapshot
    wanting: dict[str, list[Wish]] = {}
    compiled = [
        (c, parse_selector(c.selector).matches, parse_selector(c.target, "target").matches if c.target else None)
        for c in view.cycles
    ]
    machine_holds, rack_holds = snapshot.machine_holds, snapshot.rack_holds
    in_service = State.IN_SERVICE
    for rack, members in view.capacity.members.items():
        here: list[Wish] = []
        for m in members:
            if m.state is not in_service or m.name in settled:
                continue
            hold = machine_holds.get(m.name) or rack_holds.get(rack)
            if hold is not None:
                here.append((m, None, hold))
                continue
            outcomes = m.outcomes
            paused: Cycle | None = None
            for cycle, matches, reached in compiled:
                if cycle.id in outcomes or not matches(m) or (reached is not None and reached(m)):
                    continue
                if view.runs(cycle):
                    here.append((m, cycle, None))
                    break
                paused = paused or cycle
            else:
                if paused is not None:
                    here.append((m, paused, None))
        if here:
            wanting[rack] = here
    return wanting


def _admit_rack(view: View, rack: str, wishes: list[Wish], out: Admission) -> None:
    if view.stops or not rack:
        return
    for_cycles = not view.closed
    runnable = [w for w in wishes if w[2] is not None or (for_cycles and w[1] is not None and view.runs(w[1]))]
    if not runnable or _rack_blockers(view, rack):
        return
    out.wanted.add(rack)
    capacity = view.capacity
    tally = capacity.racks[rack]
    if not _may_open(view, rack):
        return
    lock = view.snapshot.racks.get(rack)
    ours = lock is not None and lock.holder == "ours"
    own = view.snapshot.leader_node
    runnable.sort(key=lambda w: (w[0].name == own, w[0].name))
    for m, cycle, hold in runnable:
        if tally.full:
            return
        if _own(view, m) or any(t.full for t in capacity.limits_of(m)):
            continue
        cause = f"cycle {cycle.id}" if cycle else "hold"
        after, event = advance(
            m,
            Happening.TAKE_OUT,
            now=view.now,
            epoch=view.epoch,
            cause=cause,
            detail=hold.reason if hold else "",
            cycle=cycle.id if cycle else "",
            booted=False,
            planned=False,
            evidence="",
        )
        guards = HOLD_GUARDS if hold else CYCLE_GUARDS
        out.steps.append(
            MachineStep(
                name=m.name,
                before=m,
                after=after,
                events=(event,),
                lane=Lane.OUT,
                guards=guards if ours else guards - {Guard.RACK_LOCKED},
                lock="" if ours else rack,
            )
        )
        capacity.add(m)
        if not ours:
            # The lock lands with the first machine; the others of its rack go once it is held.
            return


def _may_open(view: View, rack: str) -> bool:
    opened = view.capacity.open
    return len(opened) + (rack not in opened) <= view.snapshot.policy.open_racks


def _rack_blockers(view: View, rack: str) -> tuple[Blocker, ...]:
    """What keeps every machine of the rack in, apart from capacity."""
    snapshot = view.snapshot
    out = []
    lock = snapshot.racks.get(rack)
    if lock is not None and lock.holder == "other":
        on = f" on node {lock.node}" if lock.node else ""
        out.append(
            Blocker(
                kind="rack-lock",
                what=f"rack {rack} is locked by session {lock.session}{on}",
                since=0.0,
                clears="whoever holds that lock",
            )
        )
    waited = view.now - snapshot.leading_since
    if waited < snapshot.policy.settle:
        silent = [m.name for m in view.capacity.members[rack] if m.name not in snapshot.observed]
        if silent:
            named = ", ".join(silent[:5]) + (f" and {len(silent) - 5} more" if len(silent) > 5 else "")
            out.append(
                Blocker(
                    kind="settle",
                    what=f"the new leader waits for the first call of {named}, or until {snapshot.policy.settle:.0f} s "
                    "after its election",
                    since=snapshot.leading_since,
                    clears="the agents, or time",
                )
            )
    return tuple(out)


def _own(view: View, m: Machine) -> tuple[Blocker, ...]:
    """What keeps this one machine in."""
    snapshot = view.snapshot
    conflict = snapshot.conflicts.get(m.name)
    if conflict is not None:
        return (
            Blocker(kind="conflict", what=conflict, since=view.now, clears=f"an operator: rebootctl forget {m.name}"),
        )
    if not unheard(snapshot, m.name):
        return ()
    seen = snapshot.observed.get(m.name)
    return (
        Blocker(
            kind="unseen",
            what="its agent has not called " + ("for too long" if seen else "since this leader began"),
            since=seen.at if seen else snapshot.leading_since,
            clears="the machine's agent",
        ),
    )


def _explain(view: View, wanting: dict[str, list[Wish]], taken: set[str], out: Admission) -> None:
    """Every blocker of every machine that stays, computed once per rack and combination."""
    snapshot = view.snapshot
    common: tuple[Blocker, ...] = view.stops
    many = len(view.capacity.open) >= snapshot.policy.open_racks
    opened = open_racks(view) if many else None
    observed, conflicts, now = snapshot.observed, snapshot.conflicts, view.now
    patience = snapshot.policy.unreachable_after
    limits = [(s.matches, t, _limit(t)) for s, t in view.capacity.limits if t.full]
    cycle_stops = {c.id: view.cycle_stop(c.id) for c in view.cycles}
    nothing = Blocker(
        kind="next", what="it is next: nothing blocks it", since=now, clears="the leader, at its next tick"
    )
    for rack, wishes in wanting.items():
        if not rack:
            rackless = Blocker(
                kind="no-rack",
                what="its rack is unknown, so nobody can tell what goes down with it",
                since=0.0,
                clears="whoever sets `rack` in its Consul node meta",
            )
            base: tuple[Blocker, ...] = (*common, rackless)
        else:
            tally = view.capacity.racks[rack]
            base = (
                *common,
                *_rack_blockers(view, rack),
                *((opened,) if opened is not None and rack not in view.capacity.open else ()),
                *((_limit(tally),) if tally.full else ()),
            )
        for_cycle = (*base, *view.closed)
        shared: dict[tuple[str, int], tuple[Blocker, ...]] = {}
        reasons = out.reasons
        for m, cycle, hold in wishes:
            name = m.name
            if name in taken:
                continue
            mask = 0
            bit = 1
            for matches, _tally, _blocker in limits:
                if matches(m):
                    mask |= bit
                bit <<= 1
            key = ("" if hold else cycle.id if cycle else "", mask)
            blockers = shared.get(key)
            if blockers is None:
                stop = cycle_stops.get(key[0])
                blockers = (
                    *(base if hold else for_cycle),
                    *((stop,) if stop else ()),
                    *(b for i, (_, _, b) in enumerate(limits) if mask >> i & 1),
                )
                shared[key] = blockers = blockers or (nothing,)
            seen = observed.get(name)
            if seen is None or now - seen.at > patience or name in conflicts:
                own = _own(view, m)
                blockers = own if blockers == (nothing,) else (*blockers, *own)
            reasons[name] = blockers
    for rack, members in view.capacity.members.items():
        hold = snapshot.rack_holds.get(rack)
        for m in members if hold else ():
            if m.state is State.IN_SERVICE and m.name not in out.reasons and m.name not in taken and hold:
                out.reasons[m.name] = (held_by("rack", rack, hold.reason, hold.by, hold.since),)


def _limit(tally: Tally) -> Blocker:
    never = " (the policy says never)" if tally.maximum == 0 else ""
    return Blocker(
        kind="limit",
        what=f"{tally.sentence()}{never}",
        since=tally.oldest,
        clears="machines coming back, or an operator: rebootctl policy apply" if never else "machines coming back",
    )


def finished(cycle: Cycle, machines: Iterable[Machine]) -> dict[str, int] | None:
    """The totals of a cycle for which nothing is left to do, or None while something is.

    Held, quarantined and rackless machines are not waited for: they need a person, and every cycle
    must end (L1).
    """
    totals = {"selected": 0, "rebooted": 0, "failed": 0, "skipped": 0}
    for m in machines:
        outcome = m.outcomes.get(cycle.id, "")
        if m.cycle == cycle.id and m.state not in {State.IN_SERVICE, State.HELD, State.QUARANTINED}:
            return None
        if not outcome and not selected(cycle, m):
            continue
        totals["selected"] += 1
        word = outcome.partition(":")[0]
        if not word:
            if m.rack and m.state not in {State.HELD, State.QUARANTINED} and not at_target(cycle, m):
                return None
            word = "skipped"
        totals[word] = totals.get(word, 0) + 1
    return totals


def changed(view: View, cycle: Cycle, state: CycleState, why: str, totals: dict[str, int] | None = None) -> Cycle:
    """The cycle's next record."""
    return replace(
        cycle,
        state=state,
        why=why,
        changed=view.now,
        epoch=view.epoch,
        version=cycle.version + 1,
        totals=cycle.totals if totals is None else totals,
    )

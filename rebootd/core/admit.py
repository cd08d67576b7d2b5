"""Who may go out of service next, and for everyone else every reason why not (S1, S2, S7, S8)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from rebootd.core.advance import advance, at_target
from rebootd.core.blockers import may_open, rack_blockers
from rebootd.core.decision import Guard, Lane, MachineStep
from rebootd.core.emergency import emergency_note
from rebootd.core.explain import explain
from rebootd.core.failures import held_back, needs_person
from rebootd.core.fleetlock import unasked
from rebootd.core.model import Blocker, Cycle, CycleState, State
from rebootd.core.own import own_blockers
from rebootd.core.own_host import hands_over
from rebootd.core.policy_reboot import method_for
from rebootd.core.selectors import parse_selector
from rebootd.core.states import WORKING, Happening
from rebootd.core.wishes import Wish, Wishes, machine_order, rack_order

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebootd.core.policy import Policy
    from rebootd.core.roll import Roll
    from rebootd.core.view import View

CYCLE_GUARDS = frozenset(Guard)
HOLD_GUARDS = frozenset({Guard.NO_HALT, Guard.POLICY_UNCHANGED, Guard.RACK_LOCKED})


class Admission:
    """What :func:`admit` found."""

    def __init__(self) -> None:
        self.steps: list[MachineStep] = []
        self.reasons: dict[str, tuple[Blocker, ...]] = {}
        self.wanted: set[str] = set()
        """Open racks in which somebody still waits to go and nothing but capacity is in the way."""
        self.others = False
        """Whether a machine goes, or waits for capacity alone, that is in no quorum group."""
        self.renewing: set[str] = set()
        """Racks in which somebody goes as soon as a gate has been read again, which is under way."""
        self.hand_over = ""
        """The leader's own host, if it would go now: another daemon is to lead first."""


def admit(view: View, settled: frozenset[str]) -> Admission:
    """Chooses the machines that go out now; ``settled`` already have a step in this decision.

    Racks that are open go on before another is opened; for the order of racks and machines see
    :mod:`rebootd.core.wishes`.
    """
    wanting = Wishes(view).gathered(settled)
    out = choose(view, wanting.wishes, wanting.samples)
    out.reasons = explain(view, wanting, {step.name for step in out.steps}, others=out.others)
    return out


def choose(view: View, wanting: dict[str, list[Wish]], samples: Callable[[str], list[Wish]] | None = None) -> Admission:
    """The machines of ``wanting`` that go out now; members of quorum groups once no other could go, and alone.

    ``samples`` are the wishes that the place of a rack depends on, where they are fewer than all.
    """
    out = Admission()
    last = view.pace.last
    open_to = frozenset(c.id for c in view.cycles if view.runs(c) and not view.closed_for(c.id))
    opened = view.capacity.open
    full = len(opened) >= view.snapshot.policy.open_racks and not last
    # No other rack could be opened, so there is no need to ask who goes first.
    racks = [r for r in wanting if r in opened] if full else wanting
    ordered = rack_order(view, racks, samples or wanting.__getitem__)
    for rack in ordered:
        _admit_rack(view, rack, wanting[rack], open_to, out)
    if last and not out.others and not out.steps:
        out.others = any(
            (m := view.snapshot.machines.get(name)) is not None and m.cycle and m.state in WORKING
            for name in view.capacity.lost
        )
    for rack in ordered if last and not out.others else ():
        _admit_rack(view, rack, wanting[rack], open_to, out, members=True)
        if out.steps:
            break
    return out


def _admit_rack(
    view: View, rack: str, wishes: list[Wish], open_to: frozenset[str], out: Admission, *, members: bool = False
) -> None:
    if view.stops or not rack or rack_blockers(view, rack):
        return
    pace, before = view.pace, len(out.steps)
    runnable = [w for w in wishes if w[2] is not None or (w[1] is not None and w[1].id in open_to)]
    if pace.any:
        runnable = [w for w in runnable if not pace.blockers(w[0], w[1])]
    if pace.last:
        runnable = [w for w in runnable if w[1] is None or (w[0].name in pace.last) is members]
    if not runnable:
        return
    out.wanted.add(rack)
    if may_open(view, rack) and not view.capacity.racks[rack].full:
        _take_from(view, rack, runnable, out, alone=members)
    if pace.last and not members:
        out.others = out.others or len(out.steps) > before or any(_could(view, w) for w in runnable)


def _could(view: View, wish: Wish) -> bool:
    """Whether nothing but capacity that will be free again keeps this machine in."""
    m, cycle, _ = wish
    tallies = (view.capacity.racks[m.rack], *view.capacity.limits_of(m))
    skip = view.skips(cycle.id) if cycle is not None else frozenset()
    kept = view.safeguards.shuts(m, skip) or own_blockers(view, m) or held_back(view, m, cycle)
    return not kept and all(t.maximum > 0 for t in tallies)


def _take_from(view: View, rack: str, runnable: list[Wish], out: Admission, *, alone: bool) -> None:
    """Takes out as many machines of one rack as capacity allows; one if it goes ``alone``."""
    capacity = view.capacity
    tally = capacity.racks[rack]
    lock = view.snapshot.racks.get(rack)
    ours = lock is not None and lock.holder == "ours"
    safe = view.safeguards
    shut, mask_of = capacity.full_limits(), capacity.mask_of
    if shut:
        runnable = [w for w in runnable if not mask_of(w[0]) & shut]
    if not view.ordered:
        runnable = sorted(runnable, key=machine_order(view))
    for m, cycle, hold in runnable:
        if tally.full:
            return
        if mask_of(m) & shut or own_blockers(view, m) or held_back(view, m, cycle):
            continue
        skip = view.skips(cycle.id) if cycle is not None else frozenset()
        if safe.any and safe.blockers(m, skip):
            if safe.renewing(m, skip):
                out.renewing.add(rack)
            continue
        if hands_over(view.snapshot, m):
            out.hand_over = m.name
            continue
        cause = f"cycle {cycle.id}" if cycle else "hold"
        after, event = advance(
            m,
            Happening.TAKE_OUT,
            now=view.now,
            epoch=view.epoch,
            cause=cause,
            detail=hold.reason if hold else emergency_note(cycle),
            cycle=cycle.id if cycle else "",
            method=method_for(view.snapshot.policy, cycle, m),
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
        shut = capacity.full_limits()
        safe.left(m)
        if alone or not ours:
            # The lock lands with the first machine; the others of its rack go once it is held.
            return


def finished(cycle: Cycle, roll: Roll, policy: Policy) -> dict[str, int] | None:
    """The totals of a cycle for which nothing is left to do, or None while something is.

    Held, quarantined and rackless machines, and those that a reboot would not help, are not waited for: they
    need a person, and every cycle must end (L1). Nor are those whose FleetLock clients do not ask for a reboot.
    """
    if cycle.standing:
        return None
    matches = parse_selector(cycle.selector).matches
    totals = {"selected": 0, "rebooted": 0, "failed": 0, "skipped": 0}
    for m, count in roll.samples():
        outcome = m.outcomes.get(cycle.id, "")
        if m.cycle == cycle.id and m.state in WORKING:
            return None
        if not outcome and not matches(m):
            continue
        totals["selected"] += count
        word = outcome.partition(":")[0]
        if not word:
            stuck = not m.rack or m.state in {State.HELD, State.QUARANTINED} or needs_person(m, policy) or unasked(m)
            if not stuck and not at_target(cycle, m):
                return None
            word = "skipped"
        totals[word] = totals.get(word, 0) + count
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

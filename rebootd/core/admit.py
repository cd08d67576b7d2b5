"""Who may go out of service next, and for everyone else every reason why not (S1, S2, S7, S8)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from rebootd.core.advance import advance, at_target, selected
from rebootd.core.decision import Guard, Lane, MachineStep
from rebootd.core.emergency import emergency_note
from rebootd.core.failures import held_back, needs_person
from rebootd.core.model import Blocker, Cycle, CycleState, State
from rebootd.core.own import no_rack, own_blockers
from rebootd.core.pace import goes_last
from rebootd.core.permits import open_racks
from rebootd.core.policy_reboot import method_for
from rebootd.core.settle import held_by
from rebootd.core.states import WORKING, Happening
from rebootd.core.wishes import Wish, Wishes, machine_order, rack_order

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rebootd.core.limits import Tally
    from rebootd.core.model import Machine, RackLock
    from rebootd.core.policy import Policy
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


def admit(view: View, settled: frozenset[str]) -> Admission:
    """Chooses the machines that go out now; ``settled`` already have a step in this decision.

    Racks that are open go on before another is opened; for the order of racks and machines see
    :mod:`rebootd.core.wishes`.
    """
    wanting = Wishes(view).by_rack(settled)
    out = choose(view, wanting)
    taken = {step.name for step in out.steps}
    _explain(view, wanting, taken, out)
    return out


def choose(view: View, wanting: dict[str, list[Wish]]) -> Admission:
    """The machines of ``wanting`` that go out now; members of quorum groups once no other could go, and alone."""
    out = Admission()
    last = view.pace.last
    open_to = frozenset(c.id for c in view.cycles if view.runs(c) and not view.closed_for(c.id))
    opened = view.capacity.open
    full = len(opened) >= view.snapshot.policy.open_racks and not last
    # No other rack could be opened, so there is no need to ask who goes first.
    ordered = rack_order(view, [r for r in wanting if r in opened] if full else wanting, wanting)
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
    if view.stops or not rack or _rack_blockers(view, rack):
        return
    pace, before = view.pace, len(out.steps)

    def runnable() -> Iterator[Wish]:
        for wish in wishes:
            m, cycle, hold = wish
            if hold is None and (cycle is None or cycle.id not in open_to):
                continue
            if (pace.any and pace.blockers(m, cycle)) or (pace.last and cycle and (m.name in pace.last) is not members):
                continue
            yield wish

    if next(runnable(), None) is None:
        return
    out.wanted.add(rack)
    if _may_open(view, rack):
        _take_from(view, rack, list(runnable()), out, alone=members)
    if pace.last and not members:
        out.others = out.others or len(out.steps) > before or any(_could(view, w) for w in runnable())


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
        runnable.sort(key=machine_order(view))
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


def _may_open(view: View, rack: str) -> bool:
    opened = view.capacity.open
    return len(opened) + (rack not in opened) <= view.snapshot.policy.open_racks


def _rack_blockers(view: View, rack: str) -> tuple[Blocker, ...]:
    """What keeps every machine of the rack in, apart from capacity."""
    snapshot = view.snapshot
    out = []
    lock = snapshot.racks.get(rack)
    if lock is not None and lock.holder == "other":
        out.append(locked_by_others(rack, lock))
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


def locked_by_others(rack: str, lock: RackLock) -> Blocker:
    """The blocker that somebody else's lock is."""
    on = f" on node {lock.node}" if lock.node else ""
    what, clears = f"rack {rack} is locked by session {lock.session}{on}", "whoever holds that lock"
    if lock.record_error:
        what += f"; it may be ours, but our record of that rack cannot be read: {lock.record_error}"
        clears += f"; if nobody uses it, an operator: consul kv delete {lock.record_key}, and end that session"
    return Blocker(kind="rack-lock", what=what, since=lock.since, clears=clears)


def waiting(view: View, wanting: dict[str, list[Wish]]) -> dict[str, tuple[Blocker, ...]]:
    """Every blocker of every machine of ``wanting``, as if nobody went."""
    out = Admission()
    _explain(view, wanting, set(), out)
    return out.reasons


def _explain(view: View, wanting: dict[str, list[Wish]], taken: set[str], out: Admission) -> None:
    """Every blocker of every machine that stays, computed once per rack and combination."""
    snapshot = view.snapshot
    common: tuple[Blocker, ...] = view.stops
    many = len(view.capacity.open) >= snapshot.policy.open_racks
    opened = open_racks(view) if many else None
    observed, conflicts, now = snapshot.observed, snapshot.conflicts, view.now
    patience = snapshot.policy.unreachable_after
    failing, tripped = snapshot.failing, view.breakers.touches if view.breakers.open else None
    safe, nomad = view.safeguards, snapshot.policy.drains.nomad
    marked = safe.any
    limits = [_limit(t) for _, t in view.capacity.limits]
    shut, mask_of = view.capacity.full_limits(), view.capacity.mask_of
    late = {c: plan.late for c, plan in view.pace.plans.items() if plan.late}
    cycle_stops = {c.id: view.cycle_stop(c.id) for c in view.cycles}
    nothing = Blocker(
        kind="next", what="it is next: nothing blocks it", since=now, clears="the leader, at its next tick"
    )
    paced = _Paced(view, out.others, nothing)
    for rack, wishes in wanting.items():
        if not rack:
            base: tuple[Blocker, ...] = common
        else:
            tally = view.capacity.racks[rack]
            base = (
                *common,
                *_rack_blockers(view, rack),
                *((opened,) if opened is not None and not _may_open(view, rack) else ()),
                *((_limit(tally),) if tally.full else ()),
            )
        shared: dict[tuple[str, int, tuple[object, ...], int], tuple[Blocker, ...]] = {}
        reasons = out.reasons
        for m, cycle, hold in wishes:
            name = m.name
            if name in taken:
                continue
            mask = mask_of(m) & shut if shut else 0
            # Its wave is told by its blocker's id: that lives as long as the plan.
            wave = late.get(cycle.id, {}).get(name) if late and cycle is not None else None
            key = ("" if hold else cycle.id if cycle else "", mask, safe.mark(m) if marked else (), id(wave))
            blockers = shared.get(key)
            if blockers is None:
                stop = cycle_stops.get(key[0])
                blockers = (
                    *(base if hold else (*base, *view.closed_for(key[0]))),
                    *((stop,) if stop else ()),
                    *(b for i, b in enumerate(limits) if mask >> i & 1),
                    *(safe.blockers(m, view.skips(key[0])) if marked else ()),
                    *((wave,) if wave is not None else ()),
                )
                shared[key] = blockers = blockers or (nothing,)
            if paced.any:
                blockers = paced.joined(blockers, m, cycle)
            if not rack:
                blockers = (*(b for b in blockers if b is not nothing), no_rack(m))
            seen = observed.get(name)
            odd = m.turned_back or m.flag or m.retry is not None or name in conflicts or name in failing
            odd = odd or (nomad is not None and nomad.machines.matches(m)) or m.nomad is not None
            if odd or (tripped and tripped(m)) or seen is None or now - seen.at > patience:
                own = (*own_blockers(view, m), *held_back(view, m, cycle))
                if not own:
                    reasons[name] = blockers
                    continue
                blockers = own if blockers == (nothing,) else (*blockers, *own)
            reasons[name] = blockers
    _held_racks(view, taken, out)


def _held_racks(view: View, taken: set[str], out: Admission) -> None:
    """Machines of held racks that nothing else was said of."""
    for rack, hold in view.snapshot.rack_holds.items():
        for m in view.capacity.members.get(rack, ()):
            if m.state is State.IN_SERVICE and m.name not in out.reasons and m.name not in taken:
                out.reasons[m.name] = (held_by("rack", rack, hold.reason, hold.by, hold.since),)


class _Paced:
    """Adds what windows that are too short are to machines, and their place at the end; equal tuples are shared."""

    def __init__(self, view: View, others: bool, nothing: Blocker) -> None:
        self._pace, self._others, self._nothing = view.pace, others, (nothing,)
        self.any = others or view.pace.fit.tight
        self._known: dict[tuple[int, ...], tuple[tuple[Blocker, ...], ...]] = {}

    def joined(self, blockers: tuple[Blocker, ...], m: Machine, cycle: Cycle | None) -> tuple[Blocker, ...]:
        """``blockers`` and these."""
        slow = self._pace.fits(m, cycle)
        if self._others and cycle is not None and m.name in self._pace.last:
            slow = (*slow, goes_last(cycle.id, cycle.created))
        if not slow:
            return blockers
        key = (id(blockers), *map(id, slow))
        kept = self._known.get(key)
        if kept is None:
            # The parts are kept as well: an id names an object only as long as it lives.
            both = slow if blockers == self._nothing else (*blockers, *slow)
            kept = self._known[key] = (both, blockers, slow)
        return kept[0]


def _limit(tally: Tally) -> Blocker:
    never = " (the policy says never)" if tally.maximum == 0 else ""
    return Blocker(
        kind="limit",
        what=f"{tally.sentence()}{never}",
        since=tally.oldest,
        clears="machines coming back, or an operator: rebootctl policy apply" if never else "machines coming back",
    )


def finished(cycle: Cycle, machines: Iterable[Machine], policy: Policy) -> dict[str, int] | None:
    """The totals of a cycle for which nothing is left to do, or None while something is.

    Held, quarantined and rackless machines, and those that a reboot would not help, are not waited for: they
    need a person, and every cycle must end (L1).
    """
    if cycle.standing:
        return None
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
            stuck = not m.rack or m.state in {State.HELD, State.QUARANTINED} or needs_person(m, policy)
            if not stuck and not at_target(cycle, m):
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

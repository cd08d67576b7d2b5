"""Every reason why each machine that is wanted out stays in (S8), computed once for all that it is the same for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebootd.core.blockers import limit_blocker, may_open, rack_blockers
from rebootd.core.drains import concerned_by, keeps_in
from rebootd.core.failures import held_back
from rebootd.core.model import Blocker, State
from rebootd.core.own import no_rack, own_blockers
from rebootd.core.pace import goes_last
from rebootd.core.permits import open_racks
from rebootd.core.settle import held_by

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from rebootd.core.model import Cycle, Hold, Machine
    from rebootd.core.roll import Crowd
    from rebootd.core.view import View
    from rebootd.core.wishes import Wanting

    Reasons = tuple[Blocker, ...]


def explain(view: View, wanting: Wanting, taken: Collection[str] = (), *, others: bool = False) -> dict[str, Reasons]:
    """Every blocker of everybody in ``wanting`` but the ``taken``, who go.

    ``others``: machines go, or could but for capacity, that are in no quorum group; the members go after them.
    """
    reasons: dict[str, Reasons] = {}
    told = _Told(view, others)
    for rack in wanting.wishes:
        told.enter(rack)
        for m, cycle, hold in wanting.single[rack]:
            reasons[m.name] = told.single(m, cycle, hold)
        for crowd, cycle, hold in wanting.crowds[rack]:
            for names, why in told.crowd(crowd, cycle, hold):
                reasons |= dict.fromkeys(names, why)
    for name in taken:
        reasons.pop(name, None)
    _held_racks(view, taken, reasons)
    return reasons


def _held_racks(view: View, taken: Collection[str], reasons: dict[str, Reasons]) -> None:
    """Machines of held racks that nothing else was said of."""
    for rack, hold in view.snapshot.rack_holds.items():
        for m in view.capacity.members.get(rack, ()):
            if m.state is State.IN_SERVICE and m.name not in reasons and m.name not in taken:
                reasons[m.name] = (held_by("rack", rack, hold.reason, hold.by, hold.since),)


class _Told:
    """What is said of machines: what is the same for their rack, and then what is the same for all that are alike."""

    def __init__(self, view: View, others: bool) -> None:
        snapshot, capacity = view.snapshot, view.capacity
        self._view = view
        self._others = others
        self._many = open_racks(view) if len(capacity.open) >= snapshot.policy.open_racks else None
        self._limits = [limit_blocker(t) for _, t in capacity.limits]
        self._shut = capacity.full_limits()
        self._late = {c: plan.late for c, plan in view.pace.plans.items() if plan.late}
        self._stops = {c.id: view.cycle_stop(c.id) for c in view.cycles}
        self._apart = view.safeguards.apart()
        self._tripped = view.breakers.touches if view.breakers.open else None
        self._next = (
            Blocker(
                kind="next", what="it is next: nothing blocks it", since=view.now, clears="the leader, at its next tick"
            ),
        )
        self._base: Reasons = ()
        self._here: dict[tuple[object, ...], Reasons] = {}
        self._anywhere: dict[tuple[object, ...], Reasons] = {}

    def enter(self, rack: str) -> None:
        """The machines of ``rack`` are asked about from here on."""
        view, base = self._view, list(self._view.stops)
        if rack:
            tally = view.capacity.racks[rack]
            base += rack_blockers(view, rack)
            base += [self._many] if self._many is not None and not may_open(view, rack) else []
            base += [limit_blocker(tally)] if tally.full else []
        self._base = tuple(base)
        self._here = {}

    def crowd(self, crowd: Crowd, cycle: Cycle | None, hold: Hold | None) -> Iterator[tuple[list[str], Reasons]]:
        """The crowd's names with their reasons, parted by what tells machines apart by name."""
        machines = self._view.snapshot.machines
        for told_apart, names in self._parts(crowd, cycle).items():
            key = (crowd.mark, cycle.id if cycle is not None else None, told_apart)
            why = self._anywhere.get(key)
            if why is None:
                m = machines[names[0]]
                own = (*own_blockers(self._view, m), *held_back(self._view, m, cycle))
                self._anywhere[key] = why = (*self._shared(m, cycle, hold), *self._pace(m, cycle), *own)
            yield names, (*self._base, *why) or self._next

    def _parts(self, crowd: Crowd, cycle: Cycle | None) -> Mapping[object, list[str]]:
        """The crowd's names, parted by waves, by gates that know machines by name, and by how Nomad clients are."""
        view, apart = self._view, self._apart
        waves = self._late.get(cycle.id, {}) if cycle is not None else {}
        drained = concerned_by(view.snapshot.policy, crowd.first)
        names = [m.name for m in crowd.machines]
        # A wave is told by its blocker's id: that lives as long as the plan.
        places = {*map(id, map(waves.get, names))} if waves else {0}
        if len(places) == 1 and apart.keys().isdisjoint(names) and not drained:
            # The commonest case, and two quick looks: nothing parts them.
            return {(*places, None, None): names}
        parts: dict[object, list[str]] = {}
        for name, m in zip(names, crowd.machines, strict=True):
            wave = id(waves.get(name)) if waves else 0
            key = (wave, apart.get(name), keeps_in(view, m) if drained else None)
            parts.setdefault(key, []).append(name)
        return parts

    def single(self, m: Machine, cycle: Cycle | None, hold: Hold | None) -> Reasons:
        """The reasons of a machine that is in no crowd."""
        view, pace = self._view, self._pace(m, cycle)
        mask = view.capacity.mask_of(m) & self._shut if self._shut else 0
        mark = view.safeguards.mark(m) if view.safeguards.any else ()
        wave = self._late.get(cycle.id, {}).get(m.name) if cycle is not None else None
        key = (cycle.id if cycle is not None else None, mask, mark, id(wave), *map(id, pace))
        why = self._here.get(key)
        if why is None:
            self._here[key] = why = (*self._base, *self._shared(m, cycle, hold), *pace) or self._next
        own = () if m.rack else (no_rack(m),)
        if self._odd(m):
            own = (*own, *own_blockers(view, m), *held_back(view, m, cycle))
        return (*(why if why is not self._next else ()), *own) if own else why

    def _shared(self, m: Machine, cycle: Cycle | None, hold: Hold | None) -> Reasons:
        """What keeps the machine in whatever rack it is in: windows, its cycle, limits, gates, waves."""
        view, safe = self._view, self._view.safeguards
        cycle_id = cycle.id if cycle is not None else ""
        stop = self._stops.get(cycle_id)
        wave = self._late.get(cycle_id, {}).get(m.name)
        mask = view.capacity.mask_of(m) & self._shut if self._shut else 0
        return (
            *(() if hold is not None else view.closed_for(cycle_id)),
            *((stop,) if stop is not None else ()),
            *(b for i, b in enumerate(self._limits) if mask >> i & 1),
            *(safe.blockers(m, view.skips(cycle_id)) if safe.any else ()),
            *((wave,) if wave is not None else ()),
        )

    def _pace(self, m: Machine, cycle: Cycle | None) -> Reasons:
        """Windows that are too short for the machine, and its place at the end."""
        pace = self._view.pace
        slow = pace.fits(m, cycle)
        if self._others and cycle is not None and m.name in pace.last:
            return (*slow, goes_last(cycle.id, cycle.created))
        return slow

    def _odd(self, m: Machine) -> bool:
        """Whether the machine may have blockers that are its own; quick, and true rather too often."""
        snapshot = self._view.snapshot
        seen = snapshot.observed.get(m.name)
        return (
            bool(m.turned_back or m.flag)
            or m.retry is not None
            or m.name in snapshot.conflicts
            or m.name in snapshot.failing
            or m.name in snapshot.gone
            or m.nomad is not None
            or m.fleetlock is not None
            or concerned_by(snapshot.policy, m)
            or (self._tripped is not None and self._tripped(m))
            or seen is None
            or snapshot.now - seen.at > snapshot.policy.unreachable_after
        )

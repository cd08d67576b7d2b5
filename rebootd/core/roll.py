"""The roll of a fleet: machines that nothing tells apart are put together, and judged once instead of one by one.

A *crowd* are machines of one rack that are in service, have called lately with nothing new, have nothing in their
records or among the snapshot's exceptions that is theirs alone, and look alike to every selector, cycle, breaker and
window that this decision asks. Of ten thousand machines that wait nearly all are in crowds, a few hundred of them.
What names tell apart (waves, instances of a service) parts a crowd later: see :mod:`rebootd.core.explain`.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

from rebootd.core.model import State
from rebootd.core.quiet import quiet
from rebootd.core.selectors import OWN_KEYS, parse_selector
from rebootd.core.standing import wants

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from rebootd.core.model import Cycle, Machine, Snapshot
    from rebootd.core.selectors import Selector

    Mark = int


class Crowd:
    """Machines that are alike; ``first`` stands for all. Crowds of several racks with equal marks are alike as well."""

    __slots__ = ("first", "machines", "mark")

    def __init__(self, mark: Mark, first: Machine) -> None:
        self.mark = mark
        self.first = first
        self.machines = [first]


class RackRoll:
    """The machines of one rack: all of them, the crowds by mark, and everybody who is in none."""

    __slots__ = ("crowds", "members", "others")

    def __init__(self) -> None:
        self.members: list[Machine] = []
        self.crowds: dict[Mark, Crowd] = {}
        self.others: list[Machine] = []


class Roll:
    """One snapshot's machines, by rack; ``others`` are all that are in no crowd, in the snapshot's order."""

    def __init__(self, snapshot: Snapshot, cycles: Iterable[Cycle] = (), keys: Iterable[str] = ()) -> None:
        """``cycles`` are those that may want machines out; ``keys`` are looked at besides those of selectors."""
        self.racks: dict[str, RackRoll] = {}
        self.others: list[Machine] = []
        now, patience = snapshot.now, snapshot.policy.unreachable_after
        observed, in_service, look = snapshot.observed, State.IN_SERVICE, _look(snapshot, cycles, keys)
        named = {*snapshot.conflicts, *snapshot.failing, *snapshot.gone, *snapshot.machine_holds, *snapshot.calls}
        racks, others = self.racks, self.others
        for name, m in snapshot.machines.items():
            rack = racks.get(m.rack)
            if rack is None:
                rack = racks[m.rack] = RackRoll()
            rack.members.append(m)
            seen = observed.get(name)
            if (
                m.state is not in_service
                or not m.rack
                or seen is None
                or now - seen.at > patience
                or m.flag
                or m.turned_back
                or m.retry is not None
                or m.nomad is not None
                or m.fleetlock is not None
                or name in named
                or not (seen.quiet_for is m or quiet(m, seen.report))
            ):
                rack.others.append(m)
                others.append(m)
                continue
            mark = look(m)
            crowd = rack.crowds.get(mark)
            if crowd is None:
                rack.crowds[mark] = Crowd(mark, m)
            else:
                crowd.machines.append(m)

    def crowds(self) -> Iterator[Crowd]:
        """Every crowd."""
        for rack in self.racks.values():
            yield from rack.crowds.values()

    def matching(self, selector: Selector) -> frozenset[str]:
        """The names of the machines that a selector of the policy matches."""
        matches = selector.matches
        found = {m.name for m in self.others if matches(m)}
        for crowd in self.crowds():
            if matches(crowd.first):
                found.update([m.name for m in crowd.machines])
        return frozenset(found)


def _look(snapshot: Snapshot, cycles: Iterable[Cycle], also: Iterable[str]) -> Callable[[Machine], Mark]:
    """What gives a machine in service its mark: one for each set of answers that selectors and cycles give.

    Machines that show the same values get the same answers, so the selectors are asked once for each set of values.
    """
    policy = snapshot.policy
    chosen = [x.selector for x in policy.limits] + [q.selector for q in policy.quorums]
    chosen += [g.covers for g in policy.gates if g.covers is not None]
    chosen += [policy.drains.nomad.machines] if policy.drains.nomad is not None else []
    tests: list[Callable[[Machine], bool]] = []
    ids: list[str] = []
    for cycle in cycles:
        if cycle.standing:
            tests.append(wants(policy, cycle, snapshot.now))
            continue
        ids.append(cycle.id)
        chosen += [parse_selector(text) for text in (cycle.selector, cycle.target) if text]
    others = frozenset(also)
    keys, asked = set(others), []
    for selector in dict.fromkeys(chosen):
        if "name" in (looked_at := selector.keys()):
            tests.append(selector.matches)
        else:
            keys |= looked_at
            asked.append(selector.matches)
    labels, own = _values(keys)
    other_labels, other_own = _values(others)
    marks: dict[object, Mark] = {}
    answers: dict[object, Mark] = {}

    def tell(m: Machine, shown: object, single: tuple[object, ...]) -> Mark:
        looks = (tuple(map(m.labels.get, other_labels)), other_own(m) if other_own is not None else None)
        answer = (tuple([matches(m) for matches in asked]), looks, single)
        mark = marks[shown] = answers.setdefault(answer, len(answers))
        return mark

    def look(m: Machine) -> Mark:
        shown: object = tuple(map(m.labels.get, labels))
        single: tuple[object, ...] = ()
        if tests or m.outcomes:
            single = (tuple([test(m) for test in tests]), tuple(map(m.outcomes.__contains__, ids)))
            shown = (shown, single)
        if own is not None:
            shown = (shown, own(m))
        mark = marks.get(shown)
        return tell(m, shown, single) if mark is None else mark

    return look


def _values(keys: Collection[str]) -> tuple[tuple[str, ...], Callable[[Machine], object] | None]:
    """The labels among the keys, and what reads the others from a machine; nobody in a crowd has another state."""
    labels = tuple(sorted(key.removeprefix("label.") for key in keys if key.startswith("label.")))
    fields = sorted({*keys}.intersection(OWN_KEYS) - {"state"})
    return labels, attrgetter(*fields) if fields else None

"""The roll of a fleet: machines that nothing tells apart are put together, and judged once instead of one by one.

A *crowd* are machines of one rack that are in service, have called lately with nothing new, have nothing in their
records or among the snapshot's exceptions that is theirs alone, and look alike to every selector, cycle, wave, breaker
and window that this decision asks. Of ten thousand machines that wait nearly all are in crowds, a few hundred of them.
What names tell apart (waves, instances of a service) parts a crowd later: see :mod:`rebootd.core.explain`.
"""

from __future__ import annotations

from functools import partial
from itertools import repeat
from operator import attrgetter
from typing import TYPE_CHECKING

from rebootd.core.breakers import Breakers
from rebootd.core.model import State
from rebootd.core.quiet import quiet
from rebootd.core.selectors import parse_selector
from rebootd.core.standing import wants

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from rebootd.core.model import Cycle, Machine, Snapshot

    Mark = int
    Row = tuple[object, ...]
    Column = Callable[[list[Machine]], Iterable[object]]


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
    """One snapshot's machines, by rack; ``others`` are all that are in no crowd, in the snapshot's order.

    ``breakers`` are those that are open: what they look at parts crowds.
    """

    def __init__(self, snapshot: Snapshot, cycles: Iterable[Cycle] = (), keys: Iterable[str] = ()) -> None:
        """``cycles`` are those that may want machines out; ``keys`` are looked at besides what selectors look at."""
        self.racks: dict[str, RackRoll] = {}
        self.others: list[Machine] = []
        now, patience = snapshot.now, snapshot.policy.unreachable_after
        observed, in_service = snapshot.observed, State.IN_SERVICE
        named = {*snapshot.conflicts, *snapshot.failing, *snapshot.gone, *snapshot.machine_holds, *snapshot.calls}
        racks, others = self.racks, self.others
        plain: list[Machine] = []
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
                or m.cycle
                or name in named
                or not (seen.quiet_for is m or quiet(m, seen.report))
            ):
                rack.others.append(m)
                others.append(m)
            else:
                plain.append(m)
        # Who has failed is among the others: the fleet is not gone through once more.
        self.breakers = Breakers(snapshot, others)
        look = _Look(snapshot, cycles, (*keys, *self.breakers.keys()))
        marks = look.marks
        for m, row in zip(plain, look.rows(plain), strict=True):
            mark = marks.get(row)
            if mark is None:
                mark = look.judge(row, m)
            crowds = racks[m.rack].crowds
            crowd = crowds.get(mark)
            if crowd is None:
                crowds[mark] = Crowd(mark, m)
            else:
                crowd.machines.append(m)

    def crowds(self) -> Iterator[Crowd]:
        """Every crowd."""
        for rack in self.racks.values():
            yield from rack.crowds.values()

    def samples(self) -> Iterator[tuple[Machine, int]]:
        """One machine of each crowd, with how many are like it, and then each of the others."""
        for crowd in self.crowds():
            yield crowd.first, len(crowd.machines)
        for m in self.others:
            yield m, 1

    def those(self, test: Callable[[Machine], bool]) -> list[Machine]:
        """The machines for which a test holds that asks for nothing but what the machines of a crowd share."""
        found = [m for m in self.others if test(m)]
        for crowd in self.crowds():
            if test(crowd.first):
                found += crowd.machines
        return found


class _Look:
    """What this decision looks at in machines in service: what they show is a row, and equal rows get equal answers.

    Rows are read column by column, which is quicker than machine by machine, and selectors are asked once for each row
    that there is. ``marks`` maps rows to marks, one for each set of answers.
    """

    def __init__(self, snapshot: Snapshot, cycles: Iterable[Cycle], also: Collection[str]) -> None:
        policy = snapshot.policy
        chosen = [x.selector for x in policy.limits] + [q.selector for q in policy.quorums]
        chosen += [g.covers for g in policy.gates if g.covers is not None]
        chosen += [w.machines for w in policy.waves if w.machines is not None]
        chosen += [policy.drains.nomad.machines] if policy.drains.nomad is not None else []
        self._read: list[Column] = [_column(key) for key in dict.fromkeys(also)]
        """The first of these tell machines apart by themselves, the others by what selectors make of them."""
        for cycle in cycles:
            self._read.append(_outcomes(cycle.id))
            if cycle.standing:
                self._read.append(partial(map, wants(policy, cycle, snapshot.now)))
            else:
                chosen += [parse_selector(text) for text in (cycle.selector, cycle.target) if text]
        keys: set[str] = set()
        self._asked: list[Callable[[Machine], bool]] = []
        for selector in dict.fromkeys(chosen):
            looked_at = selector.keys()
            if "name" in looked_at:
                self._read.append(partial(map, selector.matches))
            else:
                keys |= looked_at
                self._asked.append(selector.matches)
        self._apart = len(self._read)
        # They are all in the same state.
        self._read += [_column(key) for key in sorted(keys.difference(also, ("state",)))]
        self.marks: dict[Row, Mark] = {}
        self._answers: dict[object, Mark] = {}

    def rows(self, machines: list[Machine]) -> Iterable[Row]:
        """What each of the machines shows."""
        return zip(*[read(machines) for read in self._read], strict=True) if self._read else repeat((), len(machines))

    def judge(self, row: Row, machine: Machine) -> Mark:
        """The mark of a row that was not there before, and of the machine that shows it."""
        answer = (row[: self._apart], tuple([matches(machine) for matches in self._asked]))
        mark = self.marks[row] = self._answers.setdefault(answer, len(self._answers))
        return mark


def _column(key: str) -> Column:
    """What machines show of a key, as selectors name it."""
    if not key.startswith("label."):
        return partial(map, attrgetter(key))
    label = key.removeprefix("label.")
    return lambda machines: [m.labels.get(label) for m in machines]


def _outcomes(cycle_id: str) -> Column:
    return lambda machines: [m.outcomes.get(cycle_id) for m in machines]

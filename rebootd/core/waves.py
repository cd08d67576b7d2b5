"""Waves and order: which rack is next, which wave of its cycle a machine is in, and which wave has come.

All of it follows from the policy, the machines' records and the clock: a new leader goes on where the last one was.
"""

from __future__ import annotations

from heapq import nsmallest
from operator import attrgetter
from typing import TYPE_CHECKING

from rebootd.core.failures import needs_person
from rebootd.core.inputs import counted
from rebootd.core.model import Blocker, State
from rebootd.core.selectors import parse_selector
from rebootd.core.states import WORKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from rebootd.core.model import Cycle, Machine
    from rebootd.core.policy import Policy
    from rebootd.core.policy_waves import Wave

NAMED = 5
_AWAY = frozenset({State.HELD, State.QUARANTINED})


def rack_ranks(policy: Policy, members: Mapping[str, Collection[Machine]]) -> dict[str, tuple[int, int, str]]:
    """A key for each rack to sort by: the listed ones in their order, then the others as the policy says."""
    order = policy.rack_order
    listed = {rack: place for place, rack in enumerate(order.listed)}
    small = order.by == "smallest-first"
    behind = len(listed)
    return {rack: (listed.get(rack, behind), len(here) if small else 0, rack) for rack, here in members.items()}


class WavePlan:
    """The waves of one cycle: who is in which, who is still to go, and which wave has come at a time.

    ``index`` maps names to waves, counted from 0; ``current`` is the wave that has come.
    """

    def __init__(self, cycle: Cycle, policy: Policy, machines: Iterable[Machine]) -> None:
        """``machines`` are all that the cycle selects, in the order in which they are to go."""
        self.cycle = cycle
        self.waves = waves = policy.waves
        self._policy = policy
        self.index: dict[str, int] = {}
        self.current = 0
        self.changes: float | None = None
        """When the clock alone lets the next wave come, if it does."""
        self.stale = False
        """Whether a wave has lost its last machine to go since :meth:`at` was asked."""
        self._left: list[set[str]] = [set() for _ in waves]
        self._ended = [0.0 for _ in waves]
        self.late: dict[str, Blocker] = {}
        """Machines whose wave has not come, and why."""
        rest = list(machines)
        total = len(rest)
        for number, wave in enumerate(waves):
            chosen, rest = _split(wave, rest, total)
            names = [m.name for m in chosen]
            self.index.update(dict.fromkeys(names, number))
            self._left[number].update(names)
            for machine in chosen:
                if machine.outcomes or machine.flag or machine.state is not State.IN_SERVICE:
                    self.update(machine)
        self.stale = False

    def update(self, machine: Machine) -> None:
        """Takes over one machine's record."""
        number = self.index.get(machine.name)
        if number is None:
            return
        over = self.cycle.id in machine.outcomes and not (machine.cycle == self.cycle.id and machine.state in WORKING)
        if over:
            self._ended[number] = max(self._ended[number], machine.ended)
        left_to_people = machine.state not in WORKING and needs_person(machine, self._policy)
        if over or machine.state in _AWAY or left_to_people:
            self._left[number].discard(machine.name)
            self.stale = self.stale or not self._left[number]
        else:
            self._left[number].add(machine.name)

    def at(self, now: float, show: Callable[[float], str]) -> WavePlan:
        """Judges which wave has come at ``now``; ``show`` writes times."""
        begins, last = self.cycle.created, len(self.waves) - 1
        self.changes, self.stale, why = None, False, ""
        for number, wave in enumerate(self.waves):
            self.current = number
            if self._left[number] or number == last:
                count, names = len(self._left[number]), nsmallest(NAMED, self._left[number])
                more = f" and {count - NAMED} more" if count > NAMED else ""
                why = f"has {counted(count, 'machine')} to go: {', '.join(names)}{more}"
                break
            if self._ended[number]:
                begins = max(begins, self._ended[number] + wave.soak)
            if now < begins:
                self.changes = begins
                why = f"soaks until {show(begins)}"
                break
        began = max((e for e in self._ended[: self.current]), default=0.0) or self.cycle.created
        said = f"of cycle {self.cycle.id} goes after wave {self.current + 1} ({self.waves[self.current].name}), which"
        blockers = {
            n: Blocker(
                kind="wave",
                what=f"wave {n + 1} of {last + 1} ({self.waves[n].name}) {said} {why}",
                since=began,
                clears="time" if self.changes else "the machines of that wave",
            )
            for n in range(self.current + 1, last + 1)
        }
        current = self.current
        self.late = {name: blockers[n] for name, n in self.index.items() if n > current} if blockers else {}
        return self


def _split(wave: Wave, rest: list[Machine], total: int) -> tuple[list[Machine], list[Machine]]:
    """Those of ``rest`` that the wave takes, and the others."""
    if wave.machines is None and not wave.racks:
        size = len(rest) if wave.rest or wave.size is None else wave.size.of(total)
        return rest[:size], rest[size:]
    racks = frozenset(wave.racks)
    matches = wave.machines.matches if wave.machines is not None else lambda m: m.rack in racks
    chosen: list[Machine] = []
    left: list[Machine] = []
    for machine in rest:
        (chosen if matches(machine) else left).append(machine)
    return chosen, left


def _served(machine: Machine, cycle: Cycle) -> bool:
    """Whether the machine's boot, once it is proved, serves the cycle, too (see ``with_reboot``)."""
    return machine.state is State.VERIFYING and machine.booted and cycle.created <= machine.since


def wave_plan(
    policy: Policy, cycle: Cycle, members: Mapping[str, Collection[Machine]], last: Collection[str]
) -> WavePlan:
    """The waves of ``cycle`` over ``members`` (by rack). Machines named in ``last`` are the last of all to go.

    Machines that show the target without having been rebooted, and ones without a rack, are in no wave. The leader's
    own host has no place of its own here: a change of leader must not move machines from wave to wave.
    """
    matches, ranks = parse_selector(cycle.selector).matches, rack_ranks(policy, members)
    chosen: list[Machine] = []
    behind: list[Machine] = []
    reached = parse_selector(cycle.target, "target").matches if cycle.target else None
    for rack in sorted((r for r in members if r), key=ranks.__getitem__):
        for machine in sorted(members[rack], key=_name):
            wanted = matches(machine) and (reached is None or not reached(machine) or _served(machine, cycle))
            # Who is out for the cycle stays in its wave, although it may show the target before it is proved.
            if wanted or cycle.id in machine.outcomes or machine.cycle == cycle.id:
                (behind if machine.name in last else chosen).append(machine)
    return WavePlan(cycle, policy, [*chosen, *behind])


_name = attrgetter("name")

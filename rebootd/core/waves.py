"""Waves and order: which rack is next, which wave of its cycle a machine is in, and which wave has come.

All of it follows from the policy, the machines' records and the clock: a new leader goes on where the last one was.
"""

from __future__ import annotations

from heapq import nsmallest
from typing import TYPE_CHECKING

from rebootd.core.failures import needs_person
from rebootd.core.fleetlock import unasked
from rebootd.core.inputs import counted
from rebootd.core.model import Blocker, State
from rebootd.core.selectors import parse_selector
from rebootd.core.states import WORKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from rebootd.core.model import Cycle, Machine
    from rebootd.core.policy import Policy
    from rebootd.core.policy_waves import Wave
    from rebootd.core.roll import Roll

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

    def __init__(self, cycle: Cycle, policy: Policy, roll: Roll, names: list[str]) -> None:
        """``names`` are of all machines that the cycle selects, in the order in which they are to go."""
        self.cycle = cycle
        self.waves = waves = policy.waves
        self._policy = policy
        self.index: dict[str, int] = {}
        self.current = 0
        self.changes: float | None = None
        """When the clock alone lets the next wave come, if it does."""
        self.stale = False
        """Whether a wave has lost its last machine to go since :meth:`at` was asked."""
        self._names: list[list[str]] = []
        self._over: list[set[str]] = [set() for _ in waves]
        """Those of each wave who are not to go any more: few at first, and asked about by :meth:`at` alone."""
        self._ended = [0.0 for _ in waves]
        self.late: dict[str, Blocker] = {}
        """Machines whose wave has not come, and why."""
        rest = names
        for number, wave in enumerate(waves):
            chosen, rest = _split(wave, roll, rest, len(names))
            self._names.append(chosen)
            self.index.update(dict.fromkeys(chosen, number))
        for machine in roll.those(self._tells):
            self.update(machine)
        self.stale = False

    def _tells(self, machine: Machine) -> bool:
        """Whether there may be anything to take over from the machine's record; quick."""
        known = machine.state is State.IN_SERVICE and machine.fleetlock is None
        return not known or bool(machine.flag) or self.cycle.id in machine.outcomes

    def update(self, machine: Machine) -> None:
        """Takes over one machine's record."""
        number = self.index.get(machine.name)
        if number is None:
            return
        over = self.cycle.id in machine.outcomes and not (machine.cycle == self.cycle.id and machine.state in WORKING)
        if over:
            self._ended[number] = max(self._ended[number], machine.ended)
        left_to_others = machine.state not in WORKING and (needs_person(machine, self._policy) or unasked(machine))
        if over or machine.state in _AWAY or left_to_others:
            self._over[number].add(machine.name)
            self.stale = self.stale or not self._left(number)
        else:
            self._over[number].discard(machine.name)

    def _left(self, number: int) -> int:
        """How many machines of a wave are still to go."""
        return len(self._names[number]) - len(self._over[number])

    def at(self, now: float, show: Callable[[float], str]) -> WavePlan:
        """Judges which wave has come at ``now``; ``show`` writes times."""
        begins, last = self.cycle.created, len(self.waves) - 1
        self.changes, self.stale, why = None, False, ""
        for number, wave in enumerate(self.waves):
            self.current = number
            count = self._left(number)
            if count or number == last:
                over = self._over[number]
                names = nsmallest(NAMED, (name for name in self._names[number] if name not in over))
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
        self.late = {}
        for n, blocker in blockers.items():
            self.late.update(dict.fromkeys(self._names[n], blocker))
        return self


def _split(wave: Wave, roll: Roll, rest: list[str], total: int) -> tuple[list[str], list[str]]:
    """Those of ``rest`` that the wave takes, and the others."""
    if wave.machines is None and not wave.racks:
        size = len(rest) if wave.rest or wave.size is None else wave.size.of(total)
        return rest[:size], rest[size:]
    if wave.machines is not None:
        taken = {m.name for m in roll.those(wave.machines.matches)}
    else:
        taken = {m.name for rack in wave.racks if rack in roll.racks for m in roll.racks[rack].members}
    return [name for name in rest if name in taken], [name for name in rest if name not in taken]


def _served(machine: Machine, cycle: Cycle) -> bool:
    """Whether the machine's boot, once it is proved, serves the cycle, too (see ``with_reboot``)."""
    return machine.state is State.VERIFYING and machine.booted and cycle.created <= machine.since


def wave_plan(policy: Policy, cycle: Cycle, roll: Roll, last: Collection[str]) -> WavePlan:
    """The waves of ``cycle``, no standing one. Machines named in ``last`` are the last of all to go.

    ``roll`` is made for this policy and this cycle, since it parts machines by what those look at.

    Machines that show the target without having been rebooted, and ones without a rack, are in no wave. The leader's
    own host has no place of its own here: a change of leader must not move machines from wave to wave.
    """
    matches, reached = parse_selector(cycle.selector).matches, None
    if cycle.target:
        reached = parse_selector(cycle.target, "target").matches

    def left_out(m: Machine) -> bool:
        wanted = matches(m) and (reached is None or not reached(m) or _served(m, cycle))
        # Who is out for the cycle stays in its wave, although it may show the target before it is proved.
        return not (wanted or cycle.id in m.outcomes or m.cycle == cycle.id)

    # Of a large fleet names are read here and little else: whatever machines share is asked of the roll.
    out = {m.name for m in roll.those(left_out)}
    members = {rack: here.members for rack, here in roll.racks.items() if rack}
    names: list[str] = []
    for rack in sorted(members, key=rack_ranks(policy, members).__getitem__):
        names += sorted([m.name for m in members[rack]])
    if out:
        names = [name for name in names if name not in out]
    if last:
        names = [*(name for name in names if name not in last), *(name for name in names if name in last)]
    return WavePlan(cycle, policy, roll, names)

"""Who is unavailable, and whether one more may be (S1, S2).

Every machine that is not in service counts, whatever took it down, and so does one that is in
service by its record but has not been heard of: what is unknown is not safe (S6).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebootd.core.amounts import Amount
from rebootd.core.model import State
from rebootd.core.roll import Roll
from rebootd.core.states import WORKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rebootd.core.model import Machine, Observation, Snapshot
    from rebootd.core.roll import Mark

NAMED = 5
"""How many machines a sentence names before it says "and N more"."""

GONE = "Consul's catalog does not have it"
"""Why a machine that reports all the same counts as unavailable: nobody who asks Consul finds it, and whoever removed
it may count on the others. Autopilot takes a dead server out of raft and of the catalog [measured, Consul 1.8.7]: two
of three servers are then "healthy", and none of them may fail."""


def unheard(snapshot: Snapshot, name: str) -> bool:
    """Whether the machine has not been heard of by this leader, or not for too long."""
    seen = snapshot.observed.get(name)
    return seen is None or snapshot.now - seen.at > snapshot.policy.unreachable_after


def available(snapshot: Snapshot, machine: Machine) -> bool:
    """In service by its record, heard of lately, well and known in Consul, and nobody else reports under its name."""
    return (
        machine.state is State.IN_SERVICE
        and not unheard(snapshot, machine.name)
        and machine.name not in snapshot.conflicts
        and machine.name not in snapshot.failing
        and machine.name not in snapshot.gone
    )


def unseen(snapshot: Snapshot) -> dict[str, str]:
    """Machines of Consul's catalog, with their racks, that a leader which has yet to settle has not heard of."""
    if not snapshot.expected or snapshot.now - snapshot.leading_since >= snapshot.policy.settle:
        return {}
    return {
        name: rack
        for name, rack in snapshot.expected.items()
        if name not in snapshot.machines and name not in snapshot.asides and name not in snapshot.observed
    }


def strangers(snapshot: Snapshot) -> list[tuple[str, str, float]]:
    """Name, rack and since of unavailable machines of which no record tells: unreadable and :func:`unseen` ones."""
    unreadable = [(aside.name, aside.rack, aside.since) for aside in snapshot.asides.values()]
    return unreadable + [(name, rack, snapshot.leading_since) for name, rack in unseen(snapshot).items()]


def _lost_since(snapshot: Snapshot, machine: Machine, seen: Observation | None) -> float:
    """Since when an unavailable machine is so, as far as this leader knows."""
    if machine.state is not State.IN_SERVICE:
        return machine.since
    if seen is None:
        return snapshot.leading_since
    known = [at for lost in (snapshot.failing_since, snapshot.gone) if (at := lost.get(machine.name)) is not None]
    # A forecast has agents call for ever: that is no time, and no JSON.
    return min(known) if known else min(seen.at, snapshot.now)


class Tally:
    """How many of a group there are and which of them are unavailable."""

    __slots__ = ("_amount", "_began", "_since", "away", "maximum", "name", "total", "why")

    def __init__(self, name: str) -> None:
        self.name = name
        self.total = 0
        self.away: list[str] = []
        self.why: Mapping[str, str] = {}
        self.maximum = 0
        self._amount = Amount(0)
        self._since: list[float] = []
        self._began = 0.0

    def lost(self, name: str, since: float) -> None:
        """Counts one unavailable machine."""
        self.away.append(name)
        self._since.append(since)

    def close(self, amount: Amount, began: float) -> None:
        """Fixes the maximum once all members are counted; ``began`` is when this leader did."""
        self._amount = amount
        self.maximum = amount.of(self.total)
        self._began = began

    def left(self) -> None:
        """One member less: a maximum by per cent may be smaller from now on."""
        self.total -= 1
        self.maximum = min(self.maximum, self._amount.of(self.total))

    def since(self, beyond: int = 0) -> float:
        """Since when as many are unavailable as may be, and ``beyond`` more; the leader's beginning if that is 0."""
        number = self.maximum + beyond
        return sorted(self._since)[number - 1] if 0 < number <= len(self._since) else self._began

    @property
    def full(self) -> bool:
        """Whether one more would be too many."""
        return len(self.away) >= self.maximum

    @property
    def over(self) -> bool:
        """Whether there are too many already."""
        return len(self.away) > self.maximum

    def sentence(self) -> str:
        """``rack r1: 1 of at most 1 of 4 unavailable (m3)``."""
        shown = [f"{n}: {self.why[n]}" if n in self.why else n for n in self.away[:NAMED]]
        names = ", ".join(shown) + (f" and {len(self.away) - NAMED} more" if len(self.away) > NAMED else "")
        return (
            f"{self.name}: {len(self.away)} unavailable, at most {self.maximum} of {self.total} allowed"
            f"{f' ({names})' if names else ''}"
        )


class Capacity:
    """All tallies of one snapshot: one per rack, one per limit, and the open racks.

    ``open`` maps each open rack to a sentence that says why it is open. ``add`` is used while a decision is made, so
    that what was just admitted counts for the next. ``unseen`` are machines without a record, by rack (see
    :func:`unseen`). ``lost`` maps every unavailable machine to since when.
    """

    def __init__(self, snapshot: Snapshot, roll: Roll | None = None) -> None:
        self._snapshot = snapshot
        self.racks: dict[str, Tally] = {}
        self.members: dict[str, list[Machine]] = {}
        self.limits = [(x.selector, Tally(f"limit {x.name}")) for x in snapshot.policy.limits]
        self.open: dict[str, str] = {}
        self.unseen: dict[str, list[str]] = {}
        self.lost: dict[str, float] = {}
        self._matchers = [(1 << i, s.matches) for i, (s, _) in enumerate(self.limits)]
        self._groups: dict[int, list[Tally]] = {0: []}
        self._masks: dict[int, int] = {}
        """By the record's identity: the snapshot keeps every record alive, and a changed one is another."""
        self._count_machines(roll or Roll(snapshot))
        self._count_strangers()
        self._count_locks()
        why = dict.fromkeys(snapshot.gone, GONE) | dict(snapshot.failing)
        for amount, tally in (
            *((snapshot.policy.rack_unavailable, tally) for tally in self.racks.values()),
            *((x.max, tally) for x, (_, tally) in zip(snapshot.policy.limits, self.limits, strict=True)),
        ):
            tally.why = why
            tally.close(amount, snapshot.leading_since)

    def _count_machines(self, roll: Roll) -> None:
        snapshot = self._snapshot
        for rack, here in roll.racks.items():
            tally = self.racks[rack] = Tally(f"rack {rack}")
            tally.total = len(here.members)
            self.members[rack] = here.members
        if self.limits:
            self._count_limits(roll)
        # Nobody in a crowd is unavailable.
        for m in roll.others:
            if not available(snapshot, m):
                since = self.lost[m.name] = _lost_since(snapshot, m, snapshot.observed.get(m.name))
                self.racks[m.rack].lost(m.name, since)
                for group in self.limits_of(m) if self.limits else ():
                    group.lost(m.name, since)
                if m.state in WORKING and m.rack and m.rack not in self.open:
                    self.open[m.rack] = f"{m.name} is {m.state.value}"

    def _count_limits(self, roll: Roll) -> None:
        alike: dict[Mark, int] = {}
        for crowd in roll.crowds():
            mask = alike.get(crowd.mark)
            if mask is None:
                mask = alike[crowd.mark] = self._judge(crowd.first)
            self._count_in(crowd.machines, mask)
        for m in roll.others:
            self._count_in([m], self._judge(m))

    def _count_in(self, machines: list[Machine], mask: int) -> None:
        self._masks.update(dict.fromkeys(map(id, machines), mask))
        for group in self._group(mask):
            group.total += len(machines)

    def _count_strangers(self) -> None:
        """Nobody knows their labels, so they count in their racks and in every limit."""
        for name, rack, since in strangers(self._snapshot):
            tally = self.racks.setdefault(rack, Tally(f"rack {rack}"))
            self.members.setdefault(rack, [])
            for group in (tally, *(t for _, t in self.limits)):
                group.total += 1
                group.lost(name, since)
            self.lost[name] = since
        for name, rack in unseen(self._snapshot).items():
            self.unseen.setdefault(rack, []).append(name)

    def _count_locks(self) -> None:
        for rack, lock in self._snapshot.racks.items():
            if lock.holder == "other":
                by = f"session {lock.session}" + (f" on {lock.node}" if lock.node else "")
                self.open[rack] = f"locked by {by}"
            elif lock.holder == "ours":
                self.open.setdefault(rack, "our lock is still held")

    def limits_of(self, machine: Machine) -> list[Tally]:
        """The tallies, beside its rack's, that the machine counts in."""
        return self._group(self.mask_of(machine))

    def mask_of(self, machine: Machine) -> int:
        """The limits that the machine counts in: bit ``i`` for ``limits[i]``."""
        found = self._masks.get(id(machine))
        return self._judge(machine) if found is None else found

    def _judge(self, machine: Machine) -> int:
        found = 0
        for bit, matches in self._matchers:
            if matches(machine):
                found |= bit
        return found

    def full_limits(self) -> int:
        """The limits that are full now, as bits."""
        return sum(1 << i for i, (_, tally) in enumerate(self.limits) if tally.full)

    def _group(self, mask: int) -> list[Tally]:
        found = self._groups.get(mask)
        if found is None:
            found = self._groups[mask] = [tally for i, (_, tally) in enumerate(self.limits) if mask >> i & 1]
        return found

    def note(self, before: Machine | None, after: Machine | None) -> bool:
        """Counts what a step of this decision shows: a machine that is out after all, a rack that is open.

        True when that is one more unavailable machine than the store's records have.
        """
        if after is None:
            return False
        here, there = self._tallies(before) if before is not None else (), self._tallies(after)
        for tally in here:
            if not any(tally is known for known in there):
                # Its new rack and limits have one member more only once that has landed.
                tally.left()
        if after.state is State.IN_SERVICE:
            return False
        if after.state in WORKING and after.rack:
            self.open.setdefault(after.rack, f"{after.name} is {after.state.value}")
        away = before is not None and not available(self._snapshot, before)
        # Who was away before may come back with another rack or other labels: it counts there now, too.
        counted = here if away else ()
        if not away:
            self.lost[after.name] = after.since
        for tally in there:
            if not any(tally is known for known in counted):
                tally.lost(after.name, after.since)
        return not away

    def _tallies(self, machine: Machine) -> tuple[Tally, ...]:
        rack = self.racks.get(machine.rack)
        return (*((rack,) if rack is not None else ()), *self.limits_of(machine))

    def add(self, machine: Machine) -> None:
        """Counts a machine that this decision takes out."""
        now = self._snapshot.now
        self.lost[machine.name] = now
        self.racks[machine.rack].lost(machine.name, now)
        for tally in self.limits_of(machine):
            tally.lost(machine.name, now)
        self.open.setdefault(machine.rack, f"{machine.name} is being drained")

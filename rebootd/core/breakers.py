"""Correlated breakers: failures that share a label value hold back the machines with that value, and nobody else.

A breaker is not stored. It is read from the machines that are quarantined now, so it closes when they are cleared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from rebootd.core.inputs import format_duration
from rebootd.core.model import Blocker, State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rebootd.core.model import Machine, Snapshot
    from rebootd.core.policy_failures import Breaker

NAMED = 5
"""How many failed machines a sentence names."""
_OWN = frozenset({"kernel", "rack", "chassis"})


class OpenBreaker(msgspec.Struct, frozen=True):
    """One breaker that is open: the value that the ``failed`` machines share, and since when."""

    label: str
    value: str
    failed: tuple[str, ...]
    since: float
    blocker: Blocker


class Breakers:
    """All open breakers of one snapshot."""

    def __init__(self, snapshot: Snapshot, machines: Iterable[Machine] | None = None) -> None:
        """``machines`` are those among which all are that have failed; the snapshot's unless given."""
        self.open = tuple(_open(snapshot, snapshot.machines.values() if machines is None else machines))
        self._by_label: dict[str, dict[str, Blocker]] = {}
        for breaker in self.open:
            self._by_label.setdefault(breaker.label, {})[breaker.value] = breaker.blocker
        # Asked of every machine that waits, so the two ways to a value are told apart once.
        self._fields = [(label, values) for label, values in self._by_label.items() if label in _OWN]
        self._labels = [(label, values) for label, values in self._by_label.items() if label not in _OWN]

    def keys(self) -> tuple[str, ...]:
        """What they look at, as :meth:`rebootd.core.selectors.Selector.keys` names it."""
        return tuple(label if label in _OWN else f"label.{label}" for label in self._by_label)

    def touches(self, machine: Machine) -> bool:
        """Whether any of them holds this machine back; quick."""
        labels = machine.labels
        for label, values in self._labels:
            if labels.get(label) in values:
                return True
        return any(getattr(machine, field) in values for field, values in self._fields)

    def of(self, machine: Machine) -> tuple[Blocker, ...]:
        """The breakers that hold this machine back."""
        found = (values.get(value_of(machine, label)) for label, values in self._by_label.items())
        return tuple(b for b in found if b is not None)


def value_of(machine: Machine, label: str) -> str:
    """The machine's value of a label; ``""`` is none, and is shared with nobody."""
    if label in _OWN:
        value: str = getattr(machine, label)
        return value
    return machine.labels.get(label, "")


def _open(snapshot: Snapshot, machines: Iterable[Machine]) -> list[OpenBreaker]:
    policy = snapshot.policy.failures.breaker
    failed = [m for m in machines if m.state is State.QUARANTINED]
    if len(failed) < policy.failures:
        return []
    failed.sort(key=lambda m: (m.since, m.name))
    out = []
    for label in policy.labels:
        groups: dict[str, list[Machine]] = {}
        for m in failed:
            value = value_of(m, label)
            if value:
                groups.setdefault(value, []).append(m)
        for value, group in sorted(groups.items()):
            tripped = _tripped(policy, group, snapshot.now)
            if tripped is not None:
                since, until = tripped
                names = tuple(m.name for m in group)
                out.append(OpenBreaker(label, value, names, since, _blocker(policy, label, value, names, since, until)))
    return out


def _tripped(policy: Breaker, group: list[Machine], now: float) -> tuple[float, float | None] | None:
    """Since when the group's breaker is open and until when (None: until somebody clears it), or None."""
    n = policy.failures
    trips = [
        last.since
        for first, last in zip(group, group[n - 1 :], strict=False)
        if last.since - first.since <= policy.within
    ]
    if not trips:
        return None
    if not policy.lasts:
        return trips[0], None
    until = trips[-1] + policy.lasts
    return (trips[0], until) if now < until else None


def _blocker(
    policy: Breaker, label: str, value: str, names: tuple[str, ...], since: float, until: float | None
) -> Blocker:
    shown = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    left = f"; it closes by itself {format_duration(policy.lasts)} after the last of them" if until is not None else ""
    return Blocker(
        kind="breaker",
        what=f"{len(names)} machines with {label}={value} failed, {policy.failures} within "
        f"{format_duration(policy.within)} hold back the others: {shown}{left}",
        since=since,
        clears="an operator: repair them, then rebootctl quarantine clear "
        + names[0]
        + (" and the others" if len(names) > 1 else ""),
    )

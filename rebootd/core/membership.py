"""Which of several selectors match a machine, as bits, worked out once for machines that look alike to all of them."""

from __future__ import annotations

from operator import attrgetter, methodcaller
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rebootd.core.model import Machine
    from rebootd.core.selectors import Selector

_LABEL = "label."


class Membership:
    """Bit ``i`` of a mask says whether the selector ``i`` matches."""

    def __init__(self, selectors: Sequence[Selector]) -> None:
        self._matchers = [(1 << i, s.matches) for i, s in enumerate(selectors)]
        keys = sorted({key for s in selectors for key in s.keys()})  # noqa: SIM118  Selector.keys is no dict's
        self._own = [key for key in keys if not key.startswith(_LABEL)]
        self._labels = [key.removeprefix(_LABEL) for key in keys if key.startswith(_LABEL)]

    def mask(self, machine: Machine) -> int:
        """The selectors that match the machine."""
        found = 0
        for bit, matches in self._matchers:
            if matches(machine):
                found |= bit
        return found

    def masks(self, machines: Sequence[Machine]) -> list[int]:
        """The mask of each machine.

        Selectors look at few keys, and most machines of a fleet have the same values there, so the selectors are
        asked once for each combination of values. Columns instead of a loop: it is done for 10,000 machines at once.
        """
        columns = [*self._columns(machines)]
        if not columns:
            return [self.mask(machines[0])] * len(machines) if machines else []
        values = list(zip(*columns, strict=True))
        known = {seen: self.mask(machine) for seen, machine in dict(zip(values, machines, strict=True)).items()}
        return [known[seen] for seen in values]

    def _columns(self, machines: Sequence[Machine]) -> Iterator[map[object]]:
        for key in self._own:
            yield map(attrgetter(key), machines)
        for key in self._labels:
            yield map(methodcaller("get", key), map(attrgetter("labels"), machines))

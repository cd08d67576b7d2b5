"""Which of several selectors match a machine, as bits, worked out once for machines that look alike to all of them."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rebootd.core.model import Machine
    from rebootd.core.selectors import Selector

_LABEL = "label."


class Membership:
    """Bit ``i`` of :meth:`mask` says whether the selector ``i`` matches.

    Selectors look at few keys (:meth:`Selector.keys`), and most machines of a fleet have the same values there, so
    the selectors themselves are asked once for each combination of values.
    """

    def __init__(self, selectors: Sequence[Selector]) -> None:
        self._matchers = [(1 << i, s.matches) for i, s in enumerate(selectors)]
        keys = sorted({key for s in selectors for key in s.keys()})  # noqa: SIM118  Selector.keys is no dict's
        self._labels = tuple(key.removeprefix(_LABEL) for key in keys if key.startswith(_LABEL))
        own = [key for key in keys if not key.startswith(_LABEL)]
        # Names differ anyway: remembering what was found for each would only cost.
        self._own: Callable[[Machine], object] | None = attrgetter(*own) if own and "name" not in own else None
        self._alike = "name" not in own
        self._known: dict[object, int] = {}

    def mask(self, machine: Machine) -> int:
        """The selectors that match the machine."""
        if not self._alike:
            return self._judge(machine)
        own = self._own(machine) if self._own is not None else None
        values = (own, *map(machine.labels.get, self._labels))
        found = self._known.get(values)
        if found is None:
            found = self._known[values] = self._judge(machine)
        return found

    def _judge(self, machine: Machine) -> int:
        found = 0
        for bit, matches in self._matchers:
            if matches(machine):
                found |= bit
        return found

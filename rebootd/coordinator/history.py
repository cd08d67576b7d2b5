"""What machines have needed: learnt from transitions that landed, and written to the store now and then."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from rebootd.coordinator.records import encode
from rebootd.coordinator.work import Work
from rebootd.core.decision import Lane
from rebootd.core.durations import Durations, seen
from rebootd.store.port import Set
from rebootd.store.writer import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rebootd.coordinator.fleet import Fleet
    from rebootd.core.model import Event, Machine

EVERY_SAMPLES = 250
"""Samples after which they are written: fifty reboots."""
EVERY_SECONDS = 600.0
"""Seconds after which they are written if there are any."""


class History:
    """Belongs to one leadership. What it has not written when the leader dies is lost, which is harmless."""

    def __init__(self, fleet: Fleet, new_id: Callable[[], str]) -> None:
        self._fleet = fleet
        self._new_id = new_id
        self._written = 0
        self._at = 0.0

    def loaded(self, now: float) -> None:
        """The records have been read."""
        self._written, self._at = self._fleet.durations.samples, now

    def saw(self, before: Machine | None, events: Iterable[Event]) -> None:
        """A step of a machine has landed."""
        self._fleet.durations = seen(self._fleet.durations, before, events, self._fleet.policy)

    def ripe(self, now: float) -> bool:
        """Whether it is time to write what was learnt."""
        new = self._fleet.durations.samples - self._written
        return new >= EVERY_SAMPLES or (new > 0 and now - self._at >= EVERY_SECONDS)

    def due(self, now: float, epoch: int) -> list[Work]:
        """The write of what was learnt, if it is time for it."""
        if not self.ripe(now):
            return []
        durations: Durations = self._fleet.durations
        # One that is refused is not tried again at once: the next will say the same and more.
        self._written, self._at = durations.samples, now
        key = self._fleet.keys.durations
        value = encode(replace(durations, epoch=epoch, write_id=self._new_id()))
        op = Set(key=key, value=value, cas=self._fleet.index.get(key, 0))
        return [Work(step=Step(ops=(op,), lane=Lane.BACK.value), events=(), keys=(key,), spare=True)]

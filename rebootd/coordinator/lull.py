"""Whether a tick that nobody called for may pass without a decision, because the last one would be made once more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from rebootd.core.wake import alike, next_wake

if TYPE_CHECKING:
    from rebootd.core.model import Snapshot


class Lull:
    """Belongs to one leadership. It begins with a decision that changes nothing."""

    def __init__(self) -> None:
        self._before: Snapshot | None = None
        self._wake = 0.0

    def end(self) -> None:
        """Something is said that a decision is to show, though it changes none."""
        self._before = None

    def judged(self, snapshot: Snapshot, *, idle: bool) -> None:
        """A decision was made on ``snapshot``; ``idle``: it changed nothing, and nothing was written for it."""
        # What machines said is not compared, and would keep ten thousand old reports in memory.
        self._before = replace(snapshot, observed={}, readings={}) if idle else None
        self._wake = 0.0

    def lasts(self, snapshot: Snapshot) -> bool:
        """Whether a decision on ``snapshot`` would be the same as the last."""
        before = self._before
        if before is None or not alike(before, snapshot):
            return False
        if self._wake <= snapshot.now:
            # Who was to be missed by then may have called meanwhile.
            self._wake = next_wake(snapshot, before.now)
        return snapshot.now < self._wake

"""The leader's clock: the wall clock as it stood at the election, carried on by the monotonic one.

A wall clock that jumps would make every deadline overdue at once, or none for years. This one does not jump. What
it cannot know is which of two clocks is right: that is for the median of the agents' clocks (S6).
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from rebootd.core.errors import RebootdError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebootd.coordinator.fleet import Fleet

EVERY = 5.0
"""Seconds between two comparisons."""


class ClockSetRight(RebootdError):
    """The clock of the leader's host was put right since the election: leadership begins anew, with that time."""


class LeaderClock:
    """Belongs to one leadership; called, it says the time in seconds since 1970. ``skew`` is against the agents."""

    def __init__(self, wall: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._offset = wall() - monotonic()
        self._looked = float("-inf")
        self.skew = 0.0
        self.trusted = False
        """Whether most machines have told their time, and it is about ours."""

    def __call__(self) -> float:
        """The time, in seconds since 1970."""
        return self._monotonic() + self._offset

    def look(self, offsets: dict[str, float], fleet: Fleet) -> dict[str, float]:
        """Compares with the agents' clocks (``offsets``: ours less theirs, by machine); returns those that still count.

        Raises :class:`ClockSetRight` when only the host's own clock, as it is by now, agrees with them.
        """
        # Not by the clock that is judged here.
        if self._monotonic() - self._looked < EVERY:
            return offsets
        self._looked = self._monotonic()
        known, tolerance = fleet.machines, fleet.policy.clock_tolerance
        # Who is gone for good has no clock any more.
        offsets = {name: at for name, at in offsets.items() if name in known}
        self.skew = statistics.median(offsets.values()) if offsets else 0.0
        off = abs(self.skew) > tolerance
        self.trusted = not off and bool(offsets) and len(offsets) * 2 >= len(known)
        jump = self._wall() - self()
        if off and abs(self.skew + jump) <= tolerance:
            raise ClockSetRight(f"the leader's host had its clock set by {jump:+.0f} s, and agrees with its agents now")
        said = f"the clock of the leader's host jumped by {jump:+.0f} s; this leadership goes on by the time before"
        fleet.alarm("clock", said if abs(jump) > tolerance else "")
        return offsets

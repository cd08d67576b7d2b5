"""Whether a machine's reboot fits into what is left of the window: none is started that would not be back in time."""

from __future__ import annotations

from functools import lru_cache
from math import ceil, inf
from typing import TYPE_CHECKING

from rebootd.core.durations import Durations, keys_of
from rebootd.core.inputs import DAY, format_duration
from rebootd.core.model import Blocker
from rebootd.core.policy import Policy
from rebootd.core.windows import judge_windows, opened_since

if TYPE_CHECKING:
    from rebootd.core.model import Machine, Snapshot
    from rebootd.core.windows import CalendarWindow, WindowVerdict

AHEAD = 35 * DAY
"""How far ahead windows are looked for that a machine might fit into: every month has its own at least once."""
MAX_STRETCHES = 100


class Fit:
    """What is left of the window at one moment, and who fits into it. ``tight``: not every machine need fit."""

    def __init__(self, snapshot: Snapshot, verdict: WindowVerdict, now: float | None = None) -> None:
        """``now`` is the snapshot's own unless given."""
        self._policy = snapshot.policy
        self._durations = snapshot.durations or Durations()
        self._verdict = verdict
        self._windows = snapshot.windows
        self._leading_since = snapshot.leading_since
        self._now = now = snapshot.now if now is None else now
        self._rest = inf if verdict.open and verdict.until is None else (verdict.until or now) - now
        self._known: dict[tuple[str, ...], Blocker | None] = {}
        # Where no window ends, everybody fits.
        self._longest = self._durations.longest(self._policy) if self._rest < inf else 0.0
        self.tight = self._longest > (self._rest if verdict.open else self._most())

    def _most(self) -> float:
        """The longest stretch of windows that is known, the present one as it is now."""
        # Whole minutes, so that what was found serves while estimates move a little.
        enough = 60.0 * ceil(self._longest / 60)
        once = (w.end - max(w.start, self._now) for w in self._windows)
        most = max(longest_stretch(self._policy.windows, int(self._now // DAY), enough), self._rest, *once)
        # With no window in sight the reason is the missing window, not the machine.
        return most if most > 0 else inf

    def blocker(self, machine: Machine) -> Blocker | None:
        """Why the machine is not started in this window, or None."""
        keys = keys_of(machine, self._policy)
        if keys not in self._known:
            self._known[keys] = self._judge(self._durations.whole(machine, self._policy))
        return self._known[keys]

    def _judge(self, seconds: float) -> Blocker | None:
        if self._verdict.open and seconds <= self._rest:
            return None
        most = self._most()
        if seconds > most:
            return Blocker(
                kind="never",
                what=f"its reboot is expected to take {_span(seconds)}, and no window is longer than {_span(most)}",
                since=self._leading_since,
                clears="an operator: a longer window (rebootctl window open, or the policy's calendar)",
            )
        if not self._verdict.open:
            return None
        return Blocker(
            kind="window-fit",
            what=f"its reboot is expected to take {_span(seconds)}, and the window closes in {_span(self._rest)}",
            since=max(self._now + self._rest - seconds, opened_since(self._policy, self._windows, self._now)),
            clears="the next window, or an operator: rebootctl window open",
        )


def _span(seconds: float) -> str:
    return format_duration(round(seconds))


@lru_cache(maxsize=64)
def longest_stretch(calendar: tuple[CalendarWindow, ...], day: int, enough: float = inf) -> float:
    """Seconds of the longest stretch of calendar windows from a UTC day (counted since the Unix epoch) on; 0: none.

    The first that has ``enough`` seconds is long enough: looking five weeks ahead takes its time.
    """
    policy = Policy(windows=calendar, window_required=True)
    begin = now = day * DAY
    longest = 0.0
    for _ in range(MAX_STRETCHES):
        verdict = judge_windows(policy, (), now)
        if verdict.open and verdict.until is not None:
            longest = max(longest, verdict.until - now)
            if longest >= enough:
                break
        if verdict.next is None or verdict.next > begin + AHEAD:
            break
        now = verdict.next
    return longest

"""The values of an election: who competes, who leads, and what a leader may rely on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable


class Candidate(msgspec.Struct, frozen=True):
    """One daemon: its unique id, the URL that agents are sent to, and the machine it runs on."""

    id: str
    url: str
    node: str = ""


class LeaderInfo(msgspec.Struct, frozen=True):
    """The value of the leader key. ``since`` is the leader's time, seconds since the Unix epoch."""

    id: str
    url: str
    node: str = ""
    since: float = 0.0


class Tuning(msgspec.Struct, frozen=True, kw_only=True):
    """The times of an election, in seconds. The defaults are measured; see docs/decisions.md.

    ``ttl`` is the session's backstop (Consul takes 10 at least and lets a session die after twice that).
    ``deadline`` is how long after the start of the last proof a leader may speak: shorter than the time after which
    Consul calls a frozen leader's check critical. ``proof_every`` and ``proof_timeout`` pace the proofs;
    ``renew_every`` paces the TTL's renewals; ``watch_wait`` is the longest wait of one look at the key.
    ``retry`` and ``retry_max`` bound the backoff after a refusal or a store that does not answer. ``grace`` is how long
    a leader's own clean-up may hold up the hand-over; ``abstain`` how long one that stepped down lets others go first.
    """

    ttl: float = 10.0
    lock_delay: float = 0.0
    deadline: float = 2.0
    proof_every: float = 0.3
    proof_timeout: float = 1.8
    renew_every: float = 3.0
    watch_wait: float = 15.0
    retry: float = 0.05
    retry_max: float = 1.0
    grace: float = 1.0
    abstain: float = 2.0


class Leadership:
    """One time of leading, from winning to losing. ``session`` holds the lock ``key`` and is never used again after it.

    ``lost`` is set once it is over or given up; ``reason`` then says why.
    """

    def __init__(
        self, session: str, key: str, *, at: float, deadline: float, abstain: float, clock: Callable[[], float]
    ) -> None:
        self.session = session
        self.key = key
        self.lost = asyncio.Event()
        self.reason = ""
        self.abstain = abstain
        self._proved = at
        self._deadline = deadline
        self._clock = clock

    def proved(self, at: float) -> None:
        """The lock was ours at some time after ``at`` (the loop's time when the request that showed it *began*)."""
        self._proved = max(self._proved, at)

    def unproved(self) -> float:
        """Seconds since the start of the last proof."""
        return self._clock() - self._proved

    def may_speak(self) -> bool:
        """Whether anything may still be said in the name of the leader; ask right before saying it.

        False also while the store does not answer; it comes back when the next proof finds the lock still ours.
        """
        return not self.lost.is_set() and self.unproved() < self._deadline

    def step_down(self, reason: str, abstain: float | None = None) -> None:
        """Give up: the scope is cancelled and the lock released. Only the first reason counts.

        ``abstain`` is how many seconds this daemon then lets others go first (None: the default).
        """
        if self.lost.is_set():
            return
        self.reason = reason
        if abstain is not None:
            self.abstain = abstain
        self.lost.set()

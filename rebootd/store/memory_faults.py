"""What can go wrong between a client and the store, to be set by tests and by the simulation.

A :class:`Faults` sits on the cluster (it hits every client) and on each client. Both are asked at
every call; the worse one counts. Durations are seconds of the running event loop.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rebootd.store.port import Entry, Op


@dataclass(frozen=True)
class Fate:
    """What becomes of one commit.

    It lands ``lands_after`` seconds after it reached the store (None: never), and the client hears
    of it (``reply``) or gets ``OutcomeUnknown`` at once.
    """

    lands_after: float | None = 0.0
    reply: bool = True


NEVER = Fate(None, reply=False)
"""The commit does not land, and the client is not told so."""
LOST_REPLY = Fate(0.0, reply=False)
"""The commit lands; its answer is lost."""


def late(seconds: float) -> Fate:
    """The client gives up now, the commit lands ``seconds`` later."""
    return Fate(seconds, reply=False)


@dataclass(frozen=True)
class View:
    """The keys as they stood at one moment, for reads that are not consistent."""

    entries: Mapping[str, Entry]
    index: int


@dataclass
class Faults:
    """The switches. All of them may be turned at any time, also while calls are under way.

    ``unavailable``: no quorum; reads raise ``Unreachable``, writes ``OutcomeUnknown`` and do not
    land. ``partitioned``: the same, but every call first hangs for its whole timeout.
    ``delay``: seconds that each call takes to reach the store; a commit whose delay exceeds its
    timeout lands all the same. ``denied`` and ``unreadable``: key prefixes that may not be written
    or read. ``stale``: reads that are not consistent answer from this view. ``fates`` are spent
    one per commit; when none is left, ``choose`` (if set) decides.
    """

    unavailable: bool = False
    partitioned: bool = False
    delay: float = 0.0
    denied: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    stale: View | None = None
    fates: deque[Fate] = field(default_factory=deque)
    choose: Callable[[Sequence[Op]], Fate | None] | None = None

    def fate(self, ops: Sequence[Op]) -> Fate | None:
        """The fate of this commit, or None when nothing special is planned for it."""
        if self.fates:
            return self.fates.popleft()
        return self.choose(ops) if self.choose is not None else None

    def heal(self) -> None:
        """Turns every fault off; what was already sent late still lands."""
        self.unavailable = self.partitioned = False
        self.delay = 0.0
        self.denied = self.unreadable = ()
        self.stale = None
        self.fates.clear()
        self.choose = None

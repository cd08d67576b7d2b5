"""A leader that does not decide at a tick, because nothing has changed, would have decided nothing."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING
from unittest import mock

from rebootd.coordinator.lull import Lull
from rebootd.core.decide import decide
from rebootd.core.wake import idle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rebootd.core.model import Snapshot
    from tests.sim.world import World

EVERY_LULL = 5
"""One of so many ticks that pass without a decision is made up for."""


@contextmanager
def lulls_watched(world: World) -> Iterator[None]:
    """What was left undecided is decided after all, and may change nothing."""
    real, ticks = Lull.lasts, count(1)

    def lasts(self: Lull, snapshot: Snapshot) -> bool:
        rests = real(self, snapshot)
        if rests and not next(ticks) % EVERY_LULL:
            missed = decide(snapshot)
            if not idle(missed):
                due = [f"{step.name}: {step.events[0].cause}" if step.events else step.name for step in missed.steps]
                world.checks.fail("LULL", f"the leader rests, and there is something to do: {due or missed}")
        return rests

    with mock.patch.object(Lull, "lasts", lasts):
        yield

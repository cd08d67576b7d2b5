"""Who else could lead: known only when it is sure."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from rebootd.coordinator import peers
from rebootd.coordinator.fleet import Fleet
from rebootd.coordinator.records import Keys
from rebootd.core.errors import Unreachable

if TYPE_CHECKING:
    import pytest

OTHER = frozenset({"m2"})
NOBODY: frozenset[str] = frozenset()


class Scripted:
    """Each look finds the next; None cannot be seen. What was known before each look is kept."""

    def __init__(self, fleet: Fleet, *found: frozenset[str] | None) -> None:
        self.fleet = fleet
        self.found = list(found)
        self.known: list[frozenset[str] | None] = []
        self.over = asyncio.Event()

    async def nodes(self) -> frozenset[str]:
        self.known.append(self.fleet.successors)
        if not self.found:
            self.over.set()
            await asyncio.sleep(3600)
        found = self.found.pop(0)
        if found is None:
            raise Unreachable("no Consul")
        return found


async def test_a_daemon_that_is_missed_once_or_twice_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the leader's own host goes while it leads, because the other daemon was starting, or busy for a moment."""
    monkeypatch.setattr(peers, "LOOK", 0.0)
    fleet = Fleet(Keys())
    looks = (NOBODY, OTHER, NOBODY, None, NOBODY, OTHER, NOBODY, NOBODY, NOBODY, OTHER)
    sight = Scripted(fleet, *looks)
    dirty = asyncio.Event()
    running = asyncio.create_task(peers.PeersWatch(fleet, sight, dirty).run())
    await asyncio.wait_for(sight.over.wait(), 10)
    running.cancel()
    assert sight.known == [None, None, OTHER, None, None, None, OTHER, None, None, NOBODY, OTHER]
    assert dirty.is_set()

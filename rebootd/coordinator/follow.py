"""Keeping up with what others write: the small prefixes, the catalog, and single records that moved."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog
from tenacity import retry, retry_if_exception_type, wait_random_exponential

from rebootd.core.errors import Denied, StoreError, Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebootd.coordinator.fleet import Fleet
    from rebootd.coordinator.locks import RackLocks
    from rebootd.store.port import Entry, Store

log = structlog.get_logger(__name__)

CATALOG_WAIT = 30.0
"""Seconds of one blocking query for the catalog's nodes (their racks, and who has left); Consul adds a sixteenth."""
CATALOG_LATE = 5.0
"""Seconds that an answer may then still take."""
CATALOG_PAUSE = 2.0
"""Seconds between two answers: ten thousand nodes are megabytes."""
CATALOG = "catalog"
WATCH_WAIT = 30.0
WATCH_PAUSE = 0.2
"""Seconds after a watch that brought nothing; permits and drains check halt, policy and holds when they commit."""


class IndexReset(StoreError):
    """The store counts its indexes anew: nothing that a leader holds in memory can be compared with it any more."""


def _not_before(entry: Entry, known: int) -> None:
    """Raises :class:`IndexReset` for a consistent read that is older than what was known before it."""
    if entry.modify_index < known:
        raise IndexReset(f"{entry.key} was at index {known}, it is at {entry.modify_index} now: all is to be read anew")


class Follower:
    """Brings the fleet in memory up to what the store holds. ``dirty`` is set when there is news."""

    def __init__(
        self, store: Store, fleet: Fleet, locks: RackLocks, dirty: asyncio.Event, *, wall: Callable[[], float]
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._keys = fleet.keys
        self._locks = locks
        self._dirty = dirty
        self._wall = wall
        self._nodes_index = 0

    def small_prefixes(self) -> tuple[str, ...]:
        """What people and other tools write too, and what is small enough to be watched."""
        keys = self._keys
        return (keys.control, keys.policy, keys.racks, keys.holds, keys.windows, keys.cycles, keys.power)

    def start(self, group: asyncio.TaskGroup) -> None:
        """Follows for as long as ``group`` lives."""
        for prefix in self.small_prefixes():
            group.create_task(self._prefix(prefix))
        group.create_task(self._catalog())

    async def _prefix(self, prefix: str) -> None:
        """People and other tools write these too: a halt with ``consul kv put``, a rack with ``consul lock``."""
        index = known = 0
        while True:
            try:
                entries, index = await self._store.watch(prefix, index, WATCH_WAIT)
                if index < known:
                    await self._look_for_reset(prefix)
                known = index
            except IndexReset:
                raise
            except StoreError as error:
                # A halt or a foreign rack lock might be missed now: what is unknown is not safe.
                self._fleet.faults[f"watch {prefix}"] = f"{prefix} cannot be watched: {error}"
                log.warning("watch-failed", prefix=prefix, error=str(error))
                # From 0 it answers at once: with the old index the fault would stand until something changes.
                index = 0
                await asyncio.sleep(0.5)
                continue
            self._fleet.faults.pop(f"watch {prefix}", None)
            if not self._fleet.absorb_prefix(prefix, entries, index, self._wall()):
                # Consul wakes who watches a prefix without keys at any write nearby, our own included.
                await asyncio.sleep(WATCH_PAUSE)
                continue
            if prefix == self._keys.racks and any(
                holder not in self._fleet.book.sessions for holder in self._fleet.lock_holders.values()
            ):
                await self._locks.look()
            self._dirty.set()

    async def _look_for_reset(self, prefix: str) -> None:
        """An index that went backwards: swept tombstones, or a store that was rebuilt and counts anew?"""
        known = dict(self._fleet.index)
        entries, _ = await self._store.list(prefix, consistent=True)
        for entry in entries:
            _not_before(entry, known.get(entry.key, 0))

    async def _catalog(self) -> None:
        while True:
            await self._see_nodes(self._nodes_index)
            await asyncio.sleep(CATALOG_PAUSE)
            for name in list(self._fleet.asides):
                # Somebody may have put the record right.
                await self.read_again(self._keys.machine(name))

    async def look_up(self, *, force: bool = False) -> bool:
        """Learns the catalog's nodes and their racks now; whether they could be read.

        ``force`` raises the StoreError when nothing is known of it yet.
        """
        return await self._see_nodes(0, force=force and not self._fleet.catalog)

    async def _see_nodes(self, index: int, *, force: bool = False) -> bool:
        limit = CATALOG_WAIT * 17 / 16 + CATALOG_LATE
        try:
            async with asyncio.timeout(limit):
                nodes, self._nodes_index = await self._store.watch_nodes(index, CATALOG_WAIT)
        except (StoreError, TimeoutError) as error:
            said = str(error) or f"no answer within {limit:g} s"
            log.warning("catalog-unreachable", error=said)
            if force:
                raise error if isinstance(error, StoreError) else Unreachable(said) from error
            # Who left it meanwhile would count as available: what is unknown is not safe.
            self._fleet.faults[CATALOG] = f"Consul's catalog cannot be read: {said}"
            self._dirty.set()
            self._nodes_index = 0
            return False
        news = self._fleet.catalog_read(nodes, self._wall())
        self._fleet.node_meta = {n.name: n.meta for n in nodes}
        if self._fleet.faults.pop(CATALOG, None) is not None or news:
            self._dirty.set()
        return True

    @retry(
        retry=retry_if_exception_type(Unreachable), wait=wait_random_exponential(multiplier=0.1, max=2.0), reraise=True
    )
    async def read_again(self, key: str) -> None:
        """Asks until the store answers: nothing can be decided on a record that is known to be stale."""
        known = self._fleet.index.get(key, 0)
        try:
            entry = await self._store.get(key, consistent=True)
        except Denied as error:
            # Not deposed: what is known stays, and the next write to it is refused again.
            log.error("record-may-not-be-read", key=key, error=str(error))
            return
        if entry is None:
            self._fleet.forget(key, self._wall())
        else:
            _not_before(entry, known)
            self._fleet.absorb(entry, self._wall())

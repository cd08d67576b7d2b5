"""Rack locks: sessions on a node of their own, so that they outlive leaders and hosts.

A session without checks still dies with its node when the agent there leaves cleanly [measured on
Consul 1.8.7], so ours sit on the external catalog node ``rebootd-locks``. A session's id and the
lock land in one fenced transaction; a session is destroyed only after a fenced write removed its
id; one spare is kept so that the next rack costs no extra round trip.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from rebootd.coordinator.records import encode
from rebootd.core.errors import StoreError
from rebootd.core.model import RackRecord
from rebootd.store.port import Lock, Op, Set, Unlock

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebootd.coordinator.fleet import Fleet
    from rebootd.store.port import Store

log = structlog.get_logger(__name__)


class RackLocks:
    """The sessions behind our rack locks. ``name`` marks them as this fleet's."""

    def __init__(self, store: Store, fleet: Fleet, name: str, node: str, new_id: Callable[[], str]) -> None:
        self._store = store
        self._fleet = fleet
        self._name = name
        self._node = node
        self._new_id = new_id
        self._spare = ""
        self._left: list[str] = []
        self._ready = False

    async def prepare(self) -> None:
        """Makes the lock node and a spare session, and learns who holds what.

        Errors of the store are left for the next call; without a spare no rack is locked.
        """
        try:
            if not self._ready:
                await self._store.ensure_lock_node(self._node)
                await self._collect()
                self._ready = True
            while self._left:
                await self._store.destroy_session(self._left[-1])
                self._left.pop()
            if not self._spare:
                self._spare = await self._store.create_session(self._name, node=self._node)
        except StoreError as error:
            log.warning("rack-lock-session-unavailable", error=str(error))

    async def _collect(self) -> None:
        """Ends sessions of ours that no rack's record names: a leader died between two steps."""
        named = {r.session for r in self._fleet.rack_records.values()}
        for session in await self._store.sessions(node=self._node):
            if session.name == self._name and session.id not in named:
                await self._store.destroy_session(session.id)
                log.info("orphan-session-ended", session=session.id)

    async def look(self) -> None:
        """Learns the nodes of foreign holders, and ends our claim on sessions that are gone."""
        try:
            self._fleet.book.sessions = {s.id: s for s in await self._store.sessions()}
        except StoreError as error:
            log.warning("sessions-unknown", error=str(error))

    @property
    def can_lock(self) -> bool:
        """Whether a spare session is at hand."""
        return bool(self._spare)

    def lock_ops(self, rack: str, now: float, epoch: int) -> list[Op]:
        """Takes the rack's lock with the spare session. Call only when :attr:`can_lock`."""
        keys, session = self._fleet.keys, self._spare
        self._spare = ""
        record = RackRecord(rack=rack, session=session, since=now, epoch=epoch, write_id=self._new_id())
        key = keys.rack_record(rack)
        value = encode(record)
        return [
            Lock(key=keys.rack_lock(rack), value=value, session=session),
            Set(key=key, value=value, cas=self._fleet.index.get(key, 0)),
        ]

    def unlock_ops(self, rack: str, now: float, epoch: int) -> list[Op]:
        """Gives the rack's lock up."""
        keys, session = self._fleet.keys, self._fleet.rack_records[rack].session
        record = RackRecord(rack=rack, since=now, epoch=epoch, write_id=self._new_id())
        key = keys.rack_record(rack)
        value = encode(record)
        return [
            Unlock(key=keys.rack_lock(rack), value=value, session=session),
            Set(key=key, value=value, cas=self._fleet.index.get(key, 0)),
        ]

    def reuse(self, session: str) -> None:
        """A session that holds nothing any more: kept as the spare, or ended before long."""
        if session and not self._spare:
            self._spare = session
        elif session:
            self._left.append(session)

    async def drop(self, session: str) -> None:
        """Ends a session that no record names."""
        try:
            await self._store.destroy_session(session)
        except StoreError as error:
            log.warning("session-left-behind", session=session, error=str(error))

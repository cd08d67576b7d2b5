"""What is known of the rack locks: who holds each, since when, and which are ours.

A lock is ours when its record names the session that holds it, or when the lock's own value does: both are written in
one transaction, so one of them is proof enough when the other was edited, spoiled or deleted by hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from rebootd.coordinator.records import decode
from rebootd.core.model import RackLock, RackRecord
from rebootd.core.stamps import record_by

if TYPE_CHECKING:
    from rebootd.store.port import Entry, Session

LOCK_RETRY = 1.0
"""Seconds between two attempts at a rack's lock that was refused."""
DELAYED = "that has ended; its lock-delay is not over"


class RackBook:
    """Belongs to one fleet. ``records`` are what counts as ours, ``holders`` the sessions that hold locks.

    ``alarms`` are the fleet's own.
    """

    def __init__(self, prefix: str, alarms: dict[str, str]) -> None:
        self._prefix = prefix
        self._alarms = alarms
        self.records: dict[str, RackRecord] = {}
        self.holders: dict[str, str] = {}
        self.sessions: dict[str, Session] = {}
        self._written: dict[str, RackRecord] = {}
        self._claims: dict[str, RackRecord] = {}
        self._spoiled: dict[str, str] = {}
        self._held_since: dict[str, float] = {}
        self._refused: dict[str, float] = {}
        self._refused_since: dict[str, float] = {}

    def place(self, rest: str, entry: Entry | None, now: float) -> None:
        """Takes over a key below the racks' prefix as read or as written by us."""
        rack, _, what = rest.rpartition("/")
        if what == ".lock":
            self._lock(rack, entry, now)
        elif what == "record":
            self._record(rack, entry, now)
        else:
            return
        claim, written = self._claims.get(rack), self._written.get(rack)
        known = claim if claim is not None and claim.session == self.holders.get(rack) else written
        if known is not None:
            self.records[rack] = known
        else:
            self.records.pop(rack, None)

    def _lock(self, rack: str, entry: Entry | None, now: float) -> None:
        before = self.holders.pop(rack, "")
        self._claims.pop(rack, None)
        if entry is None or not entry.session:
            self._held_since.pop(rack, None)
            return
        self.holders[rack] = entry.session
        if entry.session != before:
            self._held_since[rack] = now
        try:
            claim = decode(entry.value, RackRecord)
        except msgspec.MsgspecError:
            # Somebody else's lock, as a rule: ``consul lock`` writes no value.
            return
        if claim.rack == rack and claim.session == entry.session:
            self._claims[rack] = record_by(claim, now)

    def _record(self, rack: str, entry: Entry | None, now: float) -> None:
        for where in (self._written, self._spoiled):
            where.pop(rack, None)
        self._alarms.pop(f"rack {rack}", None)
        if entry is None:
            return
        try:
            self._written[rack] = record_by(decode(entry.value, RackRecord), now)
        except msgspec.MsgspecError as error:
            self._spoiled[rack] = str(error)
            self._alarms[f"rack {rack}"] = f"the record of rack {rack} cannot be read: {error}"

    def refused(self, rack: str, now: float) -> None:
        """The store refused us the rack's lock a moment ago."""
        if now - self._refused.get(rack, now) > 2 * LOCK_RETRY or rack not in self._refused_since:
            self._refused_since[rack] = now
        self._refused[rack] = now

    def lock(self, rack: str) -> RackLock:
        """How the lock of one rack stands."""
        holder = self.holders.get(rack, "")
        record = self.records.get(rack)
        if not holder:
            return RackLock()
        if record is not None and record.session == holder:
            return RackLock(holder="ours", session=holder, since=record.since)
        session = self.sessions.get(holder)
        return RackLock(
            holder="other",
            session=holder,
            node=session.node if session else "",
            since=self._held_since.get(rack, 0.0),
            record_error=self._spoiled.get(rack, ""),
            record_key=f"{self._prefix}{rack}/record",
        )

    def locks(self, now: float) -> dict[str, RackLock]:
        """Every lock that is known. What is refused though nobody holds it is in its lock-delay: locked by others."""
        found = {rack: self.lock(rack) for rack in {*self.holders, *self.records}}
        for rack, at in self._refused.items():
            if now - at < LOCK_RETRY and rack not in self.holders:
                found[rack] = RackLock(holder="other", session=DELAYED, since=self._refused_since[rack])
        return found

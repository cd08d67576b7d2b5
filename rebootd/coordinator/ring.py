"""The history of events: a fixed ring in the store, a longer one in memory, and its followers."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

import msgspec
import structlog

from rebootd.coordinator.records import decode, encode
from rebootd.core.model import Event
from rebootd.store.port import Op, Set
from rebootd.store.writer import SEAL_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from rebootd.coordinator.records import Keys
    from rebootd.store.port import Entry

log = structlog.get_logger(__name__)

SLOTS = 256
"""Chunks that are kept in the store. A chunk holds the events of one transaction."""
IN_MEMORY = 10_000
"""Events that a leader keeps at hand."""
CHUNK_BYTES = (SEAL_BYTES - 400) * 3 // 4
"""A chunk has at most so many bytes: as base64 it fills what the writer keeps free, and the ring stays below 16 MB."""
SHORT = 80
"""Characters that are left of each text when a chunk would be longer."""


class Chunk(msgspec.Struct, frozen=True):
    """The value of one slot: its number in the history (never reused) and its events."""

    number: int
    events: tuple[Event, ...]


class Ring:
    """Numbers events, hands chunks to the writer, and tells followers what has landed."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._number = 0
        self._seq = 0
        self._events: deque[Event] = deque(maxlen=IN_MEMORY)
        self._followers: set[asyncio.Queue[Event | None]] = set()
        self._closed = False

    def load(self, entries: Iterable[Entry]) -> None:
        """Takes over what an earlier leader left; an unreadable slot is skipped and logged."""
        chunks = []
        for entry in entries:
            try:
                chunks.append(decode(entry.value, Chunk))
            except msgspec.MsgspecError as error:
                log.warning("event-slot-unreadable", key=entry.key, error=str(error))
        for chunk in sorted(chunks, key=lambda c: c.number):
            self._events.extend(chunk.events)
            self._number = max(self._number, chunk.number)
            self._seq = max([self._seq, *(e.seq for e in chunk.events)])
        if chunks:
            # Refusals are told but not stored, and had numbers too: whoever asks this leader for what came after one of
            # those must not miss what is stored from now on.
            self._seq += IN_MEMORY

    def number(self, events: Iterable[Event]) -> tuple[Event, ...]:
        """The same events with their place in the history."""
        out = []
        for event in events:
            self._seq += 1
            out.append(msgspec.structs.replace(event, seq=self._seq))
        return tuple(out)

    def chunk(self, events: tuple[Event, ...]) -> Op | None:
        """The write that keeps ``events``; rides in the transaction whose events they are."""
        if not events:
            return None
        self._number += 1
        value = encode(Chunk(self._number, events))
        if len(value) > CHUNK_BYTES:
            value = encode(Chunk(self._number, _fitting([_short(e) for e in events])))
        return Set(key=self._keys.event_slot(self._number % SLOTS), value=value)

    def publish(self, events: Iterable[Event]) -> None:
        """These events have landed: logged, kept, and told to every follower."""
        for event in events:
            self._events.append(event)
            log.info(
                "event",
                kind=event.kind,
                seq=event.seq,
                machine=event.machine,
                rack=event.rack,
                frm=event.frm,
                to=event.to,
                cause=event.cause,
                cycle=event.cycle,
                epoch=event.epoch,
                detail=event.detail,
                request=event.request,
            )
            for queue in list(self._followers):
                if queue.full():
                    # A follower that does not read is cut off; it never slows the leader.
                    self._followers.discard(queue)
                    queue.get_nowait()
                    queue.put_nowait(None)
                else:
                    queue.put_nowait(event)

    def recent(self, limit: int) -> list[Event]:
        """The newest events, oldest first."""
        return list(self._events)[-limit:] if limit > 0 else []

    async def follow(self, limit: int) -> AsyncIterator[Event]:
        """The newest ``limit`` events, then each new one until the ring is closed."""
        queue: asyncio.Queue[Event | None] = asyncio.Queue(maxsize=IN_MEMORY)
        past = self.recent(limit)
        if self._closed:
            return
        self._followers.add(queue)
        try:
            for event in past:
                yield event
            while (item := await queue.get()) is not None:
                yield item
        finally:
            self._followers.discard(queue)

    def close(self) -> None:
        """Ends every follower."""
        self._closed = True
        for queue in self._followers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(None)


def _short(event: Event) -> Event:
    """The event with no text longer than SHORT characters, so that it has a few kB at most."""
    said = msgspec.structs.asdict(event)
    return msgspec.structs.replace(
        event, **{k: v[:SHORT] for k, v in said.items() if isinstance(v, str) and len(v) > SHORT}
    )


def _fitting(events: list[Event]) -> tuple[Event, ...]:
    """The newest of them that fit into a chunk, behind one that says how many are left out."""
    room = CHUNK_BYTES - 500
    kept = len(events)
    while kept and (room := room - len(encode(events[kept - 1])) - 1) >= 0:
        kept -= 1
    if not kept:
        return tuple(events)
    last = events[kept - 1]
    gap = Event(
        time=last.time,
        epoch=last.epoch,
        seq=last.seq,
        kind="gap",
        cause="left out",
        detail=f"{kept} events that landed together with the next ones were too long to be kept in the store",
    )
    return (gap, *events[kept:])

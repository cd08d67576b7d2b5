"""The epoch: a counter that each leadership raises in its first fenced transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import structlog

from rebootd.coordinator.records import Keys, decode, encode
from rebootd.core.errors import Unreachable
from rebootd.store.port import Set
from rebootd.store.writer import Blocked, Committed, FencedWriter, Step

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebootd.store.port import Store


log = structlog.get_logger(__name__)

BEYOND = 1000
"""More leaderships than can have been without a record that tells of them."""
HIGHEST = 2**50
"""Epochs stay far below what every JSON reader keeps exactly."""


class _Stamped(msgspec.Struct, frozen=True):
    epoch: int = 0


class Epoch(msgspec.Struct, frozen=True):
    """The value of the epoch key."""

    epoch: int
    leader: str
    write_id: str = ""


async def raise_epoch(store: Store, writer: FencedWriter, keys: Keys, leader: str, new_id: Callable[[], str]) -> int:
    """The first fenced write of a leadership: nobody with a lower epoch is to be believed from here on.

    Raises StoreErrors when the store cannot be read or the epoch not be raised, FenceLost when leadership is gone.
    """
    while True:
        entry = await store.get(keys.epoch, consistent=True)
        last = _epoch_in(entry.value, Epoch) if entry is not None else None
        if last is None:
            # Agents believe no epoch below the highest that they have seen, so it cannot begin anew.
            last = await _found(store, keys)
            if last or entry is not None:
                last += BEYOND
                log.error("epoch-lost", key=keys.epoch, going_on_from=last)
        mine = Epoch(last + 1, leader, new_id())
        op = Set(key=keys.epoch, value=encode(mine), cas=entry.modify_index if entry else 0)
        [outcome] = await writer.commit([Step(ops=(op,))])
        if isinstance(outcome, Committed):
            return mine.epoch
        if isinstance(outcome, Blocked):
            raise Unreachable(f"the epoch cannot be raised: {outcome.reason}")


def _epoch_in(value: bytes, kind: type[Epoch] | type[_Stamped]) -> int | None:
    try:
        epoch = decode(value, kind).epoch
    except msgspec.MsgspecError:
        return None
    return epoch if 0 <= epoch < HIGHEST else None


async def _found(store: Store, keys: Keys) -> int:
    """The highest epoch that any record tells of."""
    entries, _ = await store.list(keys.prefix, consistent=True)
    return max((_epoch_in(entry.value, _Stamped) or 0 for entry in entries), default=0)

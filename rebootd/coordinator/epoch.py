"""The epoch: a counter that each leadership raises in its first fenced transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from rebootd.coordinator.records import Keys, decode, encode
from rebootd.core.errors import Unreachable
from rebootd.store.port import Set
from rebootd.store.writer import Blocked, Committed, FencedWriter, Step

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebootd.store.port import Store


class Epoch(msgspec.Struct, frozen=True):
    """The value of the epoch key."""

    epoch: int
    leader: str
    write_id: str = ""


async def raise_epoch(store: Store, writer: FencedWriter, keys: Keys, leader: str, new_id: Callable[[], str]) -> int:
    """The first fenced write of a leadership: nobody with a lower epoch is to be believed from here on.

    Raises Unreachable when the present epoch cannot be read or raised, FenceLost when leadership is gone.
    """
    while True:
        entry = await store.get(keys.epoch, consistent=True)
        last = 0
        if entry is not None:
            try:
                last = decode(entry.value, Epoch).epoch
            except msgspec.MsgspecError as error:
                raise Unreachable(f"{keys.epoch} cannot be read: {error}") from error
        mine = Epoch(last + 1, leader, new_id())
        op = Set(key=keys.epoch, value=encode(mine), cas=entry.modify_index if entry else 0)
        [outcome] = await writer.commit([Step(ops=(op,))])
        if isinstance(outcome, Committed):
            return mine.epoch
        if isinstance(outcome, Blocked):
            raise Unreachable(f"the epoch cannot be raised: {outcome.reason}")

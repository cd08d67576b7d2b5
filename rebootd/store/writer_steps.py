"""Steps and their outcomes, and how steps are packed into transactions."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

import msgspec

from rebootd.core.errors import Failed, RebootdError
from rebootd.store.port import (
    MAX_BODY,
    MAX_OPS,
    CheckIndex,
    CheckNotExists,
    CheckSession,
    Delete,
    Lock,
    Op,
    Set,
    Unlock,
)

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Sequence

OP_BYTES = 200
"""Bytes of JSON around key and value: the verb, two 20-digit numbers, a session id, the braces."""

# A union that is written at its place of use is built anew each time; ten thousand steps feel that.
VALUED = (Set, Lock, Unlock)
WRITES = (*VALUED, Delete)

Guard = CheckIndex | CheckNotExists | CheckSession


class Late(Protocol):
    """One more operation of a step, made only when its transaction is about to be sent.

    No two steps whose late operations write the same ``key`` are ever out at the same time, so each can say what
    follows from the one before it. ``size`` is how many bytes its value may take.
    """

    key: str
    size: int

    async def make(self) -> Op | None:
        """The operation (None: none is needed). Raises ``RebootdError``: then the step is dropped for that reason."""
        ...

    def ended(self, outcome: Outcome) -> None:
        """What became of the step; called at once, before any other step with the same key is made."""
        ...


class Step(msgspec.Struct, frozen=True):
    """Operations that must land together, and what must hold for them.

    At least one of ``ops`` is a Set or Delete with ``cas``; record writes carry a fresh ``write_id``
    in their JSON value. Steps of different ``lane`` never share a transaction. ``note`` is the
    caller's own (the events of this step, for ``seal``); the writer does not look at it. ``late`` adds an operation
    when the step's turn has come.
    """

    ops: tuple[Op, ...]
    guards: tuple[Guard, ...] = ()
    lane: str = ""
    note: object = None
    late: Late | None = None


class Committed(msgspec.Struct, frozen=True):
    """The step landed. ``indexes``: the ModifyIndex of each key that it wrote (not of deleted ones).

    An index of 0 says that the step landed and that its record was edited by others since: reload it.
    """

    indexes: dict[str, int]


class Dropped(msgspec.Struct, frozen=True):
    """The step did not land: reload its records before judging anew, their indexes may have moved.

    ``failed`` are its own refused operations, counted through ``(*guards, *ops)``. ``settled`` False:
    an earlier send got no answer and might in theory still land (see :mod:`rebootd.store.writer`).
    """

    failed: tuple[Failed, ...]
    settled: bool = True


class Blocked(msgspec.Struct, frozen=True):
    """The store denied the step (ACL): alarm and try again later. ``settled`` as for Dropped."""

    reason: str
    settled: bool = True


Outcome = Committed | Dropped | Blocked


class Batch:
    """The steps of one ``commit`` call; ``future`` gets their outcomes in order when all are known."""

    __slots__ = ("_left", "_outcomes", "future")

    def __init__(self, size: int, future: asyncio.Future[list[Outcome]]) -> None:
        self.future = future
        self._outcomes: list[Outcome | None] = [None] * size
        self._left = size

    def put(self, position: int, outcome: Outcome) -> None:
        """Notes one outcome."""
        self._outcomes[position] = outcome
        self._left -= 1
        if not self._left and not self.future.done():
            self.future.set_result([outcome for outcome in self._outcomes if outcome is not None])


class Item:
    """One step on its way: where its outcome goes, its keys (True: it writes it) and its size."""

    __slots__ = ("batch", "guards", "keys", "ops", "position", "size", "step", "waits")

    def __init__(self, step: Step, batch: Batch, position: int) -> None:
        self.step = step
        self.batch = batch
        self.position = position
        self.ops = step.ops
        self.guards = step.guards
        self.keys: dict[str, bool] = {}
        self.size = 0
        for guard in step.guards:
            self.keys[guard.key] = False
            self.size += op_size(guard)
        for op in step.ops:
            self.keys[op.key] = isinstance(op, WRITES) or self.keys.get(op.key, False)
            self.size += op_size(op)
        if step.late is not None:
            self.keys[step.late.key] = True
            self.size += OP_BYTES + len(step.late.key) + 4 * (step.late.size // 3 + 1)
        self.waits = 0

    @property
    def room(self) -> int:
        """How many operations it takes beside its guards."""
        return len(self.step.ops) + (self.step.late is not None)

    async def complete(self) -> bool:
        """Makes its late operation, once. False: it cannot be made, and the step is dropped."""
        late = self.step.late
        if late is None or len(self.ops) > len(self.step.ops):
            return True
        try:
            made = await late.make()
        except RebootdError as error:
            self.resolve(Dropped((Failed(0, "other", str(error)),)))
            return False
        if made is not None:
            self.ops = (*self.step.ops, made)
        return True

    def resolve(self, outcome: Outcome) -> None:
        """Tells the caller."""
        if self.step.late is not None:
            self.step.late.ended(outcome)
        self.batch.put(self.position, outcome)


def op_size(op: Op) -> int:
    """Bytes of encoded body that ``op`` takes at most: its value as base64, its key as a JSON string."""
    key = len(op.key) if op.key.isascii() else 6 * len(op.key)
    if isinstance(op, VALUED):
        return OP_BYTES + key + 4 * (len(op.value) // 3 + 1)
    return OP_BYTES + key


class _Key:
    """Who uses one key: many readers or one writer; the others wait in order."""

    __slots__ = ("readers", "waiting", "writer")

    def __init__(self) -> None:
        self.readers = 0
        self.writer = False
        self.waiting: deque[tuple[Item, bool]] = deque()

    def take(self, write: bool) -> bool:
        if self.writer or (write and self.readers):
            return False
        self.writer = write
        self.readers += not write
        return True


_NONE: frozenset[Op] = frozenset()


class Queue:
    """Steps that wait for their transaction: first come first served in each lane, lanes in turn.

    No two steps of which one writes a key that the other reads or writes are out at the same time,
    in one transaction or in two: the second waits until the first is done. All work is linear in
    the number of steps and of keys they name.
    """

    def __init__(self, ops: int = MAX_OPS, body: int = MAX_BODY) -> None:
        self.max_ops = ops
        self.max_body = body
        self._lanes: dict[str, deque[Item]] = {}
        self._keys: dict[str, _Key] = {}

    def fits(self, item: Item) -> bool:
        """Whether the step fits into a transaction of its own."""
        ops = item.room + len(item.guards)
        if ops > self.max_ops:
            ops = item.room + len(set(item.guards))
        return ops <= self.max_ops and item.size <= self.max_body

    def add(self, item: Item) -> None:
        """Queues a step behind all that were added before."""
        for name, write in item.keys.items():
            key = self._keys.get(name)
            if key is None:
                key = self._keys[name] = _Key()
            if key.waiting or not key.take(write):
                key.waiting.append((item, write))
                item.waits += 1
        if not item.waits:
            self._lanes.setdefault(item.step.lane, deque()).append(item)

    def release(self, items: Iterable[Item]) -> None:
        """The keys of these steps are free again."""
        for item in items:
            for name, write in item.keys.items():
                self._release(name, write)

    def _release(self, name: str, write: bool) -> None:
        key = self._keys[name]
        if write:
            key.writer = False
        else:
            key.readers -= 1
        while key.waiting and key.take(key.waiting[0][1]):
            item, _ = key.waiting.popleft()
            item.waits -= 1
            if not item.waits:
                self._lanes.setdefault(item.step.lane, deque()).append(item)
        if not (key.writer or key.readers or key.waiting):
            del self._keys[name]

    def take(self) -> list[Item]:
        """The steps of the next transaction; empty when none is ready."""
        while self._lanes:
            lane = next(iter(self._lanes))
            ready = self._lanes.pop(lane)
            items, gone = self._pack(ready)
            if ready:
                self._lanes[lane] = ready  # behind the other lanes
            self.release(gone)
            if items:
                return items
        return []

    def _pack(self, ready: deque[Item]) -> tuple[list[Item], list[Item]]:
        items: list[Item] = []
        gone: list[Item] = []
        guards: set[Op] = set()
        ops, body = self.max_ops, self.max_body
        while ready:
            item = ready[0]
            if item.batch.future.done():  # its caller was cancelled: nobody would hear of it
                gone.append(ready.popleft())
                continue
            new = set(item.guards) - guards if item.guards else _NONE
            ops -= item.room + len(new)
            body -= item.size
            if ops < 0 or body < 0:
                break
            guards |= new
            items.append(ready.popleft())
        return items, gone


def transaction(fence: CheckSession, items: Sequence[Item], seal: Op | None) -> tuple[Op, ...]:
    """Fence, guards (each once), operations, seal."""
    guards = dict.fromkeys(guard for item in items for guard in item.guards)
    return (fence, *guards, *(op for item in items for op in item.ops), *((seal,) if seal else ()))


def blame(items: Sequence[Item], failed: Iterable[Failed]) -> dict[Item, list[Failed]]:
    """Which steps the refused operations of :func:`transaction` belong to, with their own positions.

    A guard belongs to every step that named it; fence and seal belong to none.
    """
    guards = dict.fromkeys(guard for item in items for guard in item.guards)
    guard_at = {1 + i: guard for i, guard in enumerate(guards)}
    op_at: dict[int, tuple[Item, int]] = {}
    position = 1 + len(guards)
    for item in items:
        for i in range(len(item.ops)):
            op_at[position + i] = (item, len(item.guards) + i)
        position += len(item.ops)
    found: dict[Item, list[Failed]] = {}
    for failure in failed:
        if failure.index in op_at:
            item, own = op_at[failure.index]
            found.setdefault(item, []).append(Failed(own, failure.reason, failure.what))
        elif guard := guard_at.get(failure.index):
            for item in items:
                if guard in item.guards:
                    own = item.guards.index(guard)
                    found.setdefault(item, []).append(Failed(own, failure.reason, failure.what))
    return found

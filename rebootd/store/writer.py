"""The one way by which a leader writes: steps, packed into fenced transactions, settled without doubt.

Every transaction begins with the fence: ``check-session`` on the leader key. If the fence is refused, we lead no
longer: :class:`~rebootd.core.errors.FenceLost`, and no session but ours can pass that fence again, so nothing that is
still on its way can land either.

**One answer.** A transaction lands as a whole or not at all. Refused means: the steps whose own operation or guard was
refused are dropped, and the rest is sent again without them.

**No answer.** ``OutcomeUnknown`` means that it may have landed, or may land later. A read proves nothing (it may land
after the read), so the *same* operations are sent again until there is an answer:

1. It is committed. Then no earlier send landed before (its ``cas`` indexes still stood) and none can land after (they
   stand no more). The indexes are those of this answer.
2. It is refused. Then either an earlier send landed, and moved the indexes that this one asked for; or none landed,
   and something else is in the way. The operations that were refused do not tell: a ``lock`` by the same session passes
   twice, a key that must not exist may have been created since. The records do: each carries the write id of the last
   write. They are read *after* the refusal and consistently. One record with our write id proves that all of the
   transaction landed; one record at the index we asked for proves that none of it had. A record with a third writer's
   id says nothing, the next one is asked. (Nobody else overwrites a record under our fence but people with a shell.)
3. It is refused, and had not landed: could an earlier send still land? Not if some ``cas`` or ``check-index`` with an
   index above 0 was refused: an index that a key has left does not come back. But if only a guard was in the way (a
   halt, a lock), and it goes away, a send that was delayed on the way passes. So before a step is reported dropped, one
   of its records is touched: written again with the value it has and one flag bit flipped, under ``cas``. If the touch
   lands, the old form is dead. If the touch finds the index moved, the record is asked once more whose write it was.

So what is sent with fewer steps never competes with an earlier form that holds more, except for one kind of step:
one that writes no existing key (only creates), refused by something else than an index after an answer was lost. There
is nothing to touch. It is reported dropped with ``settled=False``; should it land after all, the key is there
with its write id, and the next write to it with ``cas=0`` is refused and finds it.

Also when no answer was lost, a refusal in which *every* cas failed is checked against the write ids: something
between us and the store (a proxy, an HTTP client) may have sent the same request twice.

Denied operations block their step and nothing else; they don't depose. A read that is denied leaves ``settled=False``.

Transactions are cut at MAX_OPS and MAX_BODY; at most ``concurrency`` are out at once, never two that touch the same
key. Steps that are handed in while all are out share the next ones, whoever handed them in (group commit).
"""

from __future__ import annotations

import asyncio
import random
from functools import partial
from typing import TYPE_CHECKING

import structlog

from rebootd.core.errors import Conflict, Denied, Failed, FenceLost, OutcomeUnknown, Refused, TooLarge, Unreachable
from rebootd.store.port import MAX_BODY, MAX_OPS, CheckSession, Delete, Entry, Op, Set, Store
from rebootd.store.writer_proof import is_dead, looks_landed, witnesses
from rebootd.store.writer_steps import (
    VALUED,
    Batch,
    Blocked,
    Committed,
    Dropped,
    Guard,
    Item,
    Outcome,
    Queue,
    Step,
    blame,
    op_size,
    transaction,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Blocked", "Committed", "Dropped", "FencedWriter", "Guard", "Outcome", "Step"]

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 2.0
SEAL_BYTES = 80_400
"""Bytes of body kept free for what ``seal`` appends: it must not be more, key and base64 included."""
SEAL_TRIES = 3

log = structlog.get_logger(__name__)

Refusal = Conflict | Denied | TooLarge | Refused
_UNFIT = (TooLarge, Refused)
"""The store takes no such request: found out which step it is by halves, and that one is dropped."""
_WITH_CAS = (Set, Delete)


class FencedWriter:
    """Commits steps for the holder of ``leader_key``; used from one event loop, closed once.

    ``new_write_id`` is kept as an attribute for those who write records. ``seal`` gets the steps of
    each transaction and may return one more operation for it (a chunk of events); it is called
    anew for each form that is sent, and what it returned for a refused form did not land.
    ``on_commit`` gets seconds, operations and outcome of every attempt: ``committed``, ``refused``,
    ``unknown``, ``unsent``, ``denied`` or ``too-large``. ``timeout`` is that of one attempt, in seconds.
    """

    def __init__(
        self,
        store: Store,
        leader_key: str,
        session: str,
        *,
        new_write_id: Callable[[], str],
        concurrency: int = 4,
        seal: Callable[[list[Step]], Op | None] | None = None,
        on_commit: Callable[[float, int, str], None] | None = None,
        timeout: float = 5.0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.new_write_id = new_write_id
        self._store = store
        self._fence = CheckSession(leader_key, session)
        self._concurrency = concurrency
        self._seal = seal
        self._on_commit = on_commit
        self._timeout = timeout
        self._jitter = jitter
        body = MAX_BODY - op_size(self._fence) - (SEAL_BYTES if seal else 0)
        self._queue = Queue(MAX_OPS - (2 if seal else 1), body)
        self._batches: set[Batch] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = ""
        self._pump_due = False

    @property
    def ended(self) -> str:
        """Why this writer writes no more, or ""."""
        return self._ended

    async def commit(self, steps: Sequence[Step]) -> list[Outcome]:
        """The outcome of each step, in order; returns when all are known, however long that takes.

        Raises ``FenceLost`` (also for steps that had landed already), ``ValueError`` (a step
        without ``cas``). When cancelled, steps that are not sent yet are not sent.
        """
        if self._ended:
            raise FenceLost(self._ended)
        for step in steps:
            if not any(isinstance(op, _WITH_CAS) and op.cas is not None for op in step.ops):
                raise ValueError("a step needs a Set or Delete with cas")
        if not steps:
            return []
        batch = Batch(len(steps), asyncio.get_running_loop().create_future())
        self._batches.add(batch)
        try:
            for position, step in enumerate(steps):
                item = Item(step, batch, position)
                if self._queue.fits(item):
                    self._queue.add(item)
                else:
                    item.resolve(Dropped((Failed(0, "other", "too large for one transaction"),)))
            self._pump_soon()
            return await batch.future
        finally:
            self._batches.discard(batch)

    async def close(self) -> None:
        """Ends all that is under way with ``FenceLost``; what was sent may still land."""
        self._end("the writer was closed")
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _end(self, why: str) -> None:
        self._ended = self._ended or why
        for batch in self._batches:
            if not batch.future.done():
                batch.future.set_exception(FenceLost(self._ended))
        for task in self._tasks - {asyncio.current_task()}:
            task.cancel()

    # --------------------------------------------------------------------------- from queue to transaction

    def _pump_soon(self) -> None:
        # At the end of this turn of the loop, so that callers of the same turn share transactions.
        if not self._pump_due:
            self._pump_due = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_due = False
        while not self._ended and len(self._tasks) < self._concurrency and (items := self._queue.take()):
            task = asyncio.create_task(self._drive(items))
            self._tasks.add(task)
            task.add_done_callback(partial(self._finished, items))

    def _finished(self, items: list[Item], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._queue.release(items)
        if not task.cancelled() and (bug := task.exception()):
            for item in items:
                if not item.batch.future.done():
                    item.batch.future.set_exception(bug)
        self._pump()

    async def _drive(self, items: list[Item], doubt: bool = False) -> None:
        """Sends ``items`` until each has its outcome. ``doubt``: an earlier form of them may still land."""
        seals = SEAL_TRIES
        items = [item for item in items if item.step.late is None or await item.complete()]
        while items:
            seal = self._seal([item.step for item in items]) if self._seal and seals else None
            ops = transaction(self._fence, items, seal)
            answer, unknown = await self._send(ops)
            doubt = doubt or unknown
            if isinstance(answer, dict):
                return _committed(items, answer)
            if isinstance(answer, _UNFIT) and len(items) > 1:
                await self._drive(items[: len(items) // 2], doubt)
                return await self._drive(items[len(items) // 2 :], doubt)
            failed = () if isinstance(answer, _UNFIT) else answer.failed
            if self._lost(failed):
                return None
            dropped = blame(items, failed)
            landed: int | None = None
            if doubt or looks_landed(ops, failed):
                landed, doubt = await self._settle(ops, failed, list(dropped), doubt)
            if landed is not None:
                return _committed(items, {op.key: landed for op in ops if isinstance(op, VALUED)})
            if self._ended:
                return None
            if seal and not dropped:
                seals -= 1
                log.warning("seal refused", key=seal.key, why=str(answer))
            items = _sort_out(items, answer, dropped, settled=not doubt, sealed=seal is not None)
        return None

    def _lost(self, failed: Sequence[Failed]) -> bool:
        fence = next((f for f in failed if f.index == 0 and f.reason != "denied"), None)
        if fence:
            log.warning("fence lost", key=self._fence.key, why=fence.what)
            self._end(fence.what)
        return fence is not None

    # ------------------------------------------------------------------------------- settling what is unknown

    async def _send(self, ops: Sequence[Op]) -> tuple[dict[str, int] | Refusal, bool]:
        """The first definite answer to ``ops``, and whether an attempt before it went unanswered."""
        unknown = False
        clock = asyncio.get_running_loop().time
        attempt = 0
        while True:
            began = clock()
            answer: dict[str, int] | Refusal | None = None
            try:
                answer = await self._store.commit(ops, timeout=self._timeout)
                outcome = "committed"
            except OutcomeUnknown:
                unknown, outcome = True, "unknown"
            except Unreachable:  # not even sent
                outcome = "unsent"
            except (Conflict, Denied, TooLarge, Refused) as refusal:
                answer, outcome = refusal, _OUTCOMES[type(refusal)]
            if self._on_commit:
                self._on_commit(clock() - began, len(ops), outcome)
            if answer is not None:
                return answer, unknown
            await self._pause(attempt)
            attempt += 1

    async def _pause(self, attempt: int) -> None:
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(attempt, 10))
        await asyncio.sleep(longest * (0.5 + self._jitter() / 2))

    async def _settle(
        self, ops: Sequence[Op], failed: Sequence[Failed], dropped: Sequence[Item], doubt: bool
    ) -> tuple[int | None, bool]:
        """The index at which a refused ``ops`` had landed (None: it had not), and whether doubt remains."""
        try:
            landed = await self._landed(ops)
            if landed is not None or not doubt or is_dead(ops, failed):
                return landed, False
            for op in (op for item in dropped for op in item.ops):
                if isinstance(op, _WITH_CAS) and op.cas:
                    return await self._kill(ops, op)
        except Denied as denied:
            log.warning("cannot tell whether a write landed", why=str(denied))
        return None, doubt

    async def _landed(self, ops: Sequence[Op]) -> int | None:
        edited: int | None = None
        for witness in witnesses(ops):
            verdict = witness.judge(await self._read(witness.op.key))
            if verdict == -1:
                return None
            if verdict:
                return verdict
            edited = edited if verdict is None else verdict
        return edited

    async def _kill(self, ops: Sequence[Op], op: Set | Delete) -> tuple[int | None, bool]:
        """Moves the index that ``ops`` needs of ``op.key``, so that no earlier send of ``ops`` can land."""
        entry = await self._read(op.key)
        if entry is not None and entry.modify_index == op.cas:
            answer, _ = await self._send((self._fence, Set(op.key, entry.value, op.cas, entry.flags ^ 1)))
            if isinstance(answer, dict):
                return None, False
            if not isinstance(answer, Conflict):
                return None, True
            if self._lost(answer.failed):
                return None, True
        return await self._landed(ops), False

    async def _read(self, key: str) -> Entry | None:
        attempt = 0
        while True:
            try:
                return await self._store.get(key, consistent=True, timeout=self._timeout)
            except Unreachable:
                await self._pause(attempt)
                attempt += 1


_OUTCOMES = {Conflict: "refused", Denied: "denied", TooLarge: "too-large", Refused: "refused"}


def _committed(items: Sequence[Item], indexes: dict[str, int]) -> None:
    for item in items:
        item.resolve(Committed({key: indexes[key] for key in item.keys if key in indexes}))


def _sort_out(
    items: list[Item], answer: Refusal, dropped: dict[Item, list[Failed]], *, settled: bool, sealed: bool
) -> list[Item]:
    """Gives refused steps their outcome; returns the others, to be sent again."""
    failed = () if isinstance(answer, _UNFIT) else answer.failed
    if isinstance(answer, Denied) and not failed:
        failed = (Failed(0, "denied", str(answer)),)
    if failed and failed[0].index == 0:
        dropped = {item: [failed[0]] for item in items}
    elif not dropped and not sealed:  # refused as a whole, for no reason that concerns one of them
        dropped = {item: [Failed(0, "other", str(answer))] for item in items}
    for item, own in dropped.items():
        denied = [f.what for f in own if f.reason == "denied"]
        item.resolve(Blocked(denied[0], settled) if denied else Dropped(tuple(own), settled))
    return [item for item in items if item not in dropped]

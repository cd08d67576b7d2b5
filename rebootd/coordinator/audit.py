"""The audit chain of one leadership: each change gets a line on the disk before, and a link in Consul when, it lands.

The order of things for one change: its entry goes into the file and is durable; the transaction that makes the change
sets the head in Consul to that entry's digest; an outcome line says what became of it. A daemon that dies in between
leaves an entry without an outcome, and the chain itself tells whether it was committed: it was, if the head or the next
entry names it.

Without a file (``--audit-log``) a leader goes on with a chain that another one began: its lines are in its log stream
only, and the verification names them as missing. Where no leader ever had a file there is no chain.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import structlog

from rebootd.coordinator.records import decode, encode
from rebootd.core import audit
from rebootd.core.audit import COMMITTED, Asked, Head, Kind, Line
from rebootd.core.errors import Refused, StoreError
from rebootd.store.port import Entry, Op, Set
from rebootd.store.writer import Committed, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebootd.coordinator.audit_file import AuditFile
    from rebootd.coordinator.fleet import Fleet
    from rebootd.coordinator.metrics import Metrics
    from rebootd.store.port import Store
    from rebootd.store.writer_steps import Late

log = structlog.get_logger(__name__)

LOOK_EVERY = 10.0
"""Seconds between two looks at the head in Consul, and between two attempts to write to a file that failed."""
HEAD_BYTES = 1024
FAULT = "audit"


class Chain:
    """While the file cannot be written (a fault of the ``fleet``), nothing new goes out and no operator changes
    anything; coming back is never delayed by it. ``broken`` says what this leader found wrong with the chain, ``""``:
    nothing.
    """

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        file: AuditFile | None,
        metrics: Metrics,
        *,
        leader: str,
        new_id: Callable[[], str],
        wall: Callable[[], float],
    ) -> None:
        self.key = fleet.keys.audit
        self.head = Head()
        self.broken = ""
        self.enabled = False
        self._store = store
        self._file = file
        self._metrics = metrics
        self._leader = leader
        self.epoch = 0
        self._new_id = new_id
        self._faults = fleet.faults
        self._wall = wall
        self._index: int | None = None
        self._sent: dict[str, Head] = {}
        self._busy = False

    async def load(self, epoch: int) -> None:
        """Learns the head that the last leader left. What is wrong with it is told, and the chain goes on."""
        self.epoch = epoch
        self._metrics.audit_broken.set(0)
        try:
            entry = await self._store.get(self.key, consistent=True)
        except StoreError as error:
            # Read again before the first change.
            self.enabled = self._file is not None
            log.warning("audit-head-unread", key=self.key, error=str(error))
            return
        self.enabled = self._file is not None or entry is not None
        self._begin(entry)

    def _begin(self, entry: Entry | None) -> None:
        found = _head(entry)
        self._index = entry.modify_index if entry is not None else 0
        seq, last = self._file.last if self._file is not None else (0, "")
        if found is not None and (found.seq, found.hash) != (seq, last) and found.seq <= seq:
            self._break(f"the head in Consul is entry {found.seq}, but our file has a committed entry {seq}")
        if found is None and (entry is not None or seq):
            self._break("the head in Consul is gone" if entry is None else "the head in Consul cannot be read")
        # Where the head is worth nothing, the chain goes on from the last entry that we know of ourselves.
        self.head = found if found is not None and found.seq >= seq else Head(seq=seq, hash=last)

    # --- what is written of what ---------------------------------------------------------

    def link(self, line: Line | None, *, needed: bool) -> Late | None:
        """What puts the line into the chain with its change; None when it gets no line.

        ``needed``: the change must not be made without it. Others are made all the same, and say so in the log.
        """
        if not self.enabled or line is None:
            return None
        return _Link(self, self._ours(line), needed)

    def refused(self, asked: Asked, why: str) -> None:
        """A change that was asked for and refused: a line in the file, and no link of the chain."""
        line = self._ours(audit.of_refusal(asked, why, self._wall()))
        tell(line, "")
        if self._file is not None:
            self._file.later(line)

    @property
    def problem(self) -> str:
        """Why our file cannot be written, or ``""``."""
        return self._file.problem if self._file is not None else ""

    def check(self) -> None:
        """Raises ``Refused`` while the file cannot be written."""
        if self.problem:
            raise Refused(f"{self.problem}; nothing new goes out of service meanwhile either")

    def _ours(self, line: Line) -> Line:
        return msgspec.structs.replace(line, epoch=self.epoch, leader=self._leader)

    # --- one link ------------------------------------------------------------------------

    async def write(self, line: Line) -> tuple[Line, str, Op]:
        """The line as the next entry, on the disk, its digest, and the operation that makes it the head.

        Raises ``Refused`` (the file), ``StoreError``.
        """
        self._busy = True
        try:
            if self._index is None:
                await self._read_again()
            line = msgspec.structs.replace(line, seq=self.head.seq + 1, prev=self.head.hash)
            raw = await self._on_disk(line)
        except BaseException:
            self._busy = False
            raise
        hash_ = audit.digest(raw)
        head = Head(
            seq=line.seq,
            hash=hash_,
            epoch=self.epoch,
            leader=self._leader,
            time=line.time,
            write_id=self._new_id(),
        )
        self._sent[hash_] = head
        return line, hash_, Set(key=self.key, value=encode(head), cas=self._index)

    async def _on_disk(self, line: Line) -> bytes:
        if self._file is None:
            return audit.encode_line(line)
        try:
            raw = await self._file.append(line)
        except Refused as error:
            self._fault(str(error))
            raise
        self._fault("")
        if self._file.tampered:
            self._break(self._file.tampered)
        return raw

    def ended(self, line: Line, hash_: str, outcome: Outcome) -> None:
        """Moves the head on if the entry was committed, and writes its outcome."""
        self._busy = False
        if isinstance(outcome, Committed):
            self.head = self._sent[hash_]
            self._sent.clear()
            self._index = outcome.indexes.get(self.key) or None
            result = COMMITTED
        else:
            # The head may be what was in the way: read it before the next one is written.
            self._index = None
            why = "; ".join(f.what for f in outcome.failed) if hasattr(outcome, "failed") else outcome.reason
            result = f"not committed: {why[:500]}"
            if outcome.settled:
                self._sent.pop(hash_, None)
        self._metrics.audit_entries.labels("committed" if result == COMMITTED else "not committed").inc()
        tell(line, hash_, result)
        if self._file is not None:
            told = Line(kind=Kind.OUTCOME, time=self._wall(), seq=line.seq, of=hash_, result=result)
            self._file.later(self._ours(told))

    async def _read_again(self) -> None:
        entry = await self._store.get(self.key, consistent=True)
        if self._index is None and not self.head.seq and not self._sent:
            self._begin(entry)
            return
        self._judge(entry)
        self._index = entry.modify_index if entry is not None else 0

    def _judge(self, entry: Entry | None) -> None:
        found = _head(entry)
        if found is not None and found.hash in self._sent:
            # It was not settled, and landed after all.
            self.head = self._sent[found.hash]
            self._sent.clear()
        elif found is None and not self.head.seq:
            return
        elif found is None or found.hash != self.head.hash:
            said = f"entry {found.seq}" if found is not None else "gone or unreadable"
            self._break(f"somebody changed the head in Consul: it is {said}, ours is entry {self.head.seq}")

    # --- watching ------------------------------------------------------------------------

    async def watch(self) -> None:
        """Until cancelled: looks whether the head is still ours, and whether a file that failed is well again."""
        while self.enabled:
            await asyncio.sleep(LOOK_EVERY)
            if self._file is not None and self._file.problem:
                await self._try_again(self._file)
            before = self.head
            try:
                entry = await self._store.get(self.key, consistent=True)
            except StoreError:
                continue
            if not self._busy and self.head is before and self._index is not None:
                self._judge(entry)

    async def _try_again(self, file: AuditFile) -> None:
        try:
            await file.append(self._ours(Line(kind=Kind.FILE, time=self._wall(), result="written again")))
        except Refused as error:
            self._fault(str(error))
        else:
            self._fault("")

    def _fault(self, what: str) -> None:
        self._metrics.audit_unwritable.set(1 if what else 0)
        if what:
            if self._faults.get(FAULT) != what:
                log.error("audit-log-unwritable", problem=what)
            self._faults[FAULT] = what
        elif self._faults.pop(FAULT, None) is not None:
            log.info("audit-log-writable-again")

    def _break(self, what: str) -> None:
        self._metrics.audit_broken.set(1)
        if not self.broken:
            log.error("audit-chain-broken", why=what)
        self.broken = self.broken or what


class _Link:
    """The late operation of one change."""

    def __init__(self, chain: Chain, line: Line, needed: bool) -> None:
        self.key = chain.key
        self.size = HEAD_BYTES
        self._chain = chain
        self._line = line
        self._hash = ""
        self._needed = needed

    async def make(self) -> Op | None:
        try:
            self._line, self._hash, op = await self._chain.write(self._line)
        except (Refused, StoreError) as error:
            if self._needed:
                raise
            log.warning("audit-entry-lost", what=self._line.what, machine=self._line.machine, error=str(error))
            return None
        return op

    def ended(self, outcome: Outcome) -> None:
        if self._hash:
            self._chain.ended(self._line, self._hash, outcome)


def _head(entry: Entry | None) -> Head | None:
    if entry is None:
        return None
    try:
        return decode(entry.value, Head)
    except msgspec.MsgspecError:
        return None


def tell(line: Line, hash_: str, result: str = "") -> None:
    """The same in the log stream, as a second copy: what is on a stolen disk is then still somewhere."""
    fields = {name: value for name, value in msgspec.to_builtins(line).items() if name != "above"}
    log.info("audit", hash=hash_, **(fields | ({"result": result} if result else {})))

"""The memory side of the store: a client of a modelled Consul that lives in this process.

It serves tests, the simulation and the demo without Consul. Its semantics are Consul's (see
:mod:`rebootd.store.memory_state`); its faults are set by hand (see :mod:`rebootd.store.memory_faults`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from rebootd.core.errors import Conflict, Denied, OutcomeUnknown, TooLarge, Unreachable
from rebootd.store.memory_faults import LOST_REPLY, NEVER, Fate, Faults, View, late
from rebootd.store.memory_state import NODES, MemoryConsul
from rebootd.store.port import MAX_BODY, MAX_OPS, CheckSession, Entry, Lock, Node, Op, Session, Set, Unlock

if TYPE_CHECKING:
    import builtins
    from collections.abc import Callable, Sequence

__all__ = ["LOST_REPLY", "NEVER", "Fate", "Faults", "MemoryConsul", "MemoryStore", "View", "late"]

T = TypeVar("T")


class MemoryStore:
    """One client of a :class:`MemoryConsul`; implements :class:`rebootd.store.port.Store`.

    ``node`` is the node whose agent it talks to (``""``: the cluster's default one).
    ``faults`` are this client's own; those of ``consul.faults`` hit every client.
    """

    def __init__(self, consul: MemoryConsul | None = None, *, node: str = "") -> None:
        self.consul = consul if consul is not None else MemoryConsul()
        self.node = node or self.consul.node
        self.faults = Faults()

    async def get(self, key: str, *, consistent: bool = False, timeout: float = 5.0) -> Entry | None:
        """One key, or None."""
        await self._reach(timeout)
        self._check_read(key)
        view = self._view(consistent)
        return (view.entries if view else self.consul.entries).get(key)

    async def list(
        self, prefix: str, *, consistent: bool = False, timeout: float = 30.0
    ) -> tuple[builtins.list[Entry], int]:
        """Every key under ``prefix`` (sorted by key) and the index to watch from."""
        await self._reach(timeout)
        self._check_read(prefix)
        return self._readable(*self.consul.listing(prefix, self._view(consistent)))

    async def watch(self, prefix: str, index: int, wait: float) -> tuple[builtins.list[Entry], int]:
        """Like ``list``, once something under ``prefix`` may have changed since ``index`` or ``wait`` is over."""
        await self._reach(wait)
        self._check_read(prefix)
        entries, now = await self._blocking(prefix, index, wait, lambda: self.consul.listing(prefix))
        return self._readable(entries, now)

    async def commit(self, ops: Sequence[Op], *, timeout: float = 5.0) -> dict[str, int]:
        """All of ``ops`` or none; see the port for what is raised."""
        ops = _checked(ops)
        fate = self.faults.fate(ops) or self.consul.faults.fate(ops) or Fate()
        if self._down():
            fate = NEVER
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[dict[str, int]] = loop.create_future()
        # What was sent lands even when the caller stops waiting for it or is cancelled.
        if fate.lands_after is not None:
            at = self._delay() + fate.lands_after
            if at > 0:
                loop.call_later(at, self._land, ops, answer)
            else:
                self._land(ops, answer)
        if not fate.reply:
            if self._hangs():
                await asyncio.sleep(timeout)
            await asyncio.sleep(0)
            raise OutcomeUnknown("no answer")
        await asyncio.wait([answer], timeout=timeout)
        if not answer.done() or self._down():
            raise OutcomeUnknown("no answer in time")
        return answer.result()

    async def create_session(
        self,
        name: str,
        *,
        node: str = "",
        ttl: float = 0.0,
        lock_delay: float = 0.0,
        checks: Sequence[str] = (),
        timeout: float = 5.0,
    ) -> str:
        """A new session's id."""
        await self._reach(timeout)
        session = Session(
            id="", name=name, node=node or self.node, lock_delay=lock_delay, ttl=ttl, checks=tuple(checks)
        )
        return self.consul.create_session(session)

    async def renew_session(self, session: str, *, timeout: float = 2.0) -> None:
        """Restarts the session's TTL. Raises ``SessionLost``."""
        await self._reach(timeout)
        self.consul.renew_session(session)

    async def destroy_session(self, session: str, *, timeout: float = 5.0) -> None:
        """Ends a session; it is no error if it is gone already."""
        await self._reach(timeout)
        self.consul.destroy_session(session)

    async def sessions(self, *, node: str = "", timeout: float = 5.0) -> builtins.list[Session]:
        """All sessions, or those of one node."""
        await self._reach(timeout)
        return [session for session in self.consul.sessions() if node in {"", session.node}]

    async def ensure_lock_node(self, name: str, *, timeout: float = 5.0) -> None:
        """Registers an external catalog node (idempotent)."""
        await self._reach(timeout)
        self.consul.register_external(name)

    async def watch_nodes(self, index: int, wait: float) -> tuple[builtins.list[Node], int]:
        """The catalog's nodes, once one may have changed since ``index`` or ``wait`` is over."""
        await self._reach(wait)
        return await self._blocking(NODES, index, wait, self.consul.node_listing)

    async def close(self) -> None:
        """Nothing to end: there are no connections."""

    def _land(self, ops: Sequence[Op], answer: asyncio.Future[dict[str, int]]) -> None:
        faults = self.faults, self.consul.faults
        if self.consul.faults.unavailable:
            answer.set_exception(OutcomeUnknown("no quorum"))
            answer.exception()
            return
        denied = faults[0].denied + faults[1].denied
        unreadable = faults[0].unreadable + faults[1].unreadable
        try:
            written = self.consul.apply(ops, denied=denied, unreadable=unreadable)
        except (Conflict, Denied) as refusal:
            answer.set_exception(refusal)
            answer.exception()  # nobody may be listening any more
        else:
            answer.set_result(written)

    async def _blocking(
        self, what: str, index: int, wait: float, look: Callable[[], tuple[builtins.list[T], int]]
    ) -> tuple[builtins.list[T], int]:
        loop = asyncio.get_running_loop()
        until = loop.time() + wait
        found, now = look()
        while index and now == index and (left := until - loop.time()) > 0:
            await self.consul.changed(what, left)
            if self._down():
                raise Unreachable("connection lost")
            found, now = look()
        return found, 0 if now < index else now

    async def _reach(self, timeout: float) -> None:
        if self._hangs() or self._delay() > timeout:
            await asyncio.sleep(timeout)
            raise Unreachable("no answer in time")
        await asyncio.sleep(self._delay())
        if self._down():
            raise Unreachable("no answer")

    def _down(self) -> bool:
        return any(f.unavailable or f.partitioned for f in (self.faults, self.consul.faults))

    def _hangs(self) -> bool:
        return self.faults.partitioned or self.consul.faults.partitioned

    def _delay(self) -> float:
        return self.faults.delay + self.consul.faults.delay

    def _view(self, consistent: bool) -> View | None:
        return None if consistent else self.faults.stale or self.consul.faults.stale

    def _check_read(self, key: str) -> None:
        if key.startswith(self.faults.unreadable + self.consul.faults.unreadable):
            raise Denied("Permission denied")

    def _readable(self, entries: builtins.list[Entry], index: int) -> tuple[builtins.list[Entry], int]:
        hidden = self.faults.unreadable + self.consul.faults.unreadable
        # Consul filters what may not be read out of a listing instead of refusing it.
        return [entry for entry in entries if not entry.key.startswith(hidden)] if hidden else entries, index


def _checked(ops: Sequence[Op]) -> tuple[Op, ...]:
    if len(ops) > MAX_OPS:
        raise ValueError(f"{len(ops)} operations; a transaction may have {MAX_OPS}")
    if any(not op.key or op.key.startswith("/") for op in ops):
        raise ValueError("a key is empty or starts with a slash")
    if any(isinstance(op, CheckSession | Lock | Unlock) and not op.session for op in ops):
        raise ValueError("an operation names an empty session")
    if sum(len(op.value) for op in ops if isinstance(op, Set | Lock | Unlock)) * 4 // 3 > MAX_BODY:
        raise TooLarge(f"a transaction may have {MAX_BODY} bytes of body")
    return tuple(ops)

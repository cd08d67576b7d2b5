"""The port: what the coordinator may ask of a store, and what the answers mean.

Both sides (:mod:`rebootd.store.memory`, :mod:`rebootd.store.consul`) pass one contract suite. The
semantics are Consul's (KV, sessions, transactions; see its API pages "KV Store", "Sessions" and
"Transactions"), in their stale-free form: a commit is atomic, and a refused one changed nothing.

Keys are full keys without a leading slash. Indexes are Consul's ModifyIndex. Times and durations
are seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    import builtins
    from collections.abc import Sequence

MAX_OPS = 64
"""Operations in one transaction, checks included (Consul's limit)."""
MAX_BODY = 400_000
"""Bytes of encoded body that a transaction may have; Consul answers 413 beyond 512 kB [measured]."""
LOCK_FLAGS = 3304740253564472344
"""The flags that the ``consul lock`` command uses; a lock key without them is not its own."""


class Entry(msgspec.Struct, frozen=True):
    """One key as it stood when it was read; ``session`` is the lock's holder or ``""``."""

    key: str
    value: bytes
    modify_index: int
    flags: int = 0
    session: str = ""
    lock_index: int = 0


class Set(msgspec.Struct, frozen=True, tag=True):
    """Write a value. ``cas`` None: always; 0: only if absent; else only at that ModifyIndex."""

    key: str
    value: bytes
    cas: int | None = None
    flags: int = 0


class Delete(msgspec.Struct, frozen=True, tag=True):
    """Delete a key. ``cas`` as for :class:`Set` (0 is not meaningful here)."""

    key: str
    cas: int | None = None


class Lock(msgspec.Struct, frozen=True, tag=True):
    """Take the lock at ``key`` for ``session``; refused when another session holds it."""

    key: str
    value: bytes
    session: str
    flags: int = LOCK_FLAGS


class Unlock(msgspec.Struct, frozen=True, tag=True):
    """Give up the lock at ``key``; refused when ``session`` does not hold it."""

    key: str
    value: bytes
    session: str
    flags: int = LOCK_FLAGS


class CheckSession(msgspec.Struct, frozen=True, tag=True):
    """Refuse the transaction unless ``session`` holds the lock at ``key``.

    An empty session is a programming error (``ValueError``): Consul lets it pass on an unlocked
    key [measured].
    """

    key: str
    session: str


class CheckIndex(msgspec.Struct, frozen=True, tag=True):
    """Refuse the transaction unless ``key`` exists at exactly ``index``."""

    key: str
    index: int


class CheckNotExists(msgspec.Struct, frozen=True, tag=True):
    """Refuse the transaction if ``key`` exists."""

    key: str


Op = Set | Delete | Lock | Unlock | CheckSession | CheckIndex | CheckNotExists


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A session as the store knows it."""

    id: str
    name: str = ""
    node: str = ""
    lock_delay: float = 0.0
    ttl: float = 0.0
    checks: tuple[str, ...] = ()


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A node of the catalog: its name and its meta (``rack`` among it)."""

    name: str
    address: str = ""
    meta: dict[str, str] = {}


class Store(Protocol):
    """A place for keys, locks and sessions with Consul's semantics.

    Reads raise :class:`~rebootd.core.errors.Unreachable` or
    :class:`~rebootd.core.errors.Denied`. ``commit`` raises what is listed there. Every call takes
    at most ``timeout`` seconds.
    """

    async def get(self, key: str, *, consistent: bool = False, timeout: float = 5.0) -> Entry | None:
        """One key, or None. ``consistent`` asks the leader to prove that it still leads."""
        ...

    async def list(
        self, prefix: str, *, consistent: bool = False, timeout: float = 30.0
    ) -> tuple[builtins.list[Entry], int]:
        """Every key under ``prefix`` (sorted by key) and the index to watch from."""
        ...

    async def watch(self, prefix: str, index: int, wait: float) -> tuple[builtins.list[Entry], int]:
        """Like ``list``, but returns only when something under ``prefix`` may have changed since
        ``index``, or after about ``wait`` seconds. Spurious returns are allowed. An index that went
        backwards is returned as 0, as Consul's page on blocking queries asks for.
        """
        ...

    async def commit(self, ops: Sequence[Op], *, timeout: float = 5.0) -> dict[str, int]:
        """All of ``ops`` or none; returns the new ModifyIndex of each key written.

        Raises ``Conflict`` (definitely refused, nothing changed; says which operations),
        ``Denied`` (when every failed operation was denied), ``OutcomeUnknown`` (may still land),
        ``TooLarge``, ``ValueError`` (too many operations, an empty session).
        """
        ...

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
        """A new session's id. ``node`` "" is the local agent's. ``checks`` are check ids on that
        node (exactly these; none when empty). Raises ``Unreachable``, ``Denied``, ``Refused`` (a
        check that is missing or critical).
        """
        ...

    async def renew_session(self, session: str, *, timeout: float = 2.0) -> None:
        """Proves that the session lives and restarts its TTL. Raises ``SessionLost``."""
        ...

    async def destroy_session(self, session: str, *, timeout: float = 5.0) -> None:
        """Ends a session; it is no error if it is gone already."""
        ...

    async def sessions(self, *, node: str = "", timeout: float = 5.0) -> builtins.list[Session]:
        """All sessions, or those of one node."""
        ...

    async def ensure_lock_node(self, name: str, *, timeout: float = 5.0) -> None:
        """Registers an external catalog node that lock sessions can sit on (idempotent)."""
        ...

    async def watch_nodes(self, index: int, wait: float) -> tuple[builtins.list[Node], int]:
        """The nodes of the catalog, with their meta, and the index to watch from.

        Once one may have come, gone or changed since ``index`` (0: at once), or ``wait`` seconds are over.
        """
        ...

    async def close(self) -> None:
        """Ends every connection."""
        ...

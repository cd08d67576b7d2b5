"""The state of a modelled Consul cluster: keys, sessions, checks, nodes and one raft index.

Every rule here was read off Consul 1.8.7 and is held to it by the contract suite. Those that surprise:

- a write that changes nothing (same value, flags, session) keeps the ModifyIndex;
- ``set`` and ``cas`` on a locked key keep the lock but reset LockIndex to 0;
- ``delete-cas`` of an absent key passes, ``cas`` with a non-zero index on one is refused;
- ``check-session`` with an empty session passes on an unlocked key (the port forbids it);
- lock-delay begins when a session that holds the key ends, not at unlock; it outlives the key's deletion,
  and a transaction refused for it says nothing about its other operations;
- a check bound to a session that is removed ends the session as a critical one does.

Time and timers come from the running event loop.
"""

from __future__ import annotations

import asyncio
import uuid
from bisect import bisect_left
from typing import TYPE_CHECKING

import msgspec

from rebootd.core.errors import Conflict, Denied, Failed, Refused, SessionLost
from rebootd.store.memory_faults import Faults, View
from rebootd.store.port import (
    CheckIndex,
    CheckNotExists,
    CheckSession,
    Delete,
    Entry,
    Lock,
    Node,
    Op,
    Session,
    Set,
    Unlock,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

MIN_TTL = 10.0
MAX_TTL = 86_400.0
MAX_LOCK_DELAY = 60.0
KEPT_TOMBSTONES = 4096
WRITES = (Set, Lock, Unlock)
READS = (CheckIndex, CheckSession)
SERF = "serfHealth"
NODES = "\0nodes"
"""What waits for the catalog waits for this instead of a key."""


class MemoryConsul:
    """One cluster's state, shared by its clients. Methods without an underscore are for tests and simulation.

    ``node`` is the name of the agent that clients talk to by default. ``observers`` are called with
    the index and the operations of each transaction that was applied.
    """

    def __init__(
        self, *, node: str = "local", min_ttl: float = MIN_TTL, new_id: Callable[[], str] = lambda: str(uuid.uuid4())
    ) -> None:
        self.node = node
        self._new_id = new_id
        self.faults = Faults()
        self.index = 1
        self.entries: dict[str, Entry] = {}
        self.observers: list[Callable[[int, Sequence[Op]], None]] = []
        self._min_ttl = min_ttl
        self._floor = 1
        self._tombstones: dict[str, int] = {}
        self._order: list[str] = []
        """The keys of ``entries``, sorted when they were last listed."""
        self._sessions: dict[str, Session] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._lock_delays: dict[str, float] = {}
        self._nodes: dict[str, Node] = {}
        self._nodes_index = 1
        self._checks: dict[tuple[str, str], str] = {}
        self._watchers: dict[str, dict[asyncio.Future[None], None]] = {}
        self.register_node(node)

    # ------------------------------------------------------------------------------------- the catalog

    def register_node(self, name: str, meta: dict[str, str] | None = None, *, address: str = "127.0.0.1") -> None:
        """A node with a live agent (it gets a passing ``serfHealth``), or new meta for one that exists."""
        self._put(Node(name=name, address=address, meta=dict(meta or {})))
        self._checks.setdefault((name, SERF), "passing")

    def register_external(self, name: str) -> None:
        """A node without an agent; nothing happens if the name is taken."""
        if name not in self._nodes:
            self._put(Node(name=name, address="127.0.0.1", meta={"external-node": "true"}))

    def _put(self, node: Node) -> None:
        self._nodes[node.name] = node
        self._moved()

    def _moved(self) -> None:
        self.index += 1
        self._nodes_index = self.index
        self._wake(self._watchers.get(NODES, ()))

    def remove_node(self, name: str) -> None:
        """The node leaves the catalog: its checks and its sessions end."""
        if self._nodes.pop(name, None) is not None:
            self._moved()
        for key in [key for key in self._checks if key[0] == name]:
            del self._checks[key]
        self._end([session for session in self._sessions.values() if session.node == name])

    def set_check(self, node: str, check_id: str, status: str) -> None:
        """A node check's status: ``passing``, ``warning``, ``critical``, or ``""`` to remove the check."""
        node = node or self.node
        if status:
            self._checks[node, check_id] = status
        else:
            self._checks.pop((node, check_id), None)
        gone = status in {"", "critical"}
        self._end([s for s in self._sessions.values() if gone and s.node == node and check_id in s.checks])

    def node_listing(self) -> tuple[list[Node], int]:
        """The nodes, sorted by name, and the index to watch them from."""
        return [self._nodes[name] for name in sorted(self._nodes)], self._nodes_index

    # -------------------------------------------------------------------------------------- sessions

    def create_session(self, session: Session) -> str:
        """Takes a session without id; returns its id. Raises ``Refused``."""
        if session.node not in self._nodes:
            raise Refused("Missing node registration")
        for check in session.checks:
            status = self._checks.get((session.node, check))
            if status is None:
                raise Refused(f"Missing check '{check}' registration")
            if status == "critical":
                raise Refused(f"Check '{check}' is in critical state")
        if session.ttl and not self._min_ttl <= session.ttl <= MAX_TTL:
            raise Refused(f"Invalid Session TTL '{session.ttl}s', must be between [{self._min_ttl}s={MAX_TTL}s]")
        identity = self._new_id()
        delay = min(session.lock_delay, MAX_LOCK_DELAY)
        self._sessions[identity] = msgspec.structs.replace(session, id=identity, lock_delay=delay)
        self.index += 1
        self._arm(identity)
        return identity

    def renew_session(self, session: str) -> None:
        """Restarts the TTL. Raises ``SessionLost``."""
        if session not in self._sessions:
            raise SessionLost(f"Session id '{session}' not found")
        self._arm(session)

    def destroy_session(self, session: str) -> None:
        """Ends a session and releases its locks; nothing happens if it is gone."""
        known = self._sessions.get(session)
        self._end([known] if known else [])

    def sessions(self) -> list[Session]:
        """All sessions."""
        return list(self._sessions.values())

    def _arm(self, session: str) -> None:
        if timer := self._timers.pop(session, None):
            timer.cancel()
        if ttl := self._sessions[session].ttl:
            # Consul's leader waits for twice the TTL before it ends a session.
            self._timers[session] = asyncio.get_running_loop().call_later(2 * ttl, self.destroy_session, session)

    def _end(self, sessions: Sequence[Session]) -> None:
        self.index += 1
        delays = {session.id: session.lock_delay for session in sessions}
        for identity in delays:
            del self._sessions[identity]
            if timer := self._timers.pop(identity, None):
                timer.cancel()
        changed: dict[str, Entry | None] = {}
        for key, entry in self.entries.items() if delays else ():
            if entry.session in delays:
                changed[key] = msgspec.structs.replace(entry, session="", modify_index=self.index)
                if delay := delays[entry.session]:
                    self._lock_delays[key] = asyncio.get_running_loop().time() + delay
        self._store(changed)

    # ------------------------------------------------------------------------------------------ keys

    def apply(
        self, ops: Sequence[Op], *, denied: tuple[str, ...] = (), unreadable: tuple[str, ...] = ()
    ) -> dict[str, int]:
        """Commits ``ops`` or refuses them; returns the ModifyIndex of each key written.

        Raises ``Conflict`` and ``Denied``. A refusal by the state machine costs an index, too.
        """
        self._precheck(ops, denied, unreadable)
        self.index += 1
        draft: dict[str, Entry | None] = {}
        written: dict[str, int] = {}
        failed: list[Failed] = []
        entries = self.entries
        for position, op in enumerate(ops):
            key = op.key
            entry = draft[key] if key in draft else entries.get(key)
            if problem := self._refusal(op, entry):
                failed.append(Failed(position, *problem))
            elif isinstance(op, Delete):
                draft[key] = None
                written.pop(key, None)
            elif isinstance(op, WRITES):
                after = draft[key] = self._written(op, entry)
                written[key] = after.modify_index
        if failed:
            raise Conflict(tuple(failed))
        self._store({key: entry for key, entry in draft.items() if entry is not entries.get(key)})
        for observer in self.observers:
            observer(self.index, ops)
        return written

    def _precheck(self, ops: Sequence[Op], denied: tuple[str, ...], unreadable: tuple[str, ...]) -> None:
        failed: list[Failed] = []
        now = asyncio.get_running_loop().time()
        for position, op in enumerate(ops):
            hidden = unreadable if isinstance(op, READS) else denied
            if hidden and op.key.startswith(hidden):
                failed.append(Failed(position, "denied", "Permission denied"))
            elif isinstance(op, Lock) and self._lock_delays.get(op.key, now) > now:
                failed.append(Failed(position, "locked", f'failed to lock key "{op.key}" due to lock delay'))
        if failed and all(f.reason == "denied" for f in failed):
            raise Denied("Permission denied", tuple(failed))
        if failed:
            raise Conflict(tuple(failed))

    def _refusal(self, op: Op, entry: Entry | None) -> tuple[str, str] | None:
        key, index = op.key, entry.modify_index if entry is not None else 0
        if isinstance(op, Set):
            stale = op.cas is not None and op.cas != index
            return ("cas", f'failed to set key "{key}", index is stale') if stale else None
        if isinstance(op, Delete):
            stale = op.cas is not None and entry is not None and op.cas != index
            return ("cas", f'failed to delete key "{key}", index is stale') if stale else None
        if isinstance(op, Lock):
            if op.session not in self._sessions:
                return "session", f'invalid session "{op.session}"'
            held = entry is not None and entry.session not in {"", op.session}
            return ("locked", f'failed to lock key "{key}", lock is already held') if held else None
        if isinstance(op, Unlock):
            if entry is None or entry.session != op.session:
                return "session", f'failed to unlock key "{key}", lock isn\'t held, or is held by another session'
            return None
        if isinstance(op, CheckNotExists):
            return ("exists", f'key "{key}" exists') if entry is not None else None
        if entry is None:
            verb = "session" if isinstance(op, CheckSession) else "index"
            return "missing", f'failed to check {verb}, key "{key}" doesn\'t exist'
        if isinstance(op, CheckSession):
            holder, wanted = entry.session, op.session
            if holder != wanted:
                return "session", f'failed session check for key "{key}", current session "{holder}" != "{wanted}"'
        elif op.index != index:
            return "cas", f'failed index check for key "{key}", current modify index {index} != {op.index}'
        return None

    def _written(self, op: Set | Lock | Unlock, entry: Entry | None) -> Entry:
        session, lock_index = (entry.session if entry else ""), 0
        if isinstance(op, Lock):
            lock_index = (entry.lock_index if entry else 0) + (session != op.session)
            session = op.session
        elif isinstance(op, Unlock):
            lock_index, session = (entry.lock_index if entry else 0), ""
        if entry is not None:
            after = op.value, op.flags, session, lock_index
            if (entry.value, entry.flags, entry.session, entry.lock_index) == after:
                return entry
        return Entry(op.key, op.value, self.index, op.flags, session, lock_index)

    def _store(self, changed: dict[str, Entry | None]) -> None:
        entries = self.entries
        for key, entry in changed.items():
            if entry is None:
                del entries[key]
                self._tombstones[key] = self.index
                self._order = []
            else:
                if key not in entries:
                    self._order = []
                entries[key] = entry
        if len(self._tombstones) > KEPT_TOMBSTONES:
            self._floor = self.index
            self._tombstones.clear()
        prefixes = tuple(self._watchers)
        watched = [key for key in changed if key.startswith(prefixes)]  # of most changes nobody is told
        for prefix in prefixes if watched else ():
            if any(key.startswith(prefix) for key in watched):
                self._wake(self._watchers[prefix])

    @staticmethod
    def _wake(waiting: Iterable[asyncio.Future[None]]) -> None:
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def view(self) -> View:
        """The keys as they stand now; later changes don't touch it."""
        return View(dict(self.entries), self.index)

    def listing(self, prefix: str, view: View | None = None) -> tuple[list[Entry], int]:
        """The entries under ``prefix`` sorted by key, and the index to watch from."""
        if view:
            return [
                view.entries[key] for key in sorted(key for key in view.entries if key.startswith(prefix))
            ], view.index
        entries = self.entries
        if len(self._order) != len(entries):
            self._order = sorted(entries)
        found = []
        for at in range(bisect_left(self._order, prefix), len(self._order)):
            key = self._order[at]
            if not key.startswith(prefix):
                break
            found.append(entries[key])
        indexes = [entry.modify_index for entry in found]
        indexes += [index for key, index in self._tombstones.items() if key.startswith(prefix)]
        return found, max(self._floor, max(indexes, default=self.index))

    async def changed(self, prefix: str, wait: float) -> None:
        """Returns when a key under ``prefix`` changes, at the latest after ``wait`` seconds."""
        future = asyncio.get_running_loop().create_future()
        waiting = self._watchers.setdefault(prefix, {})
        waiting[future] = None
        try:
            await asyncio.wait([future], timeout=wait)
        finally:
            waiting.pop(future, None)
            if not waiting and self._watchers.get(prefix) is waiting:
                del self._watchers[prefix]

    def reset_index(self) -> None:
        """Numbers everything anew from 1, as after a rebuild from an export: no old index is valid any more."""
        ordered = sorted(self.entries.values(), key=lambda entry: (entry.modify_index, entry.key))
        self.entries = {e.key: msgspec.structs.replace(e, modify_index=i) for i, e in enumerate(ordered, 1)}
        self.index = self._nodes_index = len(ordered) + 1
        self._floor = 1
        self._tombstones.clear()
        self._store(dict(self.entries))

"""The Consul side of the store: the port's calls on one Consul agent.

Keys, transactions and the list of nodes go through raw requests (an answer of 10,000 records is decoded by msgspec, and
409 has to be judged here); sessions and single nodes through py-consul's endpoints, except where they cannot say what
is meant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from rebootd.consul.client import Consul
from rebootd.consul.transport import failure, milliseconds, seconds, within
from rebootd.core.codec import read_json
from rebootd.core.errors import (
    Denied,
    NotFound,
    OutcomeUnknown,
    Refused,
    SessionLost,
    TooLarge,
    Unreachable,
)
from rebootd.store import consul_txn
from rebootd.store.port import Entry, Node, Op, Session

if TYPE_CHECKING:
    import builtins
    from collections.abc import Sequence

    from rebootd.consul.settings import ConsulSettings
    from rebootd.consul.transport import Response

LOCK_NODE_ADDRESS = "192.0.2.1"
"""The address of the external node: of a block that is reserved for documentation, so that it never is a host."""

_NO_SUCH_SESSION = "failed session lookup"
"""How Consul 1.8.7 answers (with a 500) to a session id that is no UUID."""
_SESSION_REFUSALS = ("Missing check", "critical state", "Missing node registration", "Invalid Session TTL")
"""What a 500 on creating a session says when it is a definite refusal [measured]."""


class _Pair(msgspec.Struct, rename="pascal"):
    key: str
    value: bytes | None
    modify_index: int
    flags: int = 0
    session: str = ""
    lock_index: int = 0


class _Listed(msgspec.Struct, rename="pascal"):
    node: str
    address: str = ""
    meta: msgspec.Raw = msgspec.Raw()


_PAIRS = msgspec.json.Decoder(list[_Pair])
NODES = "/v1/catalog/nodes"
_NODES = msgspec.json.Decoder(list[_Listed])
_META = msgspec.json.Decoder(dict[str, str] | None)


class ConsulStore:
    """:class:`rebootd.store.port.Store` on Consul. It owns ``client``: :meth:`close` closes it."""

    def __init__(self, client: Consul) -> None:
        self.client = client

    @classmethod
    def open(cls, settings: ConsulSettings) -> ConsulStore:
        """A store with a client of its own; nothing is sent yet."""
        return cls(Consul(settings))

    async def get(self, key: str, *, consistent: bool = False, timeout: float = 5.0) -> Entry | None:
        """One key, or None."""
        if not key or key.startswith("/"):
            raise ValueError(f"the key {key!r} is empty or starts with a slash")
        response = await self._read(f"/v1/kv/{key}", _consistency(consistent), timeout)
        found = _entries(response)
        return found[0] if found else None

    async def list(
        self, prefix: str, *, consistent: bool = False, timeout: float = 30.0
    ) -> tuple[builtins.list[Entry], int]:
        """Every key under ``prefix`` and the index to watch from."""
        return await self._list(prefix, _consistency(consistent), timeout)

    async def watch(self, prefix: str, index: int, wait: float) -> tuple[builtins.list[Entry], int]:
        """As ``list``, when something changed after ``index`` or ``wait`` seconds (and Consul's jitter of 1/16) passed.

        An ``index`` of 0 or a ``wait`` of 0 answers at once.
        """
        params = _blocking(index, wait)
        entries, now = await self._list(prefix, params, None if params else 30.0)
        return entries, now if now >= index else 0

    async def commit(self, ops: Sequence[Op], *, timeout: float = 5.0) -> dict[str, int]:
        """All of ``ops`` or none; :mod:`rebootd.store.consul_txn` tells what each refusal means.

        Sent once. ``OutcomeUnknown`` also when the connection could not be opened: then nothing was sent this time, but
        what was sent before may still land.
        """
        if not ops:
            return {}
        body = consul_txn.encode(ops)
        # Only checks is a read to Consul: then the leader must prove that it still leads.
        params = [] if any(consul_txn.writes(op) for op in ops) else _consistency(consistent=True)
        try:
            response = await self.client.http.request("PUT", "/v1/txn", params, body, timeout)
        except Unreachable as error:
            raise OutcomeUnknown(str(error)) from error
        if response.status in (200, 409):
            return consul_txn.judge(ops, response.status, response.body)
        definite = failure("PUT", "/v1/txn", response)
        if isinstance(definite, Denied | TooLarge | Refused):
            raise definite
        raise OutcomeUnknown(f"PUT /v1/txn: {response.status} {response.text[:500]}")

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
        """A new session's id; ``ttl`` 0 is none, else 10 s or more.

        Checks of services go into ``NodeChecks`` as well: beside it, 1.8.7 ignores ``Checks`` without a word, and
        ``Checks`` alone adds serfHealth. py-consul's call can say neither that nor a fraction of a second.
        """
        wish: dict[str, Any] = {
            "Name": name,
            "LockDelay": milliseconds(lock_delay),
            "NodeChecks": list(checks),
            "Behavior": "release",
        }
        if node:
            wish["Node"] = node
        if ttl:
            wish["TTL"] = milliseconds(ttl)
        path = "/v1/session/create"
        response = await self.client.http.request("PUT", path, None, msgspec.json.encode(wish), timeout)
        if response.status == 500 and any(words in response.text for words in _SESSION_REFUSALS):
            raise Refused(response.text)
        error = failure("PUT", path, response)
        if error is not None:
            raise error
        try:
            return str(read_json(response.body, dict[str, Any])["ID"])
        except (msgspec.DecodeError, KeyError) as unreadable:
            raise Unreachable(f"PUT {path}: {response.status} {response.text[:200]}") from unreadable

    async def renew_session(self, session: str, *, timeout: float = 2.0) -> None:
        """Restarts the TTL, or raises ``SessionLost``."""
        try:
            with within(timeout):
                renewed = await self.client.session.renew(session)
        except NotFound as error:
            raise SessionLost(f"the session {session} is gone") from error
        except Unreachable as error:
            if _NO_SUCH_SESSION in str(error):
                raise SessionLost(f"{session} is no session") from error
            raise
        if not renewed:
            raise SessionLost(f"the session {session} is gone")

    async def destroy_session(self, session: str, *, timeout: float = 5.0) -> None:
        """Ends a session; its locks are released at once, and their lock-delay begins."""
        try:
            with within(timeout):
                await self.client.session.destroy(session)
        except Unreachable as error:
            if _NO_SUCH_SESSION not in str(error):
                raise

    async def sessions(self, *, node: str = "", timeout: float = 5.0) -> builtins.list[Session]:
        """All sessions, or those of one node."""
        with within(timeout):
            endpoint = self.client.session
            _, found = await (endpoint.node(node) if node else endpoint.list())
        return [_session(one) for one in found or ()]

    async def ensure_lock_node(self, name: str, *, timeout: float = 5.0) -> None:
        """Registers the external node ``name`` without checks; one that is there is left as it is."""
        with within(timeout):
            _, found = await self.client.catalog.node(name)
        if found:
            return
        wish = {
            "Node": name,
            "Address": LOCK_NODE_ADDRESS,
            "NodeMeta": {"external-node": "true"},
        }
        path = "/v1/catalog/register"
        response = await self._quietly("PUT", path, msgspec.json.encode(wish), timeout)
        error = failure("PUT", path, response)
        if error is not None:
            raise Unreachable(str(error)) if isinstance(error, OutcomeUnknown) else error

    async def watch_nodes(self, index: int, wait: float) -> tuple[builtins.list[Node], int]:
        """The catalog's nodes, when one changed after ``index`` or ``wait`` seconds (and Consul's jitter) passed."""
        blocking = _blocking(index, wait)
        response = await self._read(NODES, blocking, None if blocking else 30.0)
        now = _index(response, NODES)
        return _nodes(response), now if now >= index else 0

    async def close(self) -> None:
        """Ends every connection."""
        await self.client.close()

    async def _list(
        self, prefix: str, params: builtins.list[tuple[str, Any]], timeout: float | None
    ) -> tuple[builtins.list[Entry], int]:
        response = await self._read(f"/v1/kv/{prefix}", [("recurse", "1"), *params], timeout)
        entries = _entries(response)
        if not entries and prefix:
            # Consul leaves out what the token may not read: without rights a full store looks empty. A plain read of
            # the prefix itself is refused then.
            await self._read(f"/v1/kv/{prefix}", [], timeout)
        return entries, _index(response, prefix)

    async def _read(self, path: str, params: builtins.list[tuple[str, Any]], timeout: float | None) -> Response:
        response = await self.client.http.request("GET", path, params, None, timeout)
        error = failure("GET", path, response)
        if error is not None:
            raise error
        return response

    async def _quietly(self, method: str, path: str, body: bytes, timeout: float) -> Response:
        """A write that may be repeated freely: a lost answer is ``Unreachable``."""
        try:
            return await self.client.http.request(method, path, None, body, timeout)
        except OutcomeUnknown as error:
            raise Unreachable(str(error)) from error


def _blocking(index: int, wait: float) -> list[tuple[str, Any]]:
    if index <= 0 or wait <= 0:
        return []
    return [("index", index), ("wait", milliseconds(max(wait, 0.001)))]


def _index(response: Response, what: str) -> int:
    try:
        index = int(response.headers["X-Consul-Index"])
    except (KeyError, ValueError) as error:
        raise Unreachable(f"GET {what}: an answer without X-Consul-Index") from error
    # Consul's page on blocking queries: an index must be greater than 0.
    return max(index, 1)


def _consistency(consistent: bool) -> list[tuple[str, Any]]:
    return [("consistent", "1")] if consistent else []


def _entries(response: Response) -> list[Entry]:
    if response.status == 404:
        return []
    try:
        pairs = _PAIRS.decode(response.body)
    except msgspec.DecodeError as error:
        raise Unreachable(f"an answer that cannot be read: {error}") from error
    entries = [
        Entry(pair.key, pair.value or b"", pair.modify_index, pair.flags, pair.session, pair.lock_index)
        for pair in pairs
    ]
    # Consul answers in the order of bytes already; sorting a sorted list costs next to nothing.
    entries.sort(key=lambda entry: entry.key)
    return entries


def _nodes(response: Response) -> list[Node]:
    try:
        found = _NODES.decode(response.body)
    except msgspec.DecodeError as error:
        raise Unreachable(f"an answer that cannot be read: {error}") from error
    # Many nodes have the same meta: each is decoded and kept once, which is megabytes in a large fleet.
    metas: dict[bytes, dict[str, str]] = {b"": {}}
    nodes = []
    for one in found:
        raw = bytes(one.meta)
        meta = metas.get(raw)
        if meta is None:
            meta = metas[raw] = _META.decode(raw) or {}
        nodes.append(Node(name=one.node, address=one.address, meta=meta))
    return nodes


def _session(one: dict[str, Any]) -> Session:
    services = tuple(check["ID"] for check in one.get("ServiceChecks") or ())
    return Session(
        id=one["ID"],
        name=one.get("Name", ""),
        node=one.get("Node", ""),
        lock_delay=one.get("LockDelay", 0) / 1e9,
        ttl=seconds(one.get("TTL", "")),
        checks=(*(one.get("NodeChecks") or ()), *services, *(one.get("Checks") or ())),
    )

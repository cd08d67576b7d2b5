"""A daemon's client of the modelled Consul, across the simulated network.

The rules of keys, sessions and transactions are those of :class:`rebootd.store.memory.MemoryConsul`, which the contract
suite holds to the real thing; here are only the ways in which calls get lost, late, and done twice.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from rebootd.core.errors import Conflict, Denied, OutcomeUnknown, RebootdError, Unreachable
from rebootd.store.memory_state import NODES
from rebootd.store.port import Entry, Node, Op, Session

if TYPE_CHECKING:
    import asyncio
    import builtins
    import random
    from collections.abc import Callable, Mapping, Sequence

    from rebootd.store.memory import MemoryConsul
    from rebootd.store.memory_faults import View
    from tests.sim.loop import Process, SimLoop
    from tests.sim.net import Box


CATCH_UP = 0.5
"""Seconds within which a watch at a server that lags behind notices that it has caught up."""


class StoreTrouble:
    """How calls of the store fare at present, for everybody. Shares are probabilities, times seconds."""

    def __init__(self) -> None:
        self.away = 0
        """More than 0: no quorum."""
        self.lose_request = 0.0
        self.lose_reply = 0.0
        self.late = 0.0
        self.late_by = 0.0
        self.twice = 0.0
        self.stale: View | None = None
        """What reads that are not consistent are answered from by the one of two servers that lags behind."""


class Servers:
    """Consul's servers and the way to them. ``actor`` names who the present transaction is from."""

    def __init__(self, loop: SimLoop, consul: MemoryConsul, rng: random.Random, latency: float) -> None:
        self.loop = loop
        self.consul = consul
        self.rng = rng
        self.trouble = StoreTrouble()
        self.actor = ""
        self.commits = 0
        self.before_commit: Callable[[str, Sequence[Op]], None] = lambda *_: None
        self.before_destroy: Callable[[str, str], None] = lambda *_: None
        self.hits: dict[str, int] = defaultdict(int)
        """How often each trouble took effect."""
        self.ambushes: list[Callable[[str, Sequence[Op]], str | None]] = []
        """Asked before each transaction of a daemon; who answers is done. ``lost``: its answer is."""
        self._latency = latency

    def latency(self) -> float:
        """Seconds that one message takes."""
        return self._latency * (0.5 + self.rng.random())

    def destroy(self, actor: str, session: str) -> None:
        """A daemon ends a session."""
        self.before_destroy(actor, session)
        self.consul.destroy_session(session)

    def ambushed(self, actor: str, ops: Sequence[Op]) -> str:
        """What lies in wait for this very transaction."""
        for ambush in self.ambushes:
            fate = ambush(actor, ops)
            if fate is not None:
                self.ambushes.remove(ambush)
                return fate
        return ""

    def by(self, actor: str, ops: Sequence[Op]) -> dict[str, int]:
        """Applies a transaction in the name of ``actor``."""
        before, self.actor = self.actor, actor
        self.commits += 1
        try:
            self.before_commit(actor, ops)
            return self.consul.apply(ops)
        finally:
            self.actor = before


class SimStore:
    """Implements :class:`rebootd.store.port.Store` for the process ``owner`` on ``box``."""

    def __init__(self, servers: Servers, box: Box, owner: Process, name: str) -> None:
        self.servers = servers
        self._box = box
        self._owner = owner
        self._name = name

    async def get(self, key: str, *, consistent: bool = False, timeout: float = 5.0) -> Entry | None:
        """One key, or None."""
        entry: Entry | None = await self._ask(lambda: self._entries(self._lags(consistent)).get(key), timeout)
        return entry

    async def list(
        self, prefix: str, *, consistent: bool = False, timeout: float = 30.0
    ) -> tuple[builtins.list[Entry], int]:
        """Every key under ``prefix``, and the index."""
        found: tuple[builtins.list[Entry], int] = await self._ask(
            lambda: self.servers.consul.listing(prefix, self._view(self._lags(consistent))), timeout
        )
        return found

    async def watch(self, prefix: str, index: int, wait: float) -> tuple[builtins.list[Entry], int]:
        """As ``list``, once something changed; a server that goes away meanwhile ends it."""
        answer = self.servers.loop.create_future()
        self._send(lambda: self.servers.loop.world_task(self._blocking(prefix, index, wait, answer)), answer)
        return await self._within(answer, wait + 5.0)  # type: ignore[no-any-return]

    async def _blocking(self, prefix: str, index: int, wait: float, answer: asyncio.Future[Any]) -> None:
        consul, loop = self.servers.consul, self.servers.loop
        until = loop.time() + wait
        lags = self._lags()
        entries, now = consul.listing(prefix, self._view(lags))
        while index and now == index and (left := until - loop.time()) > 0:
            await consul.changed(prefix, min(left, CATCH_UP) if self._view(lags) else left)
            entries, now = consul.listing(prefix, self._view(lags))
        self._reply(answer, (entries, 0 if now < index else now))

    async def commit(self, ops: Sequence[Op], *, timeout: float = 5.0) -> dict[str, int]:
        """All of ``ops`` or none."""
        self._owner.here()
        servers, trouble, rng = self.servers, self.servers.trouble, self.servers.rng
        answer = servers.loop.create_future()
        ops = tuple(ops)
        lands = not (trouble.lose_request and rng.random() < trouble.lose_request)
        delay = servers.latency()
        if trouble.late and rng.random() < trouble.late:
            delay += rng.random() * trouble.late_by
            servers.hits["hit store-late"] += 1
        servers.hits["hit store-loses"] += not lands
        if lands and self._reaches():
            servers.loop.after(delay, self._land, ops, answer)
            if trouble.twice and rng.random() < trouble.twice:
                servers.hits["hit store-twice"] += 1
                servers.loop.after(delay + rng.random() * 10, self._land, ops, _unheard(servers.loop))
        timer = servers.loop.call_later(timeout, _unknown, answer)
        try:
            return await answer  # type: ignore[no-any-return]
        finally:
            timer.cancel()

    def _land(self, ops: Sequence[Op], answer: asyncio.Future[Any]) -> None:
        servers = self.servers
        if servers.trouble.away:
            servers.hits["hit store-away"] += 1
            self._reply(answer, OutcomeUnknown("no quorum"))
            return
        fate = servers.ambushed(self._name, ops)
        if fate == "refused":  # it never arrived
            return
        if fate == "late":
            servers.loop.after(servers.rng.uniform(1.0, 12.0), self._land, ops, _unheard(servers.loop))
            return
        outcome: Any
        try:
            outcome = servers.by(self._name, ops)
        except (Conflict, Denied) as refusal:
            outcome = refusal
        if fate == "lost":
            return
        if servers.trouble.lose_reply and servers.rng.random() < servers.trouble.lose_reply:
            servers.hits["hit store-loses"] += 1
            return
        self._reply(answer, outcome)

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
        session = Session(
            id="", name=name, node=node or self._box.name, ttl=ttl, lock_delay=lock_delay, checks=tuple(checks)
        )
        made: str = await self._ask(lambda: self.servers.consul.create_session(session), timeout)
        return made

    async def renew_session(self, session: str, *, timeout: float = 2.0) -> None:
        """Restarts the TTL."""
        await self._ask(lambda: self.servers.consul.renew_session(session), timeout)

    async def destroy_session(self, session: str, *, timeout: float = 5.0) -> None:
        """Ends a session."""
        await self._ask(lambda: self.servers.destroy(self._name, session), timeout)

    async def sessions(self, *, node: str = "", timeout: float = 5.0) -> builtins.list[Session]:
        """All sessions, or those of one node."""
        found: builtins.list[Session] = await self._ask(self.servers.consul.sessions, timeout)
        return [s for s in found if node in {"", s.node}]

    async def ensure_lock_node(self, name: str, *, timeout: float = 5.0) -> None:
        """Registers the external node."""
        await self._ask(lambda: self.servers.consul.register_external(name), timeout)

    async def watch_nodes(self, index: int, wait: float) -> tuple[builtins.list[Node], int]:
        """The catalog's nodes, once one has changed."""
        consul, loop = self.servers.consul, self.servers.loop
        nodes, now = await self._ask(consul.node_listing, wait + 5.0)
        until = loop.time() + wait
        while index and now == index and (left := until - loop.time()) > 0:
            await consul.changed(NODES, left)
            nodes, now = await self._ask(consul.node_listing, wait + 5.0)
        return nodes, 0 if now < index else now

    async def close(self) -> None:
        """Nothing to end."""

    # --- the way there and back ---------------------------------------------------------------

    def _reaches(self) -> bool:
        if self._box.cut_store and self._box.up:
            self.servers.hits["hit store-cut"] += 1
            return False
        return self._box.up

    def _lags(self, consistent: bool = False) -> bool:
        """Whether the server that lags behind answers this call."""
        servers = self.servers
        view = servers.trouble.stale
        if consistent or view is None or servers.rng.random() < 0.5:
            return False
        servers.hits["hit store-stale"] += view.index != servers.consul.index
        return True

    def _view(self, lags: bool) -> View | None:
        return self.servers.trouble.stale if lags else None

    def _entries(self, lags: bool) -> Mapping[str, Entry]:
        view = self._view(lags)
        return self.servers.consul.entries if view is None else view.entries

    async def _ask(self, what: Callable[[], Any], timeout: float) -> Any:
        self._owner.here()
        answer = self.servers.loop.create_future()
        self._send(lambda: self._do(what, answer), answer)
        return await self._within(answer, timeout)

    def _send(self, what: Callable[[], Any], answer: asyncio.Future[Any]) -> None:
        servers = self.servers
        if self._reaches():
            servers.loop.after(servers.latency(), self._arrive, what, answer)

    def _arrive(self, what: Callable[[], Any], answer: asyncio.Future[Any]) -> None:
        if self.servers.trouble.away:
            self._reply(answer, Unreachable("no quorum"))
        else:
            what()

    def _do(self, what: Callable[[], Any], answer: asyncio.Future[Any]) -> None:
        try:
            outcome = what()
        except RebootdError as error:
            outcome = error
        self._reply(answer, outcome)

    def _reply(self, answer: asyncio.Future[Any], outcome: Any) -> None:
        if self._reaches():
            self.servers.loop.after(self.servers.latency(), _settle, answer, outcome)

    async def _within(self, answer: asyncio.Future[Any], timeout: float) -> Any:
        timer = self.servers.loop.call_later(timeout, _unreachable, answer)
        try:
            return await answer
        finally:
            timer.cancel()


def _unheard(loop: SimLoop) -> asyncio.Future[Any]:
    """Nobody waits for this answer."""
    nobody: asyncio.Future[Any] = loop.create_future()
    nobody.cancel()
    return nobody


def _settle(answer: asyncio.Future[Any], outcome: Any) -> None:
    if answer.done():
        return
    if isinstance(outcome, Exception):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)


def _unknown(answer: asyncio.Future[Any]) -> None:
    if not answer.done():
        answer.set_exception(OutcomeUnknown("no answer in time"))


def _unreachable(answer: asyncio.Future[Any]) -> None:
    if not answer.done():
        answer.set_exception(Unreachable("no answer in time"))

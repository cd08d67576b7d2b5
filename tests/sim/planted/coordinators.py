"""Planted in coordinator, election and writer: wrong dealings with the store and with agents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest import mock

import msgspec

from rebootd.consul.leadership import Leadership
from rebootd.coordinator import fleet, leader, locks, lull, reception
from rebootd.core import settle
from rebootd.core.errors import Conflict, Denied, OutcomeUnknown, TooLarge, Unreachable
from rebootd.core.wake import LONGEST
from rebootd.store import writer
from rebootd.store.port import Lock, Set, Unlock
from tests.sim.planted.kind import Planted, put

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

Patches = list["AbstractContextManager[Any]"]


def _unfenced() -> Patches:
    from rebootd.store.writer_steps import transaction as real

    def bare(fence: Any, items: Any, seal: Any) -> Any:
        ops = real(fence, items, seal)
        # The place of the fence is kept, so that positions still fit: it checks a key that is always the leader's own.
        return (Set("rebootd/unfenced", b""), *ops[1:])

    return [mock.patch.object(writer, "transaction", bare)]


def _epoch_kept() -> Patches:
    async def kept(store: Any, _writer: Any, keys: Any, *_: Any) -> int:
        entry = await store.get(keys.epoch, consistent=True)
        return int(msgspec.json.decode(entry.value)["epoch"]) if entry is not None else 1

    return [mock.patch.object(leader, "raise_epoch", kept)]


def _hasty() -> Patches:
    """An unknown outcome is taken for a commit: the answer leaves before it is one."""

    async def send(self: Any, ops: Any) -> Any:
        while True:
            try:
                return await self._store.commit(ops, timeout=self._timeout), False
            except OutcomeUnknown:
                return {op.key: 1 for op in ops if isinstance(op, Set | Lock | Unlock)}, False
            except Unreachable:
                await self._pause(0)
            except (Conflict, Denied, TooLarge) as refusal:
                return refusal, False

    return [mock.patch.object(writer.FencedWriter, "_send", send)]


def _answer_first() -> Patches:
    """A granted permit is told before its transaction has an outcome."""
    tick = leader.Leader._land

    async def land(self: Any, work: Any) -> Any:
        for w in work:
            if w.machine is not None:
                self.fleet.machines[w.machine.name] = w.machine
                self._waiting.wake(w.machine.name)
        return await tick(self, work)

    return [mock.patch.object(leader.Leader, "_land", land)]


def _stale_boots() -> Patches:
    def accept(self: Any, name: str, machine_id: str, boot_id: str) -> None:
        return

    return [
        mock.patch.object(reception.Reception, "accept", accept),
        mock.patch.object(settle, "speaks_for", return_value=True),
    ]


def _kept_observations() -> Patches:
    init = fleet.Fleet.__init__
    kept: dict[Any, Any] = {}

    def remember(self: Any, keys: Any) -> None:
        init(self, keys)
        self.observed = kept

    return [mock.patch.object(fleet.Fleet, "__init__", remember)]


def _locks_dropped() -> Patches:
    async def collect(self: Any) -> None:
        for session in await self._store.sessions(node=self._node):
            if session.name == self._name:
                await self._store.destroy_session(session.id)

    return [mock.patch.object(locks.RackLocks, "_collect", collect)]


def _always_speaks() -> Patches:
    return [mock.patch.object(Leadership, "may_speak", return_value=True)]


def _locks_kept() -> Patches:
    from rebootd.core import decide

    return [mock.patch.object(decide, "unlocks_of", lambda _v, steps, _a: (steps, ()))]


def _stale_load() -> Patches:
    """A new leader reads without asking whether the server that answers is up to date."""
    load = leader.Leader._load

    async def hasty(self: Any) -> None:
        store = self._store
        self._store = mock.Mock(list=lambda prefix, **_: store.list(prefix))
        try:
            await load(self)
        finally:
            self._store = store

    return [mock.patch.object(leader.Leader, "_load", hasty)]


def _cycles_unwatched() -> Patches:
    from rebootd.coordinator.follow import Follower

    real = Follower.small_prefixes

    def fewer(self: Any) -> Any:
        return tuple(p for p in real(self) if not p.endswith("cycles/"))

    return [mock.patch.object(Follower, "small_prefixes", fewer)]


ALL = (
    Planted("unfenced-write", "transactions carry no fence", _unfenced),
    Planted("epoch-not-raised", "a new leader goes on in the epoch of the last", _epoch_kept),
    Planted("unknown-is-committed", "an unanswered transaction is taken for a commit", _hasty, "store"),
    Planted("answer-before-commit", "agents are told of transitions that have not landed", _answer_first),
    Planted("stale-boot-accepted", "reports of superseded boots are taken", _stale_boots, "network"),
    Planted("observations-kept", "what machines told an earlier leader counts for the next", _kept_observations),
    Planted("locks-dropped-at-failover", "a new leader ends the sessions of the rack locks", _locks_dropped),
    Planted(
        "deposed-leader-speaks",
        "a leader that was not proved to lead answers all the same",
        _always_speaks,
        "everything",
    ),
    Planted("barrier-read-is-stale", "what a new leader loads may be old", _stale_load, "ambushes"),
    Planted(
        "rests-too-long",
        "a leader that has nothing to do does not look when time has changed something",
        put(lull, "next_wake", lambda _snapshot, since: since + LONGEST),
    ),
    Planted("locks-never-released", "racks stay locked for ever", _locks_kept),
    Planted("cycles-not-loaded", "a new leader knows no cycles", _cycles_unwatched, "processes"),
)

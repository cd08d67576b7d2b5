"""A bench for tests of the fenced writer: a cluster, a leader, others, in virtual time."""

from __future__ import annotations

import json
import uuid
from itertools import count
from typing import TYPE_CHECKING, Any

from rebootd.store.memory import MemoryStore
from rebootd.store.port import CheckIndex, CheckNotExists, CheckSession, Lock, Op, Set
from rebootd.store.writer import FencedWriter, Step
from tests.support.virtual_time import run

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

HALT = CheckNotExists("halt")
ids = count(1)


def record(key: str, cas: int = 0, **more: object) -> Set:
    return Set(key, json.dumps({"write_id": f"w{next(ids)}", **more}).encode(), cas)


def step(key: str, cas: int = 0, *guards: CheckNotExists | CheckIndex | CheckSession, lane: str = "") -> Step:
    return Step((record(key, cas),), guards, lane)


class Bench:
    """A cluster, a leader with a writer, and a second client for what others do."""

    async def open(self, **options: Any) -> Bench:
        self.store = MemoryStore()
        self.other = MemoryStore(self.store.consul)
        self.session = await self.store.create_session("leader")
        await self.store.commit([Lock("leader", b"", self.session)])
        self.landed: list[tuple[Op, ...]] = []
        self.sent: list[tuple[int, str]] = []
        self.store.consul.observers.append(lambda _, ops: self.landed.append(tuple(ops)))
        self.writer = FencedWriter(
            self.store,
            "leader",
            self.session,
            new_write_id=lambda: uuid.uuid4().hex,
            on_commit=lambda _, ops, outcome: self.sent.append((ops, outcome)),
            **options,
        )
        return self

    async def one(self, step: Step) -> object:
        return (await self.writer.commit([step]))[0]

    async def index(self, key: str) -> int:
        entry = await self.other.get(key)
        return entry.modify_index if entry else 0

    def writes(self, key: str) -> int:
        """How often a record with a write id landed at ``key``."""
        return sum(isinstance(op, Set) and op.key == key and not op.flags for ops in self.landed for op in ops)


def virtual(**options: object) -> Callable[[Callable[[Bench], Coroutine[object, object, None]]], Callable[[], None]]:
    def decorate(test: Callable[[Bench], Coroutine[object, object, None]]) -> Callable[[], None]:
        async def main() -> None:
            bench = await Bench().open(**options)
            await test(bench)
            await bench.writer.close()

        def sync() -> None:
            run(main())

        return sync

    return decorate

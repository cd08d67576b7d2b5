"""The fenced writer on a real Consul that freezes while it writes."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import TYPE_CHECKING

import pytest

from rebootd.core.errors import FenceLost
from rebootd.store.consul import ConsulStore
from rebootd.store.port import Lock, Op, Set
from rebootd.store.writer import Committed, FencedWriter, Step

if TYPE_CHECKING:
    from tests.support.cluster import Agent


def step(key: str, cas: int = 0) -> Step:
    return Step((Set(key, json.dumps({"write_id": uuid.uuid4().hex}).encode(), cas),))


async def test_writes_through_a_frozen_server_are_settled(dev_consul: Agent, prefix: str) -> None:
    store = ConsulStore.open(dev_consul.settings)
    unanswered = asyncio.Event()

    def note(_seconds: float, _ops: int, outcome: str) -> None:
        if outcome == "unknown":
            unanswered.set()

    session = await store.create_session("leader")
    lock: list[Op] = [Lock(f"{prefix}leader", b"", session)]
    await store.commit(lock)
    writer = FencedWriter(
        store, f"{prefix}leader", session, new_write_id=lambda: uuid.uuid4().hex, on_commit=note, timeout=0.3
    )
    try:
        dev_consul.pause()  # what is sent now waits in the sockets, and lands when the server thaws
        try:
            writing = asyncio.create_task(writer.commit([step(f"{prefix}m/{n:04}") for n in range(1000)]))
            async with asyncio.timeout(20):
                await unanswered.wait()
        finally:
            dev_consul.resume()
        outcomes = await writing
        entries, _ = await store.list(f"{prefix}m/", consistent=True)
        assert [Committed({entry.key: entry.modify_index}) for entry in entries] == outcomes
        await store.destroy_session(session)
        with pytest.raises(FenceLost):
            await writer.commit([step(f"{prefix}m/late")])
        assert await store.get(f"{prefix}m/late", consistent=True) is None
    finally:
        await writer.close()
        await store.close()

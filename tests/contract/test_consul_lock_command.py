"""The real ``consul lock`` command keeps rebootd out of a rack, and rebootd keeps it out."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING

import pytest

from rebootd.consul.binary import locate
from rebootd.core.errors import Conflict
from rebootd.store.consul import ConsulStore
from rebootd.store.port import LOCK_FLAGS, CheckSession, Lock, Set, Unlock
from tests.contract.conftest import eventually
from tests.contract.test_store_contract import refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rebootd.store.port import Entry
    from tests.support.cluster import Agent

RACK_SESSION = "rebootd rack r7"


@pytest.fixture
async def store(dev_consul: Agent) -> AsyncIterator[ConsulStore]:
    opened = ConsulStore.open(dev_consul.settings)
    yield opened
    await opened.close()


@contextlib.asynccontextmanager
async def consul_lock(agent: Agent, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """``consul lock <words>`` as a process; ended when left."""
    process = await asyncio.create_subprocess_exec(
        str(locate()),
        "lock",
        f"-http-addr={agent.url}",
        # Without $SHELL the command runs in /bin/sh, which keeps the child that it is to end: it would outlive us.
        "-shell=false",
        *words,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
            await asyncio.wait_for(process.wait(), 10)


async def ran(agent: Agent, *words: str) -> int:
    """The exit code of ``consul lock <words>``."""
    async with consul_lock(agent, *words) as process:
        await asyncio.wait_for(process.communicate(), 15)
        assert process.returncode is not None
        return process.returncode


async def holder(store: ConsulStore, key: str) -> Entry | None:
    entry = await store.get(key, consistent=True)
    return entry if entry is not None and entry.session else None


async def test_their_lock_keeps_us_out_and_shows_who_holds_it(
    dev_consul: Agent, store: ConsulStore, prefix: str
) -> None:
    rack, key = f"{prefix}racks/r7", f"{prefix}racks/r7/.lock"
    ours = await store.create_session(RACK_SESSION)
    async with consul_lock(dev_consul, rack, "sleep", "60"):
        await eventually(lambda: holder(store, key), "the command to hold the lock")
        assert await refused(store, Lock(key, b"{}", ours)) == [(0, "locked")]
        assert await refused(store, Lock(key, b"{}", ours), Set(f"{prefix}x", b"")) == [(0, "locked")]
        entry = await holder(store, key)
        assert entry is not None
        assert entry.flags == LOCK_FLAGS
        sessions = {one.id: one for one in await store.sessions()}
        assert sessions[entry.session].node == dev_consul.name
        assert sessions[entry.session].name.startswith("Consul lock for 'sleep 60'")

    async def taken() -> bool:
        try:
            await store.commit([Lock(key, b"{}", ours)])
        except Conflict:
            return False
        return True

    # The command gives its lock up and deletes the key; a lock-delay of its session may follow (15 s at most).
    await eventually(taken, "our lock after theirs", timeout=20)
    await store.commit([CheckSession(key, ours), Unlock(key, b"", ours)])
    await store.destroy_session(ours)


async def test_our_lock_keeps_them_out_until_we_give_it_up(dev_consul: Agent, store: ConsulStore, prefix: str) -> None:
    rack, key = f"{prefix}racks/r7", f"{prefix}racks/r7/.lock"
    await store.ensure_lock_node("rebootd-locks")
    ours = await store.create_session(RACK_SESSION, node="rebootd-locks")
    await store.commit([Lock(key, b'{"cycle":"c"}', ours)])
    assert await ran(dev_consul, "-try=300ms", rack, "true") != 0
    # A process that waits without a limit gets the rack as soon as we are done with it.
    async with consul_lock(dev_consul, rack, "sleep", "60"):
        await store.commit([CheckSession(key, ours), Unlock(key, b"", ours)])

        async def theirs() -> bool:
            entry = await holder(store, key)
            return entry is not None and entry.session != ours

        await eventually(theirs, "the waiting command to get the lock")
    assert await ran(dev_consul, "-try=5s", rack, "true") == 0
    await store.destroy_session(ours)


async def test_a_lock_key_without_the_flags_is_not_theirs(dev_consul: Agent, store: ConsulStore, prefix: str) -> None:
    # Why each of our writes carries the flags: without them the command refuses even a free key.
    rack, key = f"{prefix}racks/r7", f"{prefix}racks/r7/.lock"
    await store.commit([Set(key, b"x")])
    assert await ran(dev_consul, "-try=300ms", rack, "true") != 0
    await store.commit([Set(key, b"x", flags=LOCK_FLAGS)])
    assert await ran(dev_consul, "-try=5s", rack, "true") == 0

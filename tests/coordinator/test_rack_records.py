"""The records of our rack locks: edited, unreadable, deleted while the rack is open."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from rebootd.core.model import CycleState, State
from rebootd.store.port import Delete, Lock, Op, Set
from tests.coordinator.lab import Host, Lab, eventually, record, start

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rebootd.coordinator.leader import Leader

KEY = "rebootd/racks/r1/record"
SPOILED: dict[str, Sequence[Op]] = {
    "no JSON": [Set(KEY, b"oops")],
    "another session": [Set(KEY, b'{"rack":"r1","session":"somebody"}')],
    "no session": [Set(KEY, b'{"rack":"r1"}')],
    "deleted": [Delete(KEY)],
}


async def finish(lab: Lab, leader: Leader, hosts: list[Host]) -> None:
    """The cycle ends, and everything is as it should be."""
    async with asyncio.TaskGroup() as group, asyncio.timeout(20):
        tasks = [group.create_task(h.live(leader)) for h in hosts]
        await eventually(lambda: leader.fleet.cycles["k1"].state is CycleState.DONE, 15)
        await eventually(lambda: not leader.snapshot().racks or leader.snapshot().racks["r1"].holder == "free")
        for task in tasks:
            task.cancel()
    assert [h.boot for h in hosts] == [1, 1]
    assert not leader.snapshot().alarms
    assert not lab.consul.entries["rebootd/racks/r1/.lock"].session


@pytest.mark.parametrize("how", SPOILED)
async def test_a_rack_stays_ours_whatever_becomes_of_its_record(how: str) -> None:
    lab, hosts = Lab({"r1": ["a1", "a2"]}), [Host("a1"), Host("a2")]
    async with lab.leader() as leader:
        for host in hosts:
            await host.join(leader)
        await start(leader)
        await hosts[0].until(leader, "drained")
        lab.consul.apply(SPOILED[how])
        await asyncio.sleep(0.5)
        assert leader.snapshot().racks["r1"].holder == "ours"
        await finish(lab, leader, hosts)


@pytest.mark.parametrize("how", SPOILED)
async def test_the_next_leader_finds_the_rack_ours_too(how: str) -> None:
    lab, hosts = Lab({"r1": ["a1", "a2"]}), [Host("a1"), Host("a2")]
    async with lab.leader() as leader:
        for host in hosts:
            await host.join(leader)
        await start(leader)
        await hosts[0].until(leader, "drained")
    session = lab.consul.entries["rebootd/racks/r1/.lock"].session
    lab.consul.apply(SPOILED[how])
    async with lab.leader() as leader:
        await asyncio.sleep(0.3)
        assert lab.consul.entries["rebootd/racks/r1/.lock"].session == session
        assert record(leader, "a1").state is State.DRAINED
        await finish(lab, leader, hosts)


async def test_a_lock_that_nothing_shows_to_be_ours_is_somebodys_and_explained() -> None:
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    async with lab.leader() as leader:
        await host.join(leader)
        session = await lab.store.create_session("x")
        lab.consul.apply([Lock("rebootd/racks/r1/.lock", b"", session), Set(KEY, b"oops")])
        await start(leader)
        await eventually(lambda: any(b.kind == "rack-lock" for b in leader.decision().reasons.get("a1", ())))
        [blocker] = [b for b in leader.decision().reasons["a1"] if b.kind == "rack-lock"]
        assert "cannot be read" in blocker.what
        assert f"consul kv delete {KEY}" in blocker.clears
        lab.consul.apply([Set(KEY, b'{"rack":"r1","session":"%s"}' % session.encode())])
        await eventually(lambda: leader.snapshot().racks["r1"].holder != "other")
        await host.until(leader, "drained")

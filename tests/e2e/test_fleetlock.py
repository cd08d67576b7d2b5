"""Machines without an agent, real daemons, a real Consul: they wait for each other, whoever is killed meanwhile."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.e2e.fleet import Blow, Fleet
from tests.e2e.lock_client import LockClient, lock_clients

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.cluster import Agent

POLICY = "fleetlock: {enabled: true}\nsettle: 0s\n"


@asynccontextmanager
async def serving(fleet: Fleet) -> AsyncIterator[list[LockClient]]:
    """The fleet's machines as FleetLock clients, all of them in service."""
    await fleet.apply_policy(POLICY)
    async with lock_clients(fleet.names, [slot.front.url for slot in fleet.slots]) as clients:
        await all_steady(clients)
        await fleet.all_in_service()
        yield clients


async def all_steady(clients: list[LockClient]) -> None:
    async with asyncio.timeout(60):
        await asyncio.gather(*(client.steady.wait() for client in clients))


async def refused(client: LockClient, kind: str, by: str) -> None:
    """The client was told to wait, for what, and for whom."""
    async with asyncio.timeout(20):
        while not any(no.path == "pre-reboot" and no.kind == kind and by in no.value for no in client.no):
            await asyncio.sleep(0.05)


async def all_is_well(fleet: Fleet, clients: list[LockClient], since: int) -> None:
    assert {c.name: c.reboots for c in clients} == dict.fromkeys(fleet.names, 1)
    assert clients[0].book.most == 1, clients[0].book.order
    assert fleet.ledger.reboots() == dict.fromkeys(fleet.names, 1)
    assert {boot: nonces for boot, nonces in fleet.ledger.permits().items() if len(nonces) != 1} == {}
    assert len(fleet.ledger.permits()) == len(fleet.names)
    assert fleet.ledger.most_racks_open(since) == 1
    await fleet.all_in_service()
    for rack in sorted({rack for _, rack in fleet.nodes}):

        async def free(rack: str = rack) -> bool:
            [lock] = fleet.consul.ask(f"/v1/kv/{fleet.run}/racks/{rack}/.lock")
            return "Session" not in lock

        await fleet.until(free, f"the lock of {rack} to be free")


@pytest.mark.parametrize(("racks", "machines", "kind"), [(1, 2, "limit"), (2, 1, "racks")])
async def test_two_wait_for_each_other_and_the_leader_dies_between(
    racks: int, machines: int, kind: str, dev_consul: Agent, tmp_path: Path
) -> None:
    async with Fleet(dev_consul, tmp_path, racks=racks, machines=machines) as fleet, serving(fleet) as clients:
        first, second = clients
        since = len(fleet.ledger.records)
        first.boots.clear()
        first.staged.set()
        await asyncio.wait_for(first.granted.wait(), 20)
        second.staged.set()
        await refused(second, kind, first.name)
        fleet.kill_leader()
        # The next leader knows who is out, and keeps the other waiting: twice more at least.
        before = len(second.no)
        async with asyncio.timeout(30):
            while len([no for no in second.no[before:] if no.kind == kind and first.name in no.value]) < 2:
                await asyncio.sleep(0.05)
        assert fleet.kills == 1
        assert not second.granted.is_set()
        first.boots.set()
        await all_steady([first])
        async with asyncio.timeout(30):
            while not second.reboots:
                await asyncio.sleep(0.05)
        await all_steady(clients)
        assert first.book.order == [first.name, second.name]
        await all_is_well(fleet, clients, since)


@pytest.mark.parametrize("moment", [pytest.param("before", marks=pytest.mark.slow), "after"])
async def test_leader_is_killed_at_every_commit(moment: str, dev_consul: Agent, tmp_path: Path) -> None:
    """Whatever was on its way when it died: each client reboots once, with one permit, and one at a time."""
    async with Fleet(dev_consul, tmp_path, racks=2, machines=2) as fleet, serving(fleet) as clients:
        since = len(fleet.ledger.records)
        way = [
            ("in-service", "draining"),
            ("draining", "drained"),
            ("drained", "rebooting"),
            ("rebooting", "verifying|enabling"),
            ("enabling", "in-service"),
        ]
        fleet.blows = [Blow(moment, fleet.names[0], frm, to) for frm, to in way]
        for client in clients:
            client.staged.set()
        async with asyncio.timeout(90):
            while not all(client.reboots for client in clients):
                await asyncio.sleep(0.05)
        await all_steady(clients)
        await all_is_well(fleet, clients, since)
        assert (fleet.blows, fleet.kills) == ([], len(way))

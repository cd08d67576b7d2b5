"""Which FleetLock clients are heard, for which machines, and what is left of the others."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import pytest

from rebootd.coordinator import reception
from rebootd.core.errors import Refused
from rebootd.core.model import State
from rebootd.core.operations import forget
from rebootd.store.port import Set
from tests.coordinator.lab import Host, Lab, eventually, record
from tests.coordinator.lock_lab import BECAUSE, ON, RACKS, ask, back, leading, permit, policy, pre, served

if TYPE_CHECKING:
    from rebootd.store.port import Node


async def test_a_rack_that_is_unknown_is_listed_and_never_drained() -> None:
    lab = Lab(RACKS)
    lab.consul.register_node("stray", {"rack": "no such/rack"})
    async with leading(lab) as leader:
        await served(leader, "stray")
        word = await pre(leader, "stray")
        assert (word.granted, word.kind) == (False, "no-rack")
        assert record(leader, "stray").state is State.IN_SERVICE


async def test_a_node_names_its_client_in_its_meta() -> None:
    lab = Lab({"r1": ["a1"]})
    uuid = "c988d2509fdf4cdcbed39037c56406fb"
    lab.consul.register_node(
        "coreos", {"rack": "r9", "role": "web", "fleetlock-id": uuid, "consul-network-segment": ""}
    )
    async with leading(lab) as leader:
        assert await leader.clients.machine(uuid) == "coreos"
        await ask(leader, uuid, steady=True, group="workers")
        await eventually(lambda: record(leader, "coreos").state is State.IN_SERVICE)
        assert record(leader, "coreos").labels == {"role": "web", "fleetlock": "workers"}
        for unknown in ("coreos", "nobody", uuid.upper()):
            with pytest.raises(Refused, match="not known to the Consul catalog"):
                await leader.clients.machine(unknown)
    lab.consul.register_node("twin", {"rack": "r9", "fleetlock-id": uuid})
    async with leading(lab) as leader:
        with pytest.raises(Refused, match="coreos, twin"):
            await leader.clients.machine(uuid)


async def test_a_machine_with_an_agent_is_asked_by_its_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    lab, host = Lab(RACKS), Host("a1")
    async with leading(lab) as leader:
        await host.join(leader)
        for word in (await pre(leader, "a1"), await back(leader, "a1")):
            assert (word.granted, word.kind) == (False, "has-agent")
        # The other way round: an agent where a client was before is a conflict, until the record is forgotten.
        await served(leader, "b1")
        with pytest.raises(Refused, match="two machine-ids"):
            await Host("b1").report(leader)
        assert (await pre(leader, "b1")).kind == "conflict"
        # That agent never called again.
        monkeypatch.setattr(reception, "CONFLICT_LASTS", 0.0)
        assert (await pre(leader, "b1")).granted
        await served(leader, "b1")


async def test_off_unless_the_policy_lets_it() -> None:
    lab = Lab(RACKS)
    async with leading(lab) as leader:
        await served(leader, "a1", "b1")
        assert (await pre(leader, "a1")).granted
        await policy(leader, "settle: 0s\n")
        assert (await pre(leader, "b1")).kind == "disabled"
        assert (await back(leader, "b2")).kind == "disabled"
        assert "b2" not in leader.fleet.machines
        # Who is out comes back all the same (S5).
        await served(leader, "a1")


async def test_it_is_forgotten_when_its_client_is_silent() -> None:
    lab = Lab(RACKS)
    async with leading(lab, ON.replace("true", "true, wish: 1s")) as leader:
        await served(leader, "a1")
        with pytest.raises(Refused, match="still reports"):
            await leader.apply(lambda s: forget(s, "a1", BECAUSE))
        await asyncio.sleep(1.1)
        await leader.apply(lambda s: forget(s, "a1", BECAUSE))
        assert "a1" not in leader.fleet.machines
        # It is no ghost: the next call makes a new record.
        await served(leader, "a1")


async def test_a_leader_of_an_older_version_between_two_of_ours() -> None:
    """It writes records without what it does not know; the client's next call puts that right."""
    lab = Lab(RACKS)
    async with leading(lab) as leader:
        await served(leader, "a1", "a2")
        assert (await pre(leader, "a1")).granted
        given = permit(leader, "a1")
    for name in ("a1", "a2"):
        entry = lab.consul.entries[f"rebootd/machines/{name}"]
        old = {k: v for k, v in msgspec.json.decode(entry.value).items() if k != "fleetlock"}
        await lab.store.commit([Set(key=entry.key, value=msgspec.json.encode(old), cas=entry.modify_index)])
    async with leading(lab) as leader:
        assert record(leader, "a2").fleetlock is None
        assert (await pre(leader, "a1")).granted
        assert permit(leader, "a1").nonce == given.nonce
        assert (await back(leader, "a2")).granted
        await served(leader, "a1")
        assert [m.fleetlock is not None for m in leader.fleet.machines.values()] == [True, True]


async def test_two_requests_of_one_client_at_once() -> None:
    lab = Lab(RACKS)
    async with leading(lab) as leader:
        await served(leader, "a1")
        words = await asyncio.gather(*(pre(leader, "a1") for _ in range(4)))
        assert [w.kind for w in words if not w.granted] == ["asked-again"] * 3
        assert [w.granted for w in words].count(True) == 1
        assert leader.fleet.calls == {}


async def test_clients_that_nobody_knows_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(RACKS)
    looks = 0
    watch_nodes = lab.store.watch_nodes

    async def counted(index: int, wait: float) -> tuple[list[Node], int]:
        nonlocal looks
        # From 0 it answers at once: that is a look.
        looks += not index
        return await watch_nodes(index, wait)

    async with leading(lab) as leader:
        monkeypatch.setattr(lab.store, "watch_nodes", counted)
        for number in range(200):
            with pytest.raises(Refused):
                await leader.clients.machine(f"nobody-{number}")
        assert looks <= 2
        assert (leader.fleet.calls, leader.fleet.machines) == ({}, {})

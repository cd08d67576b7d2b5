"""Daemons on machines of the fleet: leadership is handed over before the leader's own host is taken out."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

from tests.e2e.fleet import Fleet
from tests.e2e.puppet import Puppet, puppets

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.cluster import Agent

POLICY = "settle: 0s\n"


class Scene(NamedTuple):
    """A fleet whose first machines have a daemon each."""

    fleet: Fleet
    machines: list[Puppet]

    async def leader(self) -> str:
        """The machine of the present leader."""
        return str((await self.fleet.status()).daemon["node"])


@asynccontextmanager
async def scene(consul: Agent, folder: Path, daemons: int, racks: int) -> AsyncIterator[Scene]:
    fleet = Fleet(consul, folder, daemons=daemons, racks=racks, machines=2)
    fleet.hosts = fleet.names[::2][:daemons]
    async with fleet, puppets(fleet.names, [slot.front.url for slot in fleet.slots]) as made:
        await fleet.all_in_service()
        await fleet.apply_policy(POLICY)
        yield Scene(fleet, made)


async def leaders(s: Scene) -> dict[int, str]:
    """The machine of each epoch's leader, as the daemons' logs say."""
    found: dict[int, str] = {}
    for slot, host in zip(s.fleet.slots, s.fleet.hosts, strict=True):
        assert slot.child is not None
        text = await asyncio.to_thread((s.fleet.folder / f"daemon{slot.number}.log").read_text)
        for line in text.splitlines():
            if "event='leading'" in line:
                found[int(line.split("epoch=")[1].split()[0])] = host
    return found


async def test_every_host_reboots_and_none_while_it_leads(dev_consul: Agent, tmp_path: Path) -> None:
    async with scene(dev_consul, tmp_path, daemons=2, racks=2) as s:
        first = await s.leader()
        await s.fleet.start_cycle("k")
        await s.fleet.cycle_done("k")
        assert {p.name: len(p.permitted) for p in s.machines} == dict.fromkeys(s.fleet.names, 1)
        led = await leaders(s)
        out = [(e.machine, e.epoch) for e in await s.fleet.events() if e.to == "draining"]
        assert len(out) == len(s.fleet.names)
        assert [(m, led[epoch]) for m, epoch in out if led[epoch] == m] == []
        # One hand-over is enough: the other hosts went before, and the first leader's last in the last rack.
        assert (len(led), out[-1][0]) == (2, first)


async def test_a_daemon_on_a_host_that_is_out_lets_others_lead(dev_consul: Agent, tmp_path: Path) -> None:
    async with scene(dev_consul, tmp_path, daemons=2, racks=2) as s:
        own = await s.leader()
        puppet = next(p for p in s.machines if p.name == own)
        puppet.hold("reboots")
        await s.fleet.ask("POST", "/v1/cycles", id="k", selector=f"name={own}", by="test")
        await s.fleet.reach(own, "drained")
        other = await s.leader()
        assert other != own
        epoch = (await s.fleet.status()).epoch
        # It is started again at once, and the daemon on the host that is out was there all the time.
        s.fleet.kill_leader()

        async def led() -> bool:
            return (await s.fleet.status()).epoch > epoch

        await s.fleet.until(led, "the next leader", 20)
        assert await s.leader() == other
        puppet.let("reboots")
        await s.fleet.cycle_done("k")


async def test_the_only_daemon_takes_its_own_host_out_while_it_leads(dev_consul: Agent, tmp_path: Path) -> None:
    async with scene(dev_consul, tmp_path, daemons=1, racks=1) as s:
        await s.fleet.start_cycle("k")
        await s.fleet.cycle_done("k")
        assert {p.name: len(p.permitted) for p in s.machines} == dict.fromkeys(s.fleet.names, 1)
        assert list(await leaders(s)) == [(await s.fleet.status()).epoch]

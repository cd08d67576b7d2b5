"""Cycles through real daemons and a real Consul, with operators and other tools at work meanwhile."""

from __future__ import annotations

import asyncio
import json
import subprocess
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

import pytest

from rebootd.cli.ctl_client import Trouble
from rebootd.consul.binary import locate
from tests.e2e.fleet import Fleet
from tests.e2e.puppet import Puppet, puppets

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from aiohttp import web

    from tests.support.cluster import Agent


class Scene(NamedTuple):
    """A fleet with one daemon, in service, and its machines by rack: ``r1m1``, ``r1m2``, ``r2m1``, ``r2m2``."""

    fleet: Fleet
    machines: list[Puppet]

    def consul(self, *arguments: str) -> str:
        """A real consul command."""
        command = [str(locate()), *arguments[:2], f"-http-addr={self.fleet.consul.url}", *arguments[2:]]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout

    def key(self, name: str) -> str:
        return f"{self.fleet.run}/{name}"

    async def state(self, puppet: Puppet) -> str:
        return (await self.fleet.states())[puppet.name]

    async def is_(self, puppet: Puppet, state: str) -> None:
        await self.fleet.reach(puppet.name, state, 20)

    async def why(self, puppet: Puppet) -> str:
        said = json.loads(await self.fleet.ask("GET", f"/v1/machines/{puppet.name}/explain"))
        return "; ".join(f"{b['kind']}: {b['what']} ({b['clears']})" for b in said["blockers"])

    async def waits_for(self, puppet: Puppet, kind: str) -> str:
        async def so() -> str:
            why = await self.why(puppet)
            return why if f"{kind}: " in why else ""

        why = await self.fleet.until(so, f"{puppet.name} to wait for {kind}", 20)
        assert isinstance(why, str)
        return why


@asynccontextmanager
async def scene(
    consul: Agent, folder: Path, racks: int = 1, machines: int = 2, daemons: int = 1
) -> AsyncIterator[Scene]:
    async with Fleet(consul, folder, daemons=daemons, racks=racks, machines=machines) as fleet:
        urls = [slot.front.url for slot in fleet.slots]
        async with puppets(fleet.names, urls) as made:
            await fleet.all_in_service()
            yield Scene(fleet, made)


def rebooted_once(machines: list[Puppet]) -> None:
    assert {p.name: len(p.permitted) for p in machines} == {p.name: 1 for p in machines}


async def test_emergency_stop_by_consul_kv_put(dev_consul: Agent, tmp_path: Path) -> None:
    async with scene(dev_consul, tmp_path) as s:
        first, second = s.machines
        first.hold("reboots")
        await s.fleet.start_cycle("k")
        await s.is_(first, "drained")
        s.consul("kv", "put", s.key("control/halt"), "smoke in the building")
        first.let("reboots")
        await s.is_(first, "in-service")
        assert "smoke in the building" in await s.waits_for(second, "halt")
        assert (first.permitted, second.permitted) == ([], [])
        s.consul("kv", "delete", s.key("control/halt"))
        await s.fleet.cycle_done("k")
        rebooted_once(s.machines)


async def test_halt_refuses_the_permit_itself(dev_consul: Agent, tmp_path: Path) -> None:
    """The halt is put while the permit is on its way, before the leader can have seen it."""
    async with scene(dev_consul, tmp_path) as s:
        slot = s.fleet.slots[0]
        passing = slot.back.before
        put: list[str] = []

        async def halt_first(request: web.Request, body: bytes) -> None:
            changes = s.fleet.ledger.changes(body) if request.path == "/v1/txn" and not put else []
            if any(change.to == "rebooting" for change in changes):
                put.append(s.consul("kv", "put", s.key("control/halt"), "now"))
            await passing(request, body)

        slot.back.before = halt_first
        await s.fleet.start_cycle("k")
        first = s.machines[0]

        async def halted() -> bool:
            return bool(put) and await s.state(first) == "in-service"

        await s.fleet.until(halted, "the machine to come back")
        assert first.permitted == []
        assert first.refused != []
        s.consul("kv", "delete", s.key("control/halt"))
        await s.fleet.cycle_done("k")
        rebooted_once(s.machines)


async def test_what_is_down_comes_back_during_a_halt(dev_consul: Agent, tmp_path: Path) -> None:
    async with scene(dev_consul, tmp_path) as s:
        first, second = s.machines
        first.hold("boots")
        await s.fleet.start_cycle("k")
        await s.is_(first, "rebooting")
        await s.fleet.ask("PUT", "/v1/halt", reason="wait", by="test")
        first.let("boots")
        await s.is_(first, "in-service")
        await s.waits_for(second, "halt")
        await s.fleet.ask("DELETE", "/v1/halt", reason="go on", by="test")
        await s.fleet.cycle_done("k")
        rebooted_once(s.machines)


async def test_unplanned_boot_counts_while_it_is_out(dev_consul: Agent, tmp_path: Path) -> None:
    async with scene(dev_consul, tmp_path, machines=7) as s:
        crashed, other = s.machines[0], s.machines[1]
        crashed.hold("passes")
        crashed.crash()
        await s.is_(crashed, "verifying")
        await s.fleet.start_cycle("k")
        assert "r1" in await s.waits_for(other, "limit")
        assert other.permitted == []
        crashed.let("passes")
        await s.is_(crashed, "in-service")
        await s.fleet.cycle_done("k")
        assert all(len(p.permitted) == 1 for p in s.machines[1:])
        events = [e for e in await s.fleet.events() if e.machine == crashed.name and e.cause == "unplanned boot"]
        assert len(events) == 1
        assert events[0].boot_id == crashed.boot_ids[1]


async def test_hand_edited_record_sets_one_machine_aside(dev_consul: Agent, tmp_path: Path) -> None:
    async with scene(dev_consul, tmp_path, racks=2, machines=1) as s:
        edited, other = s.machines
        s.consul("kv", "put", s.key(f"machines/{edited.name}"), "garbage")
        await s.fleet.start_cycle("k")
        await s.is_(edited, "unreadable")

        async def rebooted() -> bool:
            return len(other.permitted) == 1 and await s.state(other) == "in-service"

        await s.fleet.until(rebooted, "the other machine to reboot")
        alarms = json.loads(await s.fleet.ask("GET", "/v1/status"))["alarms"]
        assert [a["machine"] for a in alarms if a["kind"] == "aside"] == [edited.name]
        assert edited.permitted == []
        assert (await s.fleet.status()).epoch == 1, "nobody was deposed"
        await s.fleet.ask("POST", f"/v1/machines/{edited.name}/forget", by="test", reason="broken by hand", force=True)
        await s.is_(edited, "in-service")
        await s.fleet.cycle_done("k")
        assert (len(edited.permitted), len(other.permitted)) == (0, 1)
        await s.fleet.start_cycle("again")
        await s.fleet.cycle_done("again")
        assert (len(edited.permitted), len(other.permitted)) == (1, 2)


async def test_consul_lock_keeps_rebootd_out(dev_consul: Agent, tmp_path: Path) -> None:
    async with scene(dev_consul, tmp_path, racks=2, machines=1) as s:
        command = [str(locate()), "lock", f"-http-addr={dev_consul.url}", "-shell=false", s.key("racks/r1")]
        command += ["sleep", "600"]
        engineer = await asyncio.create_subprocess_exec(*command, stdout=-3, stderr=-3)
        try:

            async def locked() -> bool:
                racks = json.loads(await s.fleet.ask("GET", "/v1/racks"))["racks"]
                return any(r["rack"] == "r1" and r["lock"] == "other" for r in racks)

            await s.fleet.until(locked, "the rack to be locked by another", 20)
            await s.fleet.start_cycle("k")
            first, second = s.machines
            assert "locked by session" in await s.waits_for(first, "rack-lock")
            assert "r1" in await s.waits_for(second, "racks")
        finally:
            with suppress(ProcessLookupError):
                engineer.terminate()
            await engineer.wait()
        await s.fleet.cycle_done("k")
        rebooted_once(s.machines)


async def test_hold_and_release(dev_consul: Agent, tmp_path: Path) -> None:
    async with scene(dev_consul, tmp_path, racks=2) as s:
        held = s.machines[0]
        await s.fleet.ask("PUT", f"/v1/holds/machine/{held.name}", reason="new disk", by="test")
        await s.is_(held, "held")
        await s.fleet.start_cycle("k")
        assert "new disk" in await s.waits_for(held, "hold")
        # A held machine counts in its rack's limit, so its neighbour waits; the other rack goes on.
        await s.waits_for(s.machines[1], "limit")

        async def others() -> bool:
            return all(len(p.permitted) == 1 for p in s.machines[2:])

        await s.fleet.until(others, "the other rack to reboot")
        assert (held.permitted, s.machines[1].permitted) == ([], [])
        held.crash()

        async def recorded() -> bool:
            return any(e.cause == "unplanned boot" and e.to == "held" for e in await s.fleet.events())

        await s.fleet.until(recorded, "the technician's boot to be recorded")
        assert await s.state(held) == "held"
        await s.fleet.release(held.name)
        await s.is_(held, "in-service")
        await s.fleet.cycle_done("k")
        assert len(s.machines[1].permitted) == 1
        assert len(held.permitted) <= 1


async def test_rack_on_hold(dev_consul: Agent, tmp_path: Path) -> None:
    async with scene(dev_consul, tmp_path) as s:
        await s.fleet.ask("PUT", "/v1/holds/rack/r1", reason="new switch", by="test")
        first, second = s.machines
        await s.is_(first, "held")
        await s.waits_for(second, "limit")
        await s.fleet.ask("DELETE", "/v1/holds/rack/r1", by="test")
        await s.is_(first, "in-service")
        assert (first.permitted, second.permitted) == ([], [])


async def test_window_closes_on_a_drained_machine(dev_consul: Agent, tmp_path: Path) -> None:
    async with scene(dev_consul, tmp_path) as s:
        await s.fleet.apply_policy("windows: {required: true}\n")
        first = s.machines[0]
        first.hold("reboots")
        await s.fleet.start_cycle("k")
        await s.waits_for(first, "window")
        opened = json.loads(await s.fleet.ask("POST", "/v1/windows", duration="1h", by="test", reason="night"))
        await s.is_(first, "drained")
        await s.fleet.ask("DELETE", f"/v1/windows/{opened['id']}", by="test")
        await s.is_(first, "in-service")
        first.let("reboots")
        await s.waits_for(first, "window")
        assert first.permitted == []
        await s.fleet.ask("POST", "/v1/windows", duration=3600, by="test")
        await s.fleet.cycle_done("k")
        rebooted_once(s.machines)


async def test_policy_is_applied_while_a_cycle_runs(dev_consul: Agent, tmp_path: Path) -> None:
    async with scene(dev_consul, tmp_path) as s:
        first, second = s.machines
        first.hold("boots")
        await s.fleet.start_cycle("k")
        await s.is_(first, "rebooting")
        assert "1" in await s.waits_for(second, "limit")
        with pytest.raises(Trouble, match=r"racks\.unavailable") as refused:
            await s.fleet.apply_policy("racks: {unavailable: many}\n")
        assert refused.value.code == 2
        assert second.permitted == []
        await s.fleet.apply_policy("racks: {unavailable: 2}\n")
        await s.is_(second, "in-service")
        assert len(second.permitted) == 1, "both were out at once"
        first.let("boots")
        await s.fleet.cycle_done("k")
        rebooted_once(s.machines)


async def test_lost_rack_lock_stops_new_drains_until_it_is_held_again(dev_consul: Agent, tmp_path: Path) -> None:
    async with scene(dev_consul, tmp_path, racks=2, machines=1) as s:
        first, second = s.machines
        first.hold("reboots")
        await s.fleet.start_cycle("k")
        await s.is_(first, "drained")
        [lock] = dev_consul.ask(f"/v1/kv/{s.key('racks/r1/.lock')}")
        dev_consul.ask(f"/v1/session/destroy/{lock['Session']}", "PUT")

        async def held_again() -> bool:
            [now] = dev_consul.ask(f"/v1/kv/{s.key('racks/r1/.lock')}")
            return bool(now.get("Session", lock["Session"]) != lock["Session"])

        await s.fleet.until(held_again, "the rack to be locked again", 30)
        assert await s.state(second) == "in-service"
        assert second.permitted == []
        first.let("reboots")
        await s.fleet.cycle_done("k")
        rebooted_once(s.machines)


async def test_whoever_follows_events_misses_none_over_a_failover(dev_consul: Agent, tmp_path: Path) -> None:
    async with scene(dev_consul, tmp_path, machines=1, daemons=2) as s:
        [machine] = s.machines
        machine.hold("passes")
        machine.crash()
        await s.is_(machine, "verifying")
        machine.let("passes")
        await s.is_(machine, "in-service")
        late = {"name": machine.name, "machine_id": machine.machine_id, "boot_id": machine.boot_ids[0]}
        with pytest.raises(Trouble, match="superseded"):
            await s.fleet.ask("POST", f"/v1/machines/{machine.name}/report", **late)
        seen = await s.fleet.events()
        # Refusals are told, and have a number, but are not stored: the next leader knows nothing of this one.
        assert (seen[-1].kind, seen[-1].cause) == ("refused", "stale boot_id")
        s.fleet.kill_leader()
        await s.fleet.start_cycle("k")
        await s.fleet.cycle_done("k")
        later = (await s.fleet.ask("GET", f"/v1/events?limit=1000&after={seen[-1].seq}")).decode()
        states = [row["to"] for row in map(json.loads, later.splitlines()) if row["kind"] == "transition"]
        assert states == ["draining", "drained", "rebooting", "verifying", "enabling", "in-service"]


async def test_unknown_things_are_refused(dev_consul: Agent, tmp_path: Path) -> None:
    async with scene(dev_consul, tmp_path, machines=1) as s:
        for method, path, body, code, said in (
            ("POST", "/v1/cycles", {"id": "k", "selector": "rack=="}, 2, "selector"),
            ("POST", "/v1/cycles", {"id": "../k", "selector": "*"}, 2, "id"),
            ("POST", "/v1/windows", {"duration": "soon"}, 2, "duration"),
            ("PUT", "/v1/holds/machine/nobody", {"reason": "x"}, 1, "nobody"),
            ("POST", "/v1/quarantine/nobody/clear", {}, 1, "nobody"),
        ):
            with pytest.raises(Trouble, match=said) as refused:
                await s.fleet.ask(method, path, **{"by": "test", **body})
            assert refused.value.code == code, (path, str(refused.value))

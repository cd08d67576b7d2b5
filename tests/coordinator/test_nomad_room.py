"""What a leader asks of Nomad and when: on the memory store, with a Nomad that a test scripts."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from rebootd.coordinator.drains import nomad as room
from rebootd.core.errors import Unreachable
from rebootd.core.model import Machine
from rebootd.core.nomad import NomadAlloc, NomadClient, NomadService
from rebootd.core.operations_inputs import Because
from rebootd.core.operations_policy import apply_policy
from tests.coordinator.lab import Host, Lab, eventually, record, start

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

    from rebootd.coordinator.leader import Leader
    from rebootd.core.nomad import NomadDrain

POLICY = """
settle: 0s
failures: {retry: {drains: 0}}
drains: {nomad: {machines: "*", deadline: 1m, patience: 1s}}
"""
WEB = NomadAlloc(name="web.web[0]", job="default/web", type="service", live=True, running=True)


class Scripted:
    """A Nomad with one client per machine. A drain ends when ``ends`` is set. ``orders`` is what was asked of it."""

    def __init__(self, lab: Lab, *names: str) -> None:
        self.lab = lab
        self.known = {f"n-{name}": NomadClient(id=f"n-{name}", name=name) for name in names}
        self.orders: list[str] = []
        self.ends = asyncio.Event()
        self.away = False
        self.committed: list[bool] = []

    def _there(self) -> None:
        if self.away:
            raise Unreachable("nobody there")

    def set(self, node: str, **facts: object) -> None:
        self.known[node] = replace(self.known[node], **facts)

    async def clients(self, name: str = "") -> list[NomadClient]:
        self._there()
        if self.ends.is_set():
            for node in [n for n, c in self.known.items() if c.draining]:
                self.set(node, draining=False, drain="complete")
        return [c for c in self.known.values() if name in {"", c.name}]

    async def allocs(self, node: str) -> tuple[NomadAlloc, ...]:
        self._there()
        return () if self.known[node].drain == "complete" else (WEB,)

    async def service(self, _job: str) -> NomadService | None:
        self._there()
        return NomadService(1, 1)

    async def drain(self, drain: NomadDrain) -> None:
        self._there()
        self.orders.append(f"drain {drain.node}")
        name = self.known[drain.node].name
        stored = msgspec.json.decode(self.lab.value(f"machines/{name}"), type=Machine)
        self.committed.append(stored.nomad == drain)
        self.set(drain.node, draining=True, eligible=False, drain="draining", mark=drain.mark, was="eligible")

    async def stop_drain(self, node: str, *, eligible: bool) -> None:
        self._there()
        self.orders.append(f"stop {node} {eligible}")
        self.set(node, draining=False, drain="canceled", eligible=eligible)

    async def enable(self, node: str) -> None:
        self._there()
        self.orders.append(f"enable {node}")
        self.set(node, eligible=True)

    async def close(self) -> None:
        pass


class Scene:
    """One machine, ``m1``, under leaders one after another."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, seconds in (("LOOK", 0.02), ("REST", 0.02), ("LIST", 0.05), ("LIST_SOON", 0.02)):
            monkeypatch.setattr(room, name, seconds)
        self.lab = Lab({"r1": ["m1"]})
        self.nomad = Scripted(self.lab, "m1")
        self.host = Host("m1")

    @asynccontextmanager
    async def leading(self) -> AsyncIterator[Leader]:
        async with self.lab.leader(nomad=self.nomad) as leader:
            await self.host.join(leader)
            await leader.apply(lambda s: apply_policy(s, POLICY, Because("test", "a test")))
            yield leader


async def out_and_back(s: Scene, leader: Leader) -> None:
    """The rest of the way of a machine that is drained."""
    await s.host.until(leader, "drained")
    assert (await s.host.ask(leader)).granted
    s.host.reboot()
    await s.host.until(leader, "in-service")


async def test_what_was_there_is_stored_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    s = Scene(monkeypatch)
    async with s.leading() as leader:
        await start(leader)
        await s.host.until(leader, "draining")
        await eventually(lambda: bool(s.nomad.orders))
        s.nomad.ends.set()
        await out_and_back(s, leader)
        assert s.nomad.committed == [True]
        assert s.nomad.orders == ["drain n-m1", "enable n-m1"]
        assert record(leader, "m1").nomad is None


async def test_the_next_leader_goes_on_and_asks_for_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    s = Scene(monkeypatch)
    async with s.leading() as leader:
        await start(leader)
        await s.host.until(leader, "draining")
        await eventually(lambda: bool(s.nomad.orders))
    async with s.lab.leader(nomad=s.nomad) as leader:
        s.nomad.ends.set()
        await out_and_back(s, leader)
    assert s.nomad.orders == ["drain n-m1", "enable n-m1"]


async def test_a_drain_that_a_dead_leader_sent_late_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    s = Scene(monkeypatch)
    async with s.leading() as leader:
        s.nomad.set("n-m1", draining=True, eligible=False, drain="draining", mark="rebootd/m1/3", was="eligible")
        await eventually(lambda: s.nomad.orders == ["stop n-m1 True"])
        # What people do is theirs.
        s.nomad.set("n-m1", draining=True, eligible=False, drain="draining", mark="")
        seen = leader.fleet.nomad
        await eventually(lambda: leader.fleet.nomad is not None and leader.fleet.nomad is not seen)
        await eventually(lambda: "draining=True" in repr(leader.fleet.nomad))
        assert s.nomad.orders == ["stop n-m1 True"]


async def test_who_is_owed_something_gets_it_when_nomad_answers_again(monkeypatch: pytest.MonkeyPatch) -> None:
    s = Scene(monkeypatch)
    async with s.leading() as leader:
        await start(leader)
        await s.host.until(leader, "draining")
        await eventually(lambda: bool(s.nomad.orders))
        s.nomad.ends.set()
        await s.host.until(leader, "drained")
        assert (await s.host.ask(leader)).granted
        s.nomad.away = True
        s.host.reboot()
        await s.host.until(leader, "in-service")
        assert record(leader, "m1").nomad is not None
        assert s.nomad.orders == ["drain n-m1"]
        await eventually(lambda: "not yet as they were at Nomad: m1" in "".join(leader.snapshot().alarms))
        s.nomad.away = False
        await eventually(lambda: record(leader, "m1").nomad is None)
        await eventually(lambda: leader.snapshot().alarms == ())
        assert s.nomad.orders == ["drain n-m1", "enable n-m1"]


async def test_a_leader_without_an_address_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    s = Scene(monkeypatch)
    async with s.leading():
        pass
    async with s.lab.leader() as leader:
        assert "no address" in "".join(leader.snapshot().alarms)


async def test_nothing_is_asked_by_a_leader_that_may_not_speak(monkeypatch: pytest.MonkeyPatch) -> None:
    s = Scene(monkeypatch)
    async with s.leading() as leader:
        await start(leader)
        await s.host.until(leader, "draining")
        await eventually(lambda: bool(s.nomad.orders))
        s.nomad.ends.set()
        await s.host.until(leader, "drained")
        monkeypatch.setattr(room.NomadRoom, "_may_act", lambda _: False)
        assert (await s.host.ask(leader)).granted
        s.host.reboot()
        await s.host.until(leader, "enabling")
        at = leader.fleet.nomad
        await eventually(lambda: leader.fleet.nomad is not at)
        assert s.nomad.orders == ["drain n-m1"]

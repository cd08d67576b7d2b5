"""Drains at a real Nomad: real daemons, a real Nomad server and three of its clients, machines that reboot in no time.

A Nomad client goes on running while its machine "reboots" here: what is looked at is what the leader asks of Nomad.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.e2e.fleet import Fleet
from tests.e2e.puppet import Puppet, puppets
from tests.support.cluster import wait_for
from tests.support.nomad import job, nomad

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.support.cluster import Agent
    from tests.support.nomad import Nomad

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

POLICY = """
settle: 0s
failures: {{retry: {{drains: 0}}}}
drains: {{nomad: {{machines: "*", patience: 2s, {nomad}}}}}
"""
CLIENTS = ("c1", "c2", "c3")
STUBBORN: dict[str, Any] = {
    "Config": {"command": "/bin/sh", "args": ["-c", "trap '' INT TERM; while :; do sleep 1; done"]}
}
"""A task that stops only when it is killed, at the end of its ``KillTimeout``."""


@pytest.fixture(scope="module")
def real() -> Iterator[Nomad]:
    with nomad({name: {"rack": f"r{n}"} for n, name in enumerate(CLIENTS, 1)}) as made:
        yield made


@pytest.fixture
def clean(real: Nomad) -> Iterator[Nomad]:
    """Nomad with no job, and every client eligible."""
    yield real
    for found in real.ask("/v1/jobs"):
        real.ask(f"/v1/job/{found['ID']}?purge=true", "DELETE")
    for name in CLIENTS:
        wait_for(partial(_empty, real, name), f"{name} to be empty", 40)
        node = real.node(name)["ID"]
        real.ask(f"/v1/node/{node}/drain", "PUT", {"NodeID": node, "DrainSpec": None, "MarkEligible": True})


def _empty(real: Nomad, name: str) -> bool:
    return not real.allocs(name)


class Scene(NamedTuple):
    """A fleet in service, and its machines by client: ``c1`` is in rack ``r1`` and so on."""

    fleet: Fleet
    nomad: Nomad
    machines: dict[str, Puppet]

    async def ask(self, question: Any, *arguments: Any) -> Any:
        """An answer of Nomad, off the loop."""
        return await asyncio.to_thread(question, *arguments)

    async def until(self, what: str, question: Any, *arguments: Any, timeout: float = 40) -> None:
        async def so() -> bool:
            try:
                return bool(await self.ask(question, *arguments))
            except OSError:
                return False

        await self.fleet.until(so, what, timeout)

    async def show(self, client: str) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(await self.fleet.ask("GET", f"/v1/machines/{self.machines[client].name}"))
        return shown

    async def why(self, client: str) -> str:
        return "; ".join(b["what"] for b in (await self.show(client))["blockers"])

    async def run(self, *jobs: dict[str, Any]) -> None:
        """Runs jobs until all of their allocations do."""
        for one in jobs:
            await self.ask(self.nomad.run, one)
            await self.until(f"{one['ID']} to run", self._runs, one)

    def _runs(self, one: dict[str, Any]) -> bool:
        wanted: int = one["TaskGroups"][0].get("Count", len(CLIENTS))
        return len(self.nomad.running(one["ID"])) == wanted

    async def one(self, client: str, cycle: str = "k") -> None:
        """A cycle of one machine."""
        name = self.machines[client].name
        await self.fleet.ask("POST", "/v1/cycles", id=cycle, selector=f"name={name}", by="test")


@asynccontextmanager
async def scene(
    consul: Agent, clean: Nomad, folder: Path, monkeypatch: pytest.MonkeyPatch, policy: str, daemons: int = 1
) -> AsyncIterator[Scene]:
    monkeypatch.setenv("NOMAD_ADDR", clean.servers[0].url)
    fleet = Fleet(consul, folder, daemons=daemons, racks=len(CLIENTS))
    fleet.meta = {name: {"nomad_node": client} for name, client in zip(fleet.names, CLIENTS, strict=True)}
    async with fleet, puppets(fleet.names, [slot.front.url for slot in fleet.slots]) as made:
        await fleet.all_in_service()
        await fleet.apply_policy(POLICY.format(nomad=policy))
        yield Scene(fleet, clean, dict(zip(CLIENTS, made, strict=True)))


def permits(s: Scene) -> list[tuple[str, list[str]]]:
    """From now on: each client whose machine is given its permit, with the jobs that run on it at that moment."""
    found: list[tuple[str, list[str]]] = []
    clients = {puppet.name: client for client, puppet in s.machines.items()}

    async def told(name: str, what: str, _body: bytes, answer: bytes) -> None:
        if what == "permit" and json.loads(answer)["granted"]:
            found.append((clients[name], sorted(a["JobID"] for a in await s.ask(s.nomad.allocs, clients[name]))))

    s.fleet.on_tell = told
    return found


async def test_allocations_move_before_the_reboot_and_everything_is_as_before_after_it(
    dev_consul: Agent, clean: Nomad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(dev_consul, clean, tmp_path, monkeypatch, "deadline: 30s") as s:
        await s.run(job("web", count=2), job("log", "system"))
        await s.ask(clean.eligibility, "c3", "ineligible")
        given = permits(s)
        await s.fleet.start_cycle("k")
        await s.fleet.cycle_done("k")
        assert sorted(client for client, _ in given) == list(CLIENTS)
        # What people made ineligible keeps its system job, since Nomad would not give it back.
        assert {client: jobs for client, jobs in given if client != "c3"} == {"c1": [], "c2": []}
        assert dict(given)["c3"] in (["log"], [])
        assert [await s.ask(clean.eligible, c) for c in CLIENTS] == [True, True, False]
        assert await s.ask(clean.running, "log") == list(CLIENTS)
        assert len(await s.ask(clean.running, "web")) == 2
        assert [(await s.show(c))["record"]["nomad"] for c in CLIENTS] == [None, None, None]


async def test_system_jobs_run_on_until_the_reboot_when_the_policy_says_keep(
    dev_consul: Agent, clean: Nomad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(dev_consul, clean, tmp_path, monkeypatch, "deadline: 30s, system: keep") as s:
        await s.run(job("web", count=2), job("log", "system"))
        given = permits(s)
        await s.one("c1")
        await s.fleet.cycle_done("k")
        assert given == [("c1", ["log"])]


async def test_a_drain_that_is_not_over_by_its_deadline_is_undone_at_once(
    dev_consul: Agent, clean: Nomad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(dev_consul, clean, tmp_path, monkeypatch, "deadline: 3s") as s:
        stubborn = job("db", count=3, KillTimeout=12_000_000_000, **STUBBORN)
        stubborn["Constraints"] = [{"Operand": "distinct_hosts"}]
        await s.run(stubborn)
        await s.one("c1")
        await s.fleet.reach(s.machines["c1"].name, "draining")
        await s.until("its drain to begin", lambda: clean.node("c1")["DrainStrategy"])
        shown = await s.why("c1")
        assert "its Nomad drain goes on" in shown, shown
        # With three clients for three allocations there is nowhere to go: Nomad keeps it where it is.
        done = await s.fleet.cycle_done("k")
        assert done.counts.failed == 1
        assert "1 allocations have yet to stop: db.db[" in "".join(e.detail for e in await s.fleet.events())
        node = await s.ask(clean.node, "c1")
        assert (node["DrainStrategy"], node["SchedulingEligibility"]) == (None, "eligible")
        assert s.machines["c1"].permitted == []


async def test_a_new_leader_goes_on_with_the_drain_of_a_dead_one(
    dev_consul: Agent, clean: Nomad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(dev_consul, clean, tmp_path, monkeypatch, "deadline: 40s", daemons=2) as s:
        await s.run(job("db", count=2, KillTimeout=6_000_000_000, **STUBBORN))
        client = (await s.ask(clean.running, "db"))[0]
        given = permits(s)
        await s.one(client)
        await s.until("its drain to begin", lambda: clean.node(client)["DrainStrategy"])
        begun = (await s.ask(clean.node, client))["LastDrain"]
        epoch = (await s.fleet.status()).epoch
        s.fleet.kill_leader()
        await s.fleet.cycle_done("k")
        assert (await s.fleet.status()).epoch > epoch
        assert given == [(client, [])]
        ended = (await s.ask(clean.node, client))["LastDrain"]
        assert (begun["StartedAt"], begun["Meta"]) == (ended["StartedAt"], ended["Meta"])
        assert (ended["Status"], await s.ask(clean.eligible, client)) == ("complete", True)


async def test_nomad_away_during_a_drain_keeps_nobody_out_and_is_undone_when_it_is_back(
    dev_consul: Agent, clean: Nomad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(dev_consul, clean, tmp_path, monkeypatch, "deadline: 4s") as s:
        await s.run(job("db", count=2, KillTimeout=12_000_000_000, **STUBBORN))
        client = (await s.ask(clean.running, "db"))[0]
        await s.one(client)
        await s.until("its drain to begin", lambda: clean.node(client)["DrainStrategy"])
        await s.ask(clean.servers[0].kill)
        try:
            await s.fleet.reach(s.machines[client].name, "in-service", 30)
            owed = (await s.show(client))["record"]["nomad"]
            assert owed["eligible"]
            # Nobody else goes meanwhile, and the reason says whose fault it is.
            other = next(c for c in CLIENTS if c != client)
            await s.one(other, "k2")

            async def told() -> bool:
                return "Nomad cannot be asked" in await s.why(other)

            await s.fleet.until(told, "the reason", 20)
        finally:
            clean.servers[0].spawn()
        await s.until("its eligibility", clean.eligible, client)
        await s.fleet.cycle_done("k2")
        assert (await s.show(client))["record"]["nomad"] is None
        assert (await s.ask(clean.node, client))["DrainStrategy"] is None


async def test_a_drain_of_other_people_is_waited_for_and_stays(
    dev_consul: Agent, clean: Nomad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(dev_consul, clean, tmp_path, monkeypatch, "deadline: 30s") as s:
        await s.run(job("db", count=2, KillTimeout=3_000_000_000, **STUBBORN))
        client = (await s.ask(clean.running, "db"))[0]
        await s.ask(clean.drain, client, 60)
        given = permits(s)
        await s.one(client)
        await s.fleet.cycle_done("k")
        assert given == [(client, [])]
        node = await s.ask(clean.node, client)
        assert (node["SchedulingEligibility"], node["LastDrain"]["Meta"]) == ("ineligible", None)

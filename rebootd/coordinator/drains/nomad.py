"""Nomad clients: looked at, drained and made eligible again, as the machines' committed records say.

A leader looks at the clients of machines that are on their way once a second and lists all clients now and then, so
that nobody is taken out whose client cannot be drained. Nothing here is remembered beyond a leadership: what was begun
is in the records, and what a dead leader sent late is found by its mark and ended.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import structlog
from msgspec.structs import replace

from rebootd.core.drains import Act, concerned_by, next_act, orphan, well
from rebootd.core.errors import RebootdError
from rebootd.core.model import State
from rebootd.core.nomad import NomadClient, NomadSeen, NomadSight, client_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebootd.consul.leadership import Leadership
    from rebootd.coordinator.drains.nomad_api import NomadApi
    from rebootd.coordinator.fleet import Fleet
    from rebootd.core.model import Machine
    from rebootd.core.nomad import NomadAlloc, NomadService

log = structlog.get_logger(__name__)

LOOK = 1.0
"""Seconds between two looks at a client on its way."""
REST = 15.0
"""The same for one that only waits (held, quarantined, rebooting)."""
LIST = 10.0
LIST_SOON = 2.0
"""Seconds between two lists of all clients: usually, and while booted machines wait for their clients."""
SHARE = 20
"""A list is made again after so many times the time that it took, at the earliest."""
AT_ONCE = 8
NAMED = 5
META = "nomad_node"
"""The key of Consul's node meta that names a machine's Nomad client where it is not called as its Consul node is."""
QUICK = frozenset({State.DRAINING, State.DRAINED, State.ENABLING, State.IN_SERVICE})


class NomadRoom:
    """Belongs to one leadership. Writes ``fleet.nomad``, which every decision sees."""

    def __init__(
        self, fleet: Fleet, api: NomadApi, leadership: Leadership, dirty: asyncio.Event, *, wall: Callable[[], float]
    ) -> None:
        self._fleet = fleet
        self._api = api
        self._leadership = leadership
        self._dirty = dirty
        self._wall = wall
        self._poke = asyncio.Event()
        self._due: dict[str, float] = {}
        self._list_due = 0.0
        self._seen: dict[str, NomadSeen] = {}
        self._busy = asyncio.Semaphore(AT_ONCE)
        self._sight = fleet.nomad = NomadSight(error="it has not been asked yet")

    def changed(self, machine: Machine) -> None:
        """A transition of the machine has landed: its client is looked at now."""
        if machine.nomad is not None or concerned_by(self._fleet.policy, machine):
            self._due.pop(machine.name, None)
            self._poke.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._poke.clear()
            await self._round()
            try:
                async with asyncio.timeout(LOOK):
                    await self._poke.wait()
            except TimeoutError:
                pass

    async def _round(self) -> None:
        fleet, now = self._fleet, asyncio.get_running_loop().time()
        if fleet.policy.drains.nomad is not None:
            await self._list(now)
        names = [name for name, m in fleet.machines.items() if self._on_its_way(m)]
        over = [n for n in self._seen if n not in fleet.machines or not self._on_its_way(fleet.machines[n])]
        for name in over:
            del self._seen[name]
            self._due.pop(name, None)
        due = [name for name in names if self._due.get(name, 0.0) <= now]
        await asyncio.gather(*(self._look(name) for name in due))
        if due or over:
            self._show()

    def _on_its_way(self, machine: Machine) -> bool:
        if machine.nomad is not None:
            return True
        return machine.state is State.DRAINING and concerned_by(self._fleet.policy, machine)

    def _show(self, **facts: Any) -> None:
        self._sight = self._fleet.nomad = replace(self._sight, seen=dict(self._seen), **facts)
        self._fleet.alarm("nomad", self._alarm())
        self._dirty.set()

    def _alarm(self) -> str:
        said = [f"Nomad cannot be asked: {self._sight.error}"] if self._sight.error else []
        machines = self._fleet.machines
        owed = sorted(n for n in self._seen if n in machines and machines[n].state is State.IN_SERVICE)
        if owed:
            named = ", ".join(owed[:NAMED]) + (f" and {len(owed) - NAMED} more" if len(owed) > NAMED else "")
            said.append(f"in service and not yet as they were at Nomad: {named}")
        return "; ".join(said)

    # --- all clients -----------------------------------------------------------------------------

    async def _list(self, now: float) -> None:
        machines, policy = self._fleet.machines, self._fleet.policy
        booted = any(m.state is State.VERIFYING and concerned_by(policy, m) for m in machines.values())
        if now < self._list_due and not (booted and now >= self._list_due - LIST + LIST_SOON):
            return
        at = self._wall()
        try:
            rows = await self._api.clients()
        except RebootdError as error:
            log.warning("nomad-unreachable", error=str(error))
            self._list_due = asyncio.get_running_loop().time() + LIST_SOON
            self._show(error=str(error))
            return
        took = asyncio.get_running_loop().time() - now
        self._list_due = now + max(LIST, SHARE * took)
        by_name: dict[str, list[NomadClient]] = {}
        for row in rows:
            if self._here(row):
                by_name.setdefault(row.name, []).append(row)
        clients = {n: tuple(by_name.get(self._called(n), ())) for n, m in machines.items() if concerned_by(policy, m)}
        self._show(at=at, error="", clients=clients)
        for row in rows:
            if orphan(row, self._fleet.keys.prefix, self._fleet.machines):
                await self._end_orphan(row)

    def _called(self, name: str) -> str:
        return self._fleet.node_meta.get(name, {}).get(META, "") or name

    def _here(self, client: NomadClient) -> bool:
        nomad = self._fleet.policy.drains.nomad
        return nomad is None or not nomad.datacenter or client.datacenter == nomad.datacenter

    async def _end_orphan(self, row: NomadClient) -> None:
        """A drain with our mark that no record knows of: a dead leader's order that came late, or a record's end."""
        try:
            again = [c for c in await self._api.clients(row.name) if c.id == row.id]
            if again and orphan(again[0], self._fleet.keys.prefix, self._fleet.machines) and self._may_act():
                log.warning("nomad-drain-without-record", client=row.name, mark=row.mark)
                await self._api.stop_drain(row.id, eligible=again[0].was == "eligible")
        except RebootdError as error:
            log.warning("nomad-drain-not-ended", client=row.name, error=str(error))

    # --- one client ------------------------------------------------------------------------------

    async def _look(self, name: str) -> None:
        async with self._busy:
            before = self._seen.get(name, NomadSeen())
            at = self._wall()
            try:
                seen = await self._read(name, at)
            except RebootdError as error:
                log.warning("nomad-client-unreadable", machine=name, error=str(error))
                seen = replace(before, error=str(error)[:300], well_since=0.0)
            machine = self._fleet.machines.get(name)
            if seen.well_since and before.well_since:
                seen = replace(seen, well_since=before.well_since)
            self._seen[name] = seen
            pause = LOOK if machine is not None and machine.state in QUICK else REST
            self._due[name] = asyncio.get_running_loop().time() + pause * 0.9

    async def _read(self, name: str, at: float) -> NomadSeen:
        clients = await self._named(name)
        machine = self._fleet.machines.get(name)
        if machine is not None and machine.nomad is not None and await self._act(machine, clients):
            clients = await self._named(name)
        machine = self._fleet.machines.get(name)
        if machine is None:
            return NomadSeen(at=at, clients=clients)
        drain = machine.nomad
        client = client_of(clients, drain.node if drain is not None else "")
        allocs: tuple[NomadAlloc, ...] | None = None
        services: dict[str, NomadService] = {}
        if isinstance(client, NomadClient) and machine.state in {State.DRAINING, State.ENABLING}:
            allocs = await self._api.allocs(client.id)
            if machine.state is State.ENABLING and drain is not None:
                services = await self._jobs({*drain.services, *drain.system})
            elif drain is None:
                services = await self._jobs({a.job for a in allocs if a.live and a.type == "service"})
        seen = NomadSeen(at=at, clients=clients, allocs=allocs, services=services)
        if drain is not None and machine.state is State.ENABLING and well(drain, seen):
            seen = replace(seen, well_since=at)
        return seen

    async def _named(self, name: str) -> tuple[NomadClient, ...]:
        return tuple(c for c in await self._api.clients(self._called(name)) if self._here(c))

    async def _jobs(self, jobs: set[str]) -> dict[str, NomadService]:
        found = {job: await self._api.service(job) for job in sorted(jobs)}
        return {job: service for job, service in found.items() if service is not None}

    async def _act(self, machine: Machine, clients: tuple[NomadClient, ...]) -> bool:
        """Asks of Nomad what the committed record calls for; True when something was asked."""
        drain = machine.nomad
        client = next((c for c in clients if drain is not None and c.id == drain.node), None)
        if drain is None or client is None:
            return False
        act = next_act(machine, client)
        if act is Act.NOTHING or not self._may_act() or self._fleet.machines.get(machine.name) is not machine:
            return False
        log.info("nomad", machine=machine.name, client=client.id, act=act.value, mark=drain.mark)
        if act is Act.DRAIN:
            await self._api.drain(drain)
        elif act is Act.ENABLE:
            await self._api.enable(client.id)
        else:
            await self._api.stop_drain(client.id, eligible=act is Act.UNDO)
        return True

    def _may_act(self) -> bool:
        return self._leadership.may_speak()

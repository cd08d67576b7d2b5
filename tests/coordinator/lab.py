"""A leader on the memory store, and scripted machines that talk to its desk directly."""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from rebootd.consul.leadership import Leadership
from rebootd.coordinator.leader import Leader, LeaderSettings
from rebootd.coordinator.metrics import Metrics
from rebootd.coordinator.rooms import Means
from rebootd.core.operations_cycles import start_cycle
from rebootd.core.operations_inputs import Because
from rebootd.core.wire import Answer, CheckResult, DirectiveKind, PermitAnswer, PermitRequest, Report, Result
from rebootd.store.memory import MemoryConsul, MemoryStore
from rebootd.store.port import Lock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from rebootd.coordinator.audit_file import AuditFile
    from rebootd.coordinator.drains.nomad_api import NomadApi
    from rebootd.coordinator.gates.sight import Sight
    from rebootd.coordinator.peers import Peers
    from rebootd.coordinator.redfish import Restarter
    from rebootd.coordinator.silences import Alerts
    from rebootd.core.model import Machine

LEADER = "rebootd/leader"


class Lab:
    """One Consul, any number of leaders one after another."""

    def __init__(self, racks: dict[str, list[str]]) -> None:
        self.consul = MemoryConsul()
        self.store = MemoryStore(self.consul)
        for rack, names in racks.items():
            for name in names:
                self.consul.register_node(name, {"rack": rack})
        self._ids = itertools.count(1)
        self.metrics = Metrics(CollectorRegistry())

    @asynccontextmanager
    async def leader(
        self,
        *,
        node: str = "",
        sight: Sight | None = None,
        restarter: Restarter | None = None,
        nomad: NomadApi | None = None,
        peers: Peers | None = None,
        wall: Callable[[], float] = time.time,
        audit: AuditFile | None = None,
        alerts: Alerts | None = None,
        daemon: str = "d1",
    ) -> AsyncIterator[Leader]:
        """A leader that runs for the length of the block."""
        loop = asyncio.get_running_loop()
        session = await self.store.create_session("leader")
        await self.store.commit([Lock(LEADER, b"{}", session)])
        leadership = Leadership(session, LEADER, at=loop.time(), deadline=1e9, abstain=0, clock=loop.time)
        leader = Leader(
            self.store,
            leadership,
            LeaderSettings(id=daemon, node=node, tick=0.05),
            self.metrics,
            wall=wall,
            new_id=lambda: f"w{next(self._ids)}",
            means=Means(sight, restarter, nomad, peers, alerts),
            audit=audit,
        )
        opened = asyncio.Event()
        task = asyncio.create_task(leader.run(lambda _: opened.set()))
        waiting = asyncio.create_task(opened.wait())
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        try:
            yield leader
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.store.destroy_session(session)

    def value(self, key: str) -> bytes:
        return self.consul.entries[f"rebootd/{key}"].value


class Host:
    """A machine that does what it is told, one report at a time."""

    def __init__(self, name: str, *, machine_id: str = "") -> None:
        self.name = name
        self.machine_id = machine_id or f"id-{name}"
        self.boot = 0
        self.index = 0
        self.result: Result | None = None
        self.in_service = False
        self.check = CheckResult("passed")
        self.boots: list[str] = []

    @property
    def boot_id(self) -> str:
        return f"{self.name}-boot-{self.boot}"

    def saying(self, **facts: Any) -> Report:
        said: dict[str, Any] = {
            "name": self.name,
            "machine_id": self.machine_id,
            "boot_id": self.boot_id,
            "boot_check": self.check,
            "result": self.result,
            "in_service": self.in_service,
            "clock": time.time(),
            "index": self.index,
        }
        return Report(**(said | facts))

    async def report(self, leader: Leader, **facts: Any) -> Answer:
        answer = await leader.report(self.saying(**facts))
        self.index = answer.index
        return answer

    def done(self, answer: Answer, *, ok: bool = True, detail: str = "") -> None:
        directive = answer.directive
        assert directive is not None
        self.result = Result(directive.id, directive.kind, ok, detail, directive.epoch)
        self.in_service = directive.kind is DirectiveKind.ENABLE and ok

    async def ask(self, leader: Leader, nonce: str = "", **facts: Any) -> PermitAnswer:
        said: dict[str, Any] = {
            "name": self.name,
            "machine_id": self.machine_id,
            "boot_id": self.boot_id,
            "nonce": nonce or f"nonce-{self.boot_id}",
        }
        return await leader.permit(PermitRequest(**(said | facts)))

    def reboot(self) -> None:
        self.boots.append(self.boot_id)
        self.boot += 1
        self.index = 0
        self.result = None
        self.in_service = False

    async def join(self, leader: Leader) -> None:
        """From the first report, or a boot, into service."""
        answer = await self.report(leader)
        while answer.state != "in-service":
            if answer.directive is not None and answer.directive.kind is DirectiveKind.ENABLE:
                self.done(answer)
            answer = await self.report(leader, wait=1.0)

    async def until(self, leader: Leader, state: str) -> Answer:
        """Obeys until the machine is in ``state``; asks no permit in ``drained`` and does not reboot."""
        answer = await self.report(leader, wait=1.0)
        while answer.state != state:
            kind = answer.directive.kind if answer.directive is not None else None
            if kind in {DirectiveKind.DRAIN, DirectiveKind.ENABLE}:
                self.done(answer)
            answer = await self.report(leader, wait=1.0)
        return answer

    async def live(self, leader: Leader) -> None:
        """Obeys for ever, reboots included."""
        while True:
            answer = await self.report(leader, wait=1.0)
            kind = answer.directive.kind if answer.directive is not None else None
            if kind is DirectiveKind.REBOOT:
                if (await self.ask(leader)).granted:
                    self.reboot()
            elif kind is not None:
                self.done(answer)


async def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def start(leader: Leader, cycle_id: str = "k1", selector: str = "*", **more: Any) -> None:
    because = Because(by="test", reason="a test")
    await leader.apply(lambda s: start_cycle(s, cycle_id=cycle_id, selector=selector, because=because, **more))


def record(leader: Leader, name: str) -> Machine:
    return leader.fleet.machines[name]

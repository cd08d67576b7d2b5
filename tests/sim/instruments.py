"""What leaders look at beside their store: Prometheus, Alertmanager, Consul's health and the servers' quorums.

The readers of the product run on it; only what carries their questions is simulated. Everything that a reader was told
is kept as a :class:`Look`, so that :mod:`tests.sim.checks_gates` can judge it again.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from rebootd.coordinator.gates import health
from rebootd.coordinator.gates.sight import Eyes
from rebootd.coordinator.gates.tools import Tools, decoded
from rebootd.core.errors import Unreachable
from rebootd.store.memory_state import SERF
from tests.sim.features import GATES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rebootd.core.gates import Value
    from rebootd.core.policy_gates import Gate
    from tests.sim.loop import Process
    from tests.sim.net import Box
    from tests.sim.world import World

T = TypeVar("T")
WAIT_MORE = 5.0
"""Seconds beyond its ``wait`` after which a blocking query is given up."""
GOOD, BAD = 0.0, 9.0


@dataclass
class Look:
    """One reading: of which gate, when it began and ended (virtual time), and what the other side said.

    ``passes`` is whether the condition was met for somebody who changes nothing (None: no word); ``nodes`` are the
    nodes with an instance and how many of them pass there; ``healthy`` says of servers which are well.
    """

    gate: Gate
    daemon: str
    began: float
    ended: float = 0.0
    passes: bool | None = None
    nodes: dict[str, int] = field(default_factory=dict)
    healthy: dict[str, bool] = field(default_factory=dict)


class Instrument:
    """One thing that gates ask. Counters are faults that last."""

    def __init__(self) -> None:
        self.blocks = 0
        self.away = 0
        self.hangs = 0
        self.slow = 0
        self.odd: list[str] = []


class Instruments:
    """All of them, for one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = world.rng("instruments")
        self.by_kind = {kind: Instrument() for kind in GATES}
        self.sight_away = 0
        self.blind_since: float | None = None
        self.thin: set[str] = set()
        """Machines whose instance of the service fails though they are well."""
        self.sick: dict[str, str] = {}
        """Machines with a failing node check of their own: its id."""
        self.looks: dict[str, dict[str, Look]] = {}
        """Daemon: gate: what it was last told."""
        self.failing_since: dict[str, float] = {}
        self.index = 1
        self._web = [m for m in world.machines.values() if world.plan.labels[m.name]["role"] == "web"]
        self._waiters: list[asyncio.Future[None]] = []

    # --- what is true ---------------------------------------------------------------------------------

    def failing(self) -> dict[str, list[dict[str, str]]]:
        """Nodes with critical checks of their own."""
        world, sick, found = self.world, self.sick, {}
        for machine in world.machines.values():
            down = world.serf_down(machine.name)
            if not (down or machine.consul.checks or machine.name in sick):
                continue
            checks = []
            if down:
                checks.append({"Node": machine.name, "CheckID": SERF, "Name": "Serf"})
            if machine.name in sick:
                checks.append({"Node": machine.name, "CheckID": self.sick[machine.name], "Name": "disk"})
            for name, check in machine.consul.checks.items():
                if check["Status"] == "critical":
                    checks.append(
                        {"Node": machine.name, "CheckID": name, "Name": name, "Notes": check.get("Notes", "")}
                    )
            if checks:
                found[machine.name] = checks
        return found

    def changed(self) -> None:
        """Some check may have changed: blocking queries look again."""
        now = self.world.loop.now
        failing = self.failing()
        failed = {n for n, checks in failing.items() if any(c["CheckID"] != health.OUT_MARK for c in checks)}
        self.failing_since = {n: self.failing_since.get(n, now) for n in sorted(failed)}
        self.index += 1
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, seconds: float) -> None:
        """Until some check changes, or so long."""
        loop = self.world.loop
        waiter = loop.create_future()
        self._waiters.append(waiter)
        timer = loop.call_later(seconds, lambda: waiter.done() or waiter.set_result(None))
        try:
            await waiter
        finally:
            timer.cancel()

    def blind(self, more: int) -> None:
        """Consul's health cannot be read any more (1), or it can again (-1)."""
        self.sight_away = max(0, self.sight_away + more)
        self.blind_since = self.world.loop.now if self.sight_away else None

    def heal(self) -> None:
        """Everything answers, and says that all is well."""
        self.by_kind = {kind: Instrument() for kind in self.by_kind}
        self.blind(-self.sight_away)
        self.thin.clear()
        self.sick.clear()
        self.changed()

    # --- what is said ---------------------------------------------------------------------------------

    def answer(self, kind: str, path: str, look: Look) -> bytes:
        """The body of an answer, noted in ``look``."""
        instrument = self.by_kind[kind]
        if instrument.odd:
            return ODD[instrument.odd[-1]]
        if kind == "prometheus":
            look.passes = not instrument.blocks
            value = BAD if instrument.blocks else GOOD
            sample = {"metric": {"__name__": "errors"}, "value": [self.world.true_time(), str(value)]}
            return _json({"status": "success", "data": {"resultType": "vector", "result": [sample]}})
        if kind == "alertmanager":
            look.passes = not instrument.blocks
            alerts = [{"labels": {"alertname": "Silenced"}, "status": {"state": "suppressed", "silencedBy": ["x"]}}]
            if instrument.blocks:
                alerts.append({"labels": {"alertname": "Down"}, "status": {"state": "active", "silencedBy": []}})
            return _json(alerts)
        if kind == "consul-service":
            return _json(self._service(look))
        members = self._servers(kind)
        look.healthy = members
        ill = sum(not well for well in members.values())
        if path.endswith("raft/configuration"):
            return _json({"Servers": [{"ID": n, "Node": n, "Address": f"{n}:1", "Voter": True} for n in members]})
        servers = [{"ID": n, "Name": n, "Address": f"{n}:1", "Healthy": well} for n, well in members.items()]
        tolerance = (len(members) - 1) // 2 - ill
        return _json({"Healthy": not ill, "FailureTolerance": tolerance, "Servers": servers})

    def _service(self, look: Look) -> list[dict[str, Any]]:
        ill = self.failing().keys() | self.thin
        look.nodes = {m.name: int(m.name not in ill) for m in self._web if not m.gone}
        return [
            {"Node": {"Node": name}, "Checks": [{"Status": "passing" if well else "critical"}]}
            for name, well in look.nodes.items()
        ]

    def _servers(self, kind: str) -> dict[str, bool]:
        """The servers by node, and which are well; a fault of the gate makes one ill."""
        world, plan = self.world, self.world.plan
        names = plan.nomad if kind == "nomad-quorum" else [n for n in plan.labels if plan.labels[n]["role"] == "consul"]
        down = {n for n in names if not world.machines[n].box.up}
        if self.by_kind[kind].blocks and names:
            down.add(names[0])
        return {n: n not in down for n in names}


ODD = {
    "garbage": b"<html>please log in</html>",
    "empty": b"",
    "nan": b'{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1,"NaN"]}]}}',
    "none": b'{"status":"success","data":{"resultType":"vector","result":[]}}',
    "partial": b'{"status":"success","warnings":["a store is away"],"data":{"resultType":"vector","result":[]}}',
    "error": b'{"status":"error","error":"too many samples"}',
}
"""Answers that are none."""


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value)


class SimTools(Tools):
    """One reader's questions, from a daemon's host."""

    def __init__(self, instruments: Instruments, box: Box, process: Process, look: Look | None = None) -> None:
        super().__init__(None)
        self._instruments = instruments
        self._box = box
        self._process = process
        self._look = look

    async def consul_get(
        self, path: str, params: Sequence[tuple[str, str]], *, also: Sequence[int] = ()
    ) -> tuple[bytes, Mapping[str, str]]:
        """Consul's health of nodes, or what a gate asks it."""
        here = self._instruments
        if self._look is not None:
            return await self._ask(self._look.gate.test.kind, path, self._look), {}
        given = dict(params)
        until = here.world.loop.now + float(given.get("wait", "0s")[:-1])
        await self._reach(bool(here.sight_away or self._box.cut_store), until)
        while int(given.get("index", "0")) == here.index and (left := until - here.world.loop.now) > 0:
            await here.wait(left)
        await self._reach(bool(here.sight_away or self._box.cut_store), until)
        return _json([c for checks in here.failing().values() for c in checks]), {"X-Consul-Index": str(here.index)}

    async def _reach(self, cut: bool, until: float) -> None:
        loop = self._instruments.world.loop
        await asyncio.sleep(0.002)
        if cut:
            await asyncio.sleep(max(2.0, until + WAIT_MORE - loop.now) if self._instruments.rng.random() < 0.3 else 0.1)
            raise Unreachable("Consul does not answer")
        self._process.here()

    async def http_json(
        self,
        url: str,
        kind: type[T],
        params: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        *,
        also: Sequence[int] = (),
    ) -> T:
        """Another service's answer."""
        assert self._look is not None
        return decoded(await self._ask(self._look.gate.test.kind, url, self._look), kind, url)

    async def _ask(self, kind: str, path: str, look: Look) -> bytes:
        here = self._instruments
        instrument = here.by_kind[kind]
        await asyncio.sleep(here.rng.uniform(0.001, 0.05))
        if instrument.hangs:
            await asyncio.sleep(60.0)
        if instrument.away or (kind.startswith("consul") and self._box.cut_store):
            raise Unreachable(f"{kind}: connection refused")
        body = here.answer(kind, path, look)
        # What was seen may be old news when it arrives.
        await asyncio.sleep(here.rng.uniform(0.5, 6.0) if instrument.slow else here.rng.uniform(0.001, 0.05))
        self._process.here()
        return body


class SimEyes(Eyes):
    """The product's readers over simulated questions."""

    def __init__(self, instruments: Instruments, daemon: str, box: Box, process: Process) -> None:
        super().__init__(None)
        self._instruments = instruments
        self._daemon = daemon
        self._box = box
        self._process = process

    async def read(self, gate: Gate, addresses: Mapping[str, str]) -> Value:
        """One reading, noted when it ends, however it does."""
        here = self._instruments
        look = Look(gate, self._daemon, here.world.loop.now)
        self._tools = SimTools(here, self._box, self._process, look)
        here.world.checks.counts["gate readings"] += 1
        try:
            return await super().read(gate, addresses)
        except BaseException:
            look.passes, look.nodes, look.healthy = None, {}, {}
            raise
        finally:
            look.ended = here.world.loop.now
            here.looks.setdefault(self._daemon, {})[gate.name] = look

    async def failing(self, index: int, wait: float) -> tuple[dict[str, str], int]:
        """Consul's node checks."""
        return await health.read(SimTools(self._instruments, self._box, self._process), index, wait)

"""Simulated machines: a host that boots and fails, its disk, its local Consul agent, and the real agent on it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from rebootd.agent.app import Agent
from rebootd.agent.client import Coordinators
from rebootd.agent.detect import Finding
from rebootd.agent.hooks import HookOutcome
from rebootd.agent.host import Host
from rebootd.agent.journal import Journal, decode, encode
from rebootd.agent.notify import Notifier
from rebootd.agent.outmark import AgentMark
from rebootd.agent.runner import BootChanged
from rebootd.agent.settings import AgentSettings
from rebootd.consul.transport import Response
from rebootd.core.errors import Unreachable
from rebootd.core.wire import Tri
from tests.sim.disks import SimDisk
from tests.sim.loop import Process
from tests.sim.net import Box, SimLine

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from rebootd.agent.outmark import Mark
    from rebootd.agent.statefile import AgentState
    from tests.sim.world import World

DAYS = 7 * 86400.0
DETECT_EVERY = 60.0
IDLE_WAIT = 60.0


class _Command:
    """The reboot command's process."""

    def __init__(self, code: int | None) -> None:
        self.returncode = code


class SimHost(Host):
    """The host as its agent sees it."""

    def __init__(self, settings: AgentSettings, machine: Machine) -> None:
        super().__init__(settings)
        self._machine = machine

    def boot_id(self) -> str:
        """Of the present boot."""
        return self._machine.boot_id

    def machine_id(self) -> str:
        """Of this installation."""
        return self._machine.machine_id

    def kernel(self) -> str:
        """The running one."""
        return self._machine.kernel

    def boottime(self) -> float:  # type: ignore[override]
        """CLOCK_BOOTTIME."""
        return self._machine.world.loop.now - self._machine.booted_at

    def age(self) -> float:
        """As CLOCK_BOOTTIME: nothing of the real machine counts."""
        return self.boottime()

    def now(self) -> float:  # type: ignore[override]
        """The host's idea of the time."""
        return self._machine.world.wall(self._machine.box)

    def reboot_started(self, boot_id: str) -> bool:
        """Whether the marker is there."""
        return boot_id in self._machine.markers

    def forget_markers(self, boot_id: str) -> None:
        """Removes those of earlier boots."""
        self._machine.markers &= {boot_id}

    def crashed(self) -> bool:
        """No kernel leaves a trace here."""
        return False

    async def reboot(self, boot_id: str, environ: Mapping[str, str], method: str = "reboot") -> Any:
        """Executes the reboot command, once per boot_id."""
        machine = self._machine
        process = machine.process
        if process is not None:
            process.here()
        if boot_id in machine.markers:
            return _Command(113)
        machine.markers.add(boot_id)
        machine.world.checks.rebooting(machine)
        if "reboot" not in machine.failing:
            machine.go_down()
        await asyncio.sleep(0.001)
        return _Command(None)

    def reboot_output(self) -> str:
        """Nothing."""
        return ""


class LocalConsul:
    """The checks of the node's own Consul agent, and the few of its routes that the out mark uses."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.checks: dict[str, dict[str, Any]] = {}
        self.away = 0
        self._catalog: list[dict[str, Any]] = []

    @property
    def http(self) -> LocalConsul:
        """What AgentMark calls."""
        return self

    async def request(self, method: str, path: str, params: Any = None, body: bytes | None = None) -> Response:
        """One request to the local agent."""
        await asyncio.sleep(0.001)
        if self.away:
            self._machine.world.checks.counts["hit local-consul-away"] += 1
            await asyncio.sleep(2.0)
            raise Unreachable("the local Consul agent does not answer")
        process = self._machine.process
        if process is not None:
            process.here()
        if method == "GET":
            return Response(200, {}, msgspec.json.encode(self._read(path)))
        self._machine.world.checks.mark_changes(self._machine, method, path, body)
        if path == "/v1/agent/check/register" and body is not None:
            check = msgspec.json.decode(body)
            self.checks[check["ID"]] = check
        elif path.startswith("/v1/agent/check/deregister/"):
            self.checks.pop(path.rpartition("/")[2], None)
        # The servers hear of it in the agent's own time.
        self._machine.world.loop.after(self._machine.rng.uniform(0.005, 0.4), self._sync)
        return Response(200, {}, b"")

    def _read(self, path: str) -> Any:
        if path == "/v1/agent/checks":
            return self.checks
        if path == "/v1/agent/self":
            return {"Config": {"NodeName": self._machine.name}}
        return self._catalog

    def _sync(self) -> None:
        self._machine.world.looked_different()
        self._catalog = [{**check, "CheckID": key} for key, check in self.checks.items()]


class SimOutside:
    """Implements :class:`rebootd.agent.outside.Outside`."""

    def __init__(self, machine: Machine, settings: AgentSettings) -> None:
        world = machine.world
        self._machine = machine
        self.rng: random.Random = machine.rng
        self.host: Host = SimHost(settings, machine)
        self.journal = Journal(machine.disk)
        self.coordinators = Coordinators(settings, self._find, SimLine(world.net, machine.box))

    async def _find(self) -> AsyncIterator[list[str]]:
        world = self._machine.world
        world.checks.counts["hit dns-away"] += bool(world.dns_away)
        if not world.dns_away:
            urls = list(world.net.stations)
            self.rng.shuffle(urls)
            yield urls

    async def name(self) -> str:
        """As configured."""
        return self._machine.name

    def mark(self, name: str) -> Mark:
        """The real mark on the simulated local agent."""
        return AgentMark(self._machine.consul)  # type: ignore[arg-type]

    async def hooks(self, folder: Path, timeout: float, environ: Mapping[str, str]) -> HookOutcome:
        """Takes a moment, and fails when a fault says so."""
        machine = self._machine
        machine.world.checks.obeying(machine, environ.get("REBOOTD_DIRECTIVE", ""))
        await asyncio.sleep(machine.rng.uniform(0.1, 1.0) * machine.world.plan.hook_seconds)
        failing = folder.name in machine.failing
        machine.world.checks.counts["hit hook-fails"] += failing
        return HookOutcome(ok=not failing, detail="a hook failed" if failing else "")

    async def detect(self, environ: Mapping[str, str]) -> Finding:
        """What the scenario says of this machine."""
        return self._machine.finding

    def nonce(self) -> str:
        """Never the same twice."""
        return f"nonce-{self._machine.name}-{self._machine.world.number()}"

    def show(self, state: AgentState) -> None:
        """Nobody looks."""

    async def close(self) -> None:
        """Nothing to end."""


class SimAgent(Agent):
    """The agent without its state file, which costs more than everything else together."""

    async def _write_state(self) -> None:
        return


class Machine:
    """One machine: host and agent."""

    def __init__(self, world: World, name: str, rack: str, labels: dict[str, str]) -> None:
        self.world = world
        self.name = name
        self.box = Box(name, rack)
        self.rng = world.rng(f"machine {name}")
        self.labels = labels
        self.kernel = "6.12.8"
        self.machine_id = f"id-{name}"
        self.boots = 0
        self.boot_id = f"{name}-b0"
        self.booted_at = -self.rng.uniform(1e4, 1e6)
        self.disk = SimDisk(self)
        self.consul = LocalConsul(self)
        self.finding = Finding(Tri.NO)
        self.finding_at = 0.0
        """When detection last began to say something else."""
        self.sticky = False
        """Whether a boot changes nothing about what is required."""
        self.stuck = False
        """Down until somebody presses the button, or its controller does."""
        self.markers: set[str] = set()
        self.failing: set[str] = set()
        self.process: Process | None = None
        self.agent: SimAgent | None = None
        self.next_boot = ""
        """What is special about the next boot: ``hang``, ``never``, ``same-id``, ``rack`` or ``""``."""
        self.gone = False
        self.going_down = False

    def meta(self) -> dict[str, str]:
        """What the catalog says of its node."""
        return {"rack": self.box.rack}

    # --- the agent --------------------------------------------------------------------------------

    def start_agent(self) -> None:
        """As systemd does after a boot or a crash."""
        if not self.box.up or self.gone or (self.process is not None and self.process.alive):
            return
        process = Process(self.world.loop, self.name)
        process.on_death = self._agent_died
        self.process = process
        process.spawn(self._run())

    def _agent_died(self) -> None:
        if self.box.up and not self.going_down:
            self.world.loop.after(self.rng.uniform(0.2, 5.0), self.start_agent)

    async def _run(self) -> None:
        settings = AgentSettings(
            name=self.name,
            rack=self.box.rack,
            labels=self.labels,
            detect_every=DETECT_EVERY * self.world.plan.tempo if self.world.plan.features.standing else DAYS,
            wait_idle=IDLE_WAIT * self.world.plan.tempo,
            recheck=20.0,
            reboot_timeout=self.world.plan.reboot_timeout,
            hook_timeout=60.0,
            mark_timeout=60.0,
        )
        while True:
            self.agent = SimAgent(settings, {}, Notifier({}), SimOutside(self, settings))
            try:
                await self.agent.run()
            except BootChanged:
                continue

    def journaled(self) -> None:
        """The journal was written."""
        self.world.checks.journaled(self)

    def find(self, required: Tri = Tri.NO, *reasons: str) -> None:
        """From now on detection says so."""
        finding = Finding(required, reasons)
        if finding != self.finding:
            self.finding, self.finding_at = finding, self.world.loop.now

    def restore(self) -> None:
        """The boot_id changes under the running agent, as when a virtual machine is restored from a snapshot."""
        self.boots += 1
        self.boot_id = f"{self.name}-b{self.boots}"
        self.world.say(f"{self.name} is {self.boot_id} all of a sudden")

    def lose_journal(self) -> None:
        """The disk spoils the journal, and the agent is killed."""
        if self.disk.data is not None:
            self.disk.data = self.disk.data[: len(self.disk.data) // 2]
            self.disk.writes += 1
        if self.process is not None:
            self.process.kill()

    def break_glass(self) -> None:
        """``rebootd agent enable --local``: the journal says that a person put it into service, the mark is gone."""
        if self.disk.data is None or not self.box.up or self.disk.full:
            return
        record = decode(self.disk.data)
        if record.in_service or record.boot_id != self.boot_id:
            return
        self.disk.data = encode(msgspec.structs.replace(record, in_service=True, by_hand="the simulation"))
        self.disk.writes += 1
        self.consul.checks.pop("rebootd", None)
        self.journaled()

    # --- the host ---------------------------------------------------------------------------------

    def go_down(self) -> None:
        """The reboot command was executed."""
        self.going_down = True
        self.world.loop.after(self.rng.uniform(0.2, 3.0), self.down, self.next_boot)

    def down(self, how: str = "") -> None:
        """Power off, kernel gone; ``how`` is what is special about it."""
        self.next_boot = ""
        if not self.box.up:
            return
        if how:
            self.world.checks.counts[f"hit {how}"] += 1
        if how == "hang":
            # Shutdown hangs: the agent is gone, the network is up, nothing happens for long.
            self.kill_agent()
            self.world.loop.after(self.world.plan.hang_seconds, self._hung, self.boots)
            return
        self.kill_agent()
        self.box.up = False
        self.world.host_down(self)
        if how == "never" and not self._last_home():
            self.gone = True
            return
        if how in {"never", "stuck"}:
            self.stuck = True
            return
        low, high = self.world.plan.boot_seconds
        self.world.loop.after(self.rng.uniform(low, high), self.boot, how)

    def _last_home(self) -> bool:
        """Whether all other hosts of daemons are gone for good: this one is repaired, or nobody could ever lead."""
        homes = {daemon.box.name for daemon in self.world.daemons.values()}
        machines = self.world.machines
        return self.name in homes and all(n in machines and machines[n].gone for n in homes - {self.name})

    def _hung(self, boots: int) -> None:
        """The shutdown that hung goes on, unless somebody ended it."""
        if self.boots == boots:
            self.down()

    def power_cycle(self) -> None:
        """Power off and on, by its controller or by hand; a broken machine stays down."""
        if self.box.up:
            self.down()
        elif self.stuck:
            self.stuck = False
            self.world.loop.after(self.rng.uniform(*self.world.plan.boot_seconds), self.boot)

    def revive(self) -> None:
        """Somebody presses the button if it is down for good."""
        if self.stuck:
            self.power_cycle()

    def kill_agent(self) -> None:
        """The agent's process ends with its host."""
        self.going_down = True
        if self.process is not None:
            self.process.kill()

    def boot(self, how: str = "") -> None:
        """Up again."""
        if self.box.up or self.gone or self.stuck:
            return
        self.box.up = True
        self.going_down = False
        self.booted_at = self.world.loop.now
        if how != "same-id":
            self.boots += 1
            self.boot_id = f"{self.name}-b{self.boots}"
            self.kernel = self.world.plan.new_kernel
            if not self.sticky and self.finding.required is Tri.YES:
                self.find()
        if how == "rack":
            self.world.move_rack(self)
        self.world.host_up(self)
        self.world.loop.after(self.rng.uniform(0.2, 3.0), self.start_agent)

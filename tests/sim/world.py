"""The world of one run: everything simulated, put together."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from rebootd.core.wire import Tri
from rebootd.store.memory import MemoryConsul
from rebootd.store.memory_state import SERF
from rebootd.store.port import Set
from tests.sim.checks import Checks
from tests.sim.controllers import Controllers
from tests.sim.daemons import SimDaemon
from tests.sim.instruments import Instruments
from tests.sim.lock_machine import LockMachine
from tests.sim.loop import SimLoop
from tests.sim.machines import Machine
from tests.sim.net import Box, Net
from tests.sim.plan import START, Plan
from tests.sim.store import Servers

if TYPE_CHECKING:
    from rebootd.coordinator.leader import Leader

SERF_NOTICES = 5.0


class World:
    """One run's world; ``log`` gets a line for everything that a person would want to read."""

    def __init__(self, plan: Plan, *, verbose: bool = False) -> None:
        self.plan = plan
        self.verbose = verbose
        self.loop = SimLoop()  # type: ignore[abstract]
        self._count = 0
        self.dns_away = 0
        self.log: list[str] = []
        self.people = 0
        self.consul = MemoryConsul(node="consul", new_id=lambda: f"s{self.number()}")
        self.servers = Servers(self.loop, self.consul, self.rng("store"), plan.store_latency)
        self.net = Net(self.loop, self.rng("net"), plan.latency)
        self.machines: dict[str, Machine] = {}
        self.lock_machines: dict[str, LockMachine] = {}
        """Those of them that have a FleetLock client in place of an agent."""
        for rack, names in plan.racks.items():
            for name in names:
                client = plan.lock_clients.get(name)
                if client is None:
                    self.machines[name] = Machine(self, name, rack, plan.labels[name])
                else:
                    made = LockMachine(self, name, rack, plan.labels[name], client)
                    self.machines[name] = self.lock_machines[name] = made
                self.consul.register_node(name, self.machines[name].meta())
        self.daemons: dict[str, SimDaemon] = {}
        for number, where in enumerate(plan.daemons, 1):
            machine = self.machines.get(where)
            if machine is None:
                self.consul.register_node(where, {})
            daemon = SimDaemon(self, number, machine.box if machine else Box(where, ""))
            self.daemons[daemon.id] = daemon
        self.instruments = Instruments(self) if plan.features.sight else None
        self.controllers = Controllers(self)
        self._serf_down: set[str] = set()
        self.checks = Checks(self)

    def rng(self, name: str) -> random.Random:
        """Chance for one part of the world, which no other part disturbs."""
        return random.Random(f"{self.plan.seed} {name}")

    def number(self) -> int:
        """Never the same twice."""
        self._count += 1
        return self._count

    def true_time(self) -> float:
        """Seconds since the Unix epoch."""
        return START + self.loop.now

    def wall(self, box: Box) -> float:
        """What a host's clock shows."""
        return START + self.loop.now + box.offset

    def say(self, text: str) -> None:
        """A line of the story."""
        line = f"{self.loop.now:10.3f}  {text}"
        self.log.append(line)
        if self.verbose:
            print(line)

    def begin(self) -> None:
        """Everything starts."""
        self.loop.at(0.0, self._begin)

    def _begin(self) -> None:
        self.servers.by("people", [Set("rebootd/policy", self.plan.policy.encode())])
        rng = self.rng("begin")
        for daemon in self.daemons.values():
            self.loop.after(rng.uniform(0.0, 1.0), daemon.start)
        for machine in self.machines.values():
            self.loop.after(rng.uniform(0.0, 5.0), machine.start_agent)
            if machine.name in self.plan.required:
                machine.find(Tri.YES, "libc")
        for at, name in self.plan.staged:
            self.loop.at(at, self.lock_machines[name].stage)

    # --- what happens to parts ----------------------------------------------------------------

    def leader(self) -> SimDaemon | None:
        """The daemon that may speak as leader, or one that believes it leads."""
        leading = [d for d in self.daemons.values() if d.leads and d.process is not None and d.process.alive]
        for daemon in leading:
            if daemon.daemon is not None and daemon.daemon.desk() is not None:
                return daemon
        return leading[0] if leading else None

    def desk(self) -> Leader | None:
        """The leader's desk, if somebody leads and may speak."""
        for daemon in self.daemons.values():
            process = daemon.process
            if daemon.daemon is not None and process is not None and process.alive and not process.stopped:
                leader = daemon.daemon._leader
                if leader is not None and daemon.daemon.desk() is not None:
                    return leader
        return None

    def check(self, daemon: SimDaemon, status: str) -> None:
        """The daemon's own check on its node changes, if that is still true when Consul notices."""
        process = daemon.process
        well = daemon.box.up and process is not None and process.alive and not process.stopped
        if well == (status == "passing"):
            self.consul.set_check(daemon.box.name, daemon.check, status)

    def host_down(self, machine: Machine) -> None:
        """Its daemon dies with it, and Consul's servers notice after a while."""
        self.say(f"{machine.name} goes down")
        for daemon in self.daemons.values():
            if daemon.box is machine.box and daemon.process is not None:
                daemon.process.kill()
        self.loop.after(SERF_NOTICES, self._serf, machine, machine.boots)

    def _serf(self, machine: Machine, boots: int) -> None:
        if not machine.box.up and machine.boots == boots:
            self.consul.set_check(machine.name, SERF, "critical")
            self._serf_down.add(machine.name)
            self.looked_different()

    def serf_down(self, name: str) -> bool:
        """Whether Consul's servers say that the node has failed."""
        return name in self._serf_down

    def looked_different(self) -> None:
        """A check of some node has changed."""
        if self.instruments is not None:
            self.instruments.changed()

    def host_up(self, machine: Machine) -> None:
        """Its Consul agent joins again, and its daemon is started."""
        self.say(f"{machine.name} is up as {machine.boot_id}")
        self.consul.set_check(machine.name, SERF, "passing")
        self._serf_down.discard(machine.name)
        self.looked_different()
        for daemon in self.daemons.values():
            if daemon.box is machine.box:
                self.loop.after(self.rng(f"{daemon.id} {machine.boots}").uniform(1.0, 10.0), daemon.start)

    def move_rack(self, machine: Machine) -> None:
        """It was carried to another rack while it was off."""
        others = [r for r in self.plan.racks if r != machine.box.rack]
        machine.box.rack = others[machine.boots % len(others)]
        self.consul.register_node(machine.name, machine.meta())
        self.say(f"{machine.name} is in rack {machine.box.rack} now")

    def heal(self) -> None:
        """The end of all faults; what people still have to put right is done by :mod:`tests.sim.people`."""
        net, store = self.net.trouble, self.servers.trouble
        net.lose = net.repeat = net.slow = 0.0
        store.away = 0
        store.stale = None
        store.lose_request = store.lose_reply = store.late = store.twice = 0.0
        self.dns_away = 0
        self.controllers.trouble.clear()
        if self.instruments is not None:
            self.instruments.heal()
        for machine in self.machines.values():
            machine.box.cut_agents = machine.box.cut_store = 0
            machine.box.offset = 0.0
            machine.disk.full = 0
            machine.disk.cut = ""
            machine.failing.clear()
            machine.consul.away = 0
            machine.next_boot = ""
            machine.sticky = False
            machine.find()
            if machine.process is not None:
                machine.process.fuse = -1
                machine.process.go_on()
        for client in self.lock_machines.values():
            client.stage()
        for daemon in self.daemons.values():
            daemon.box.cut_agents = daemon.box.cut_store = 0
            daemon.box.offset = 0.0
            if daemon.process is not None:
                daemon.process.fuse = -1
            daemon.go_on()

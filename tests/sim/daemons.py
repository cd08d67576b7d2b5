"""Simulated daemons: the real daemon and API, with a process, a Consul check and a supervisor around them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rebootd.consul.leadership import Candidate
from rebootd.coordinator.daemon import Daemon
from rebootd.coordinator.leader import LeaderSettings
from rebootd.store.memory_state import SERF
from tests.sim.controllers import SimRestarter
from tests.sim.instruments import SimEyes
from tests.sim.loop import Process
from tests.sim.net import Api, Station
from tests.sim.store import SimStore

if TYPE_CHECKING:
    from tests.sim.net import Box
    from tests.sim.world import World


class _Nothing:
    """An instrument that measures nothing."""

    def labels(self, *_: object) -> _Nothing:
        return self

    def inc(self, *_: object) -> None:
        return

    def observe(self, *_: object) -> None:
        return

    def set(self, *_: object) -> None:
        return


class NoMetrics:
    """In place of :class:`rebootd.coordinator.metrics.Metrics`."""

    def __getattr__(self, name: str) -> Any:
        setattr(self, name, _NOTHING)
        return _NOTHING

    def committed(self, *_: object) -> None:
        """Nothing."""

    def happened(self, *_: object) -> None:
        """Nothing."""


_NOTHING = _Nothing()


class SimPeers:
    """Which other daemons live, as their health checks would show it to ``own``."""

    def __init__(self, own: SimDaemon) -> None:
        self._own = own

    async def nodes(self) -> frozenset[str]:
        """The boxes of the daemons that answer."""
        others = [d for d in self._own.world.daemons.values() if d is not self._own]
        well = [d for d in others if d.process is not None and d.process.alive and not d.process.stopped]
        return frozenset(d.box.name for d in well)


class SimDaemon:
    """One daemon, restarted by its supervisor whenever it ends."""

    def __init__(self, world: World, number: int, box: Box) -> None:
        self.world = world
        self.id = f"d{number}"
        self.box = box
        self.url = f"http://{self.id}:8473"
        self.rng = world.rng(f"daemon {self.id}")
        self.station = Station(self.url, box)
        world.net.stations[self.url] = self.station
        self.process: Process | None = None
        self.daemon: Daemon | None = None
        self.lives = 0

    @property
    def check(self) -> str:
        """The id of its own check on its node."""
        return f"rebootd-{self.id}"

    def start(self) -> None:
        """As Nomad or systemd does."""
        if not self.box.up or (self.process is not None and self.process.alive):
            return
        world = self.world
        process = Process(world.loop, self.id)
        process.on_death = self._died
        self.process = process
        self.lives += 1
        powers = world.plan.features.power and world.plan.features.credentials
        store = SimStore(world.servers, self.box, process, self.id)
        self.daemon = Daemon(
            store,
            Candidate(self.id, self.url, self.box.name),
            LeaderSettings(id=self.id, node=self.box.name, tick=world.plan.tick),
            NoMetrics(),  # type: ignore[arg-type]
            checks=(SERF, self.check),
            tuning=world.plan.tuning,
            wall=lambda: world.wall(self.box),
            ids=lambda: f"{self.id}-{world.number()}",
            rng=self.rng,
            sight=SimEyes(world.instruments, self.id, self.box, process) if world.instruments is not None else None,
            restarter=SimRestarter(world.controllers, self.id, process) if powers else None,
            peers=SimPeers(self),
        )
        self.station.process = process
        self.station.api = Api(self.daemon)
        world.loop.after(0.05, self.world.check, self, "passing")
        process.spawn(self.daemon.run()).add_done_callback(self._ended)

    def _ended(self, task: Any) -> None:
        process = self.process
        if not task.cancelled() and task.exception() is not None:
            self.world.loop.failure = task.exception()
        elif process is not None and process.alive:
            process.kill()

    def _died(self) -> None:
        self.station.died()
        self.daemon = None
        world = self.world
        if self.box.up:
            world.loop.after(self.rng.uniform(0.1, 1.5), world.check, self, "critical")
            world.loop.after(self.rng.uniform(1.0, 20.0), self.start)

    def stop(self) -> None:
        """SIGSTOP; its check turns critical when the answer fails to come."""
        if self.process is not None and self.process.alive:
            self.process.stop()
            self.world.loop.after(self.rng.uniform(1.0, 3.0), self._noticed, self.process)

    def _noticed(self, process: Process) -> None:
        if process is self.process and process.stopped:
            self.world.check(self, "critical")

    def go_on(self) -> None:
        """SIGCONT."""
        if self.process is not None and self.process.stopped:
            self.process.go_on()
            self.world.loop.after(self.rng.uniform(0.1, 1.0), self.world.check, self, "passing")

    @property
    def leads(self) -> bool:
        """Whether it has a desk (it may be wrong about it)."""
        return self.daemon is not None and self.daemon._leader is not None

"""What a leadership has beside its ticks: whoever reads gates and node checks, power-cycles, and drains at Nomad."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import structlog

from rebootd.coordinator.drains.nomad import NomadRoom
from rebootd.coordinator.gates.health import HealthWatch
from rebootd.coordinator.gates.keeper import GateKeeper
from rebootd.coordinator.peers import PeersWatch
from rebootd.coordinator.power import PowerRoom
from rebootd.coordinator.silences import SilenceRoom

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from rebootd.consul.leadership import Leadership
    from rebootd.coordinator.drains.nomad_api import NomadApi
    from rebootd.coordinator.fleet import Fleet
    from rebootd.coordinator.gates.sight import Sight
    from rebootd.coordinator.peers import Peers
    from rebootd.coordinator.power import Apply
    from rebootd.coordinator.redfish import Restarter
    from rebootd.coordinator.silences import Alerts
    from rebootd.core.decision import Decision
    from rebootd.core.model import Event, Machine, PowerCycle, Snapshot


log = structlog.get_logger(__name__)

HAND_OVER = "its own host is to reboot next"
"""Why a leader steps down that could go on."""
ABSTAIN = 10.0
"""Seconds that it then lets others go first."""


class Means(NamedTuple):
    """What a daemon was given; None: nobody does that for it, and the decisions know."""

    sight: Sight | None = None
    restarter: Restarter | None = None
    nomad: NomadApi | None = None
    peers: Peers | None = None
    alerts: Alerts | None = None


NO_MEANS = Means()


class Rooms:
    """Belongs to one leadership."""

    def __init__(
        self,
        fleet: Fleet,
        leadership: Leadership,
        dirty: asyncio.Event,
        *,
        wall: Callable[[], float],
        note: Callable[[Event], None],
        apply: Apply,
        look_up: Callable[[], Awaitable[bool]],
        means: Means,
    ) -> None:
        sight, restarter, nomad, peers, alerts = means
        self._leadership = leadership
        self._keeper = GateKeeper(fleet, sight, dirty, wall=wall, note=note)
        self._health = HealthWatch(fleet, sight, dirty, wall, look_up) if sight is not None else None
        fleet.can_power = restarter is not None
        self._power = PowerRoom(fleet, leadership, restarter, wall=wall, apply=apply) if restarter is not None else None
        self._nomad = NomadRoom(fleet, nomad, leadership, dirty, wall=wall) if nomad is not None else None
        self._peers = PeersWatch(fleet, peers, dirty) if peers is not None else None
        self._silences = SilenceRoom(fleet, alerts, leadership.may_speak, wall=wall) if alerts is not None else None

    def start(self, group: asyncio.TaskGroup) -> None:
        """They work for as long as ``group`` lives."""
        for room in (self._keeper, self._health, self._power, self._nomad, self._peers, self._silences):
            if room is not None:
                group.create_task(room.run())

    def judged(self, snapshot: Snapshot, decision: Decision) -> None:
        """A decision has been made."""
        self._keeper.judged(snapshot, decision)

    def landed(self, decision: Decision) -> None:
        """What the decision asked for is in the store: leadership is handed over, if that is its turn."""
        if decision.hand_over:
            log.info("hand-over", machine=decision.hand_over)
            self._leadership.step_down(HAND_OVER, abstain=ABSTAIN)

    def changed(self, before: Machine | None, machine: Machine) -> None:
        """A transition of a machine has landed."""
        self._keeper.changed(before, machine)
        if self._nomad is not None:
            self._nomad.changed(machine)
        if self._silences is not None:
            self._silences.changed(before, machine)

    async def before_drain(self, name: str) -> None:
        """Returns when the machine's agent may be told to drain: a moment later at most."""
        if self._silences is not None:
            await self._silences.before_drain(name)

    def power(self, record: PowerCycle) -> None:
        """The leave to power-cycle a machine has landed."""
        if self._power is not None:
            self._power.committed(record)

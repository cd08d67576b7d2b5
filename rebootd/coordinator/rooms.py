"""What a leadership has beside its ticks: whoever reads gates and node checks, power-cycles, and drains at Nomad."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebootd.coordinator.drains.nomad import NomadRoom
from rebootd.coordinator.gates.health import HealthWatch
from rebootd.coordinator.gates.keeper import GateKeeper
from rebootd.coordinator.power import PowerRoom

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from rebootd.consul.leadership import Leadership
    from rebootd.coordinator.drains.nomad_api import NomadApi
    from rebootd.coordinator.fleet import Fleet
    from rebootd.coordinator.gates.sight import Sight
    from rebootd.coordinator.power import Apply
    from rebootd.coordinator.redfish import Restarter
    from rebootd.core.decision import Decision
    from rebootd.core.model import Event, Machine, PowerCycle, Snapshot


class Rooms:
    """Belongs to one leadership. What a daemon was not given (None) nobody does for it, and the decisions know that."""

    def __init__(
        self,
        fleet: Fleet,
        leadership: Leadership,
        dirty: asyncio.Event,
        *,
        wall: Callable[[], float],
        note: Callable[[Event], None],
        apply: Apply,
        sight: Sight | None,
        restarter: Restarter | None,
        nomad: NomadApi | None,
    ) -> None:
        self._keeper = GateKeeper(fleet, sight, dirty, wall=wall, note=note)
        self._health = HealthWatch(fleet, sight, dirty, wall) if sight is not None else None
        fleet.can_power = restarter is not None
        self._power = PowerRoom(fleet, leadership, restarter, wall=wall, apply=apply) if restarter is not None else None
        self._nomad = NomadRoom(fleet, nomad, leadership, dirty, wall=wall) if nomad is not None else None

    def start(self, group: asyncio.TaskGroup) -> None:
        """They work for as long as ``group`` lives."""
        for room in (self._keeper, self._health, self._power, self._nomad):
            if room is not None:
                group.create_task(room.run())

    def judged(self, snapshot: Snapshot, decision: Decision) -> None:
        """A decision has been made."""
        self._keeper.judged(snapshot, decision)

    def changed(self, before: Machine | None, machine: Machine) -> None:
        """A transition of a machine has landed."""
        self._keeper.changed(before, machine)
        if self._nomad is not None:
            self._nomad.changed(machine)

    def power(self, record: PowerCycle) -> None:
        """The leave to power-cycle a machine has landed."""
        if self._power is not None:
            self._power.committed(record)

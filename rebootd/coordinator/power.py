"""Acts on power cycles that have been committed, and puts into the store what came of each."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Protocol

import structlog

from rebootd.core.errors import RebootdError
from rebootd.core.model import PowerState
from rebootd.core.power import conclude, objection, under_way

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rebootd.consul.leadership import Leadership
    from rebootd.coordinator.fleet import Fleet
    from rebootd.coordinator.redfish import Restarter
    from rebootd.core.decision import Change
    from rebootd.core.model import PowerCycle, Snapshot

log = structlog.get_logger(__name__)


class Apply(Protocol):
    """How a plan is brought into the store: :meth:`rebootd.coordinator.leader.Leader.apply`."""

    def __call__(self, plan: Callable[[Snapshot], Change]) -> Awaitable[Change]:
        """Commits what ``plan`` returns."""
        ...


class PowerRoom:
    """Belongs to one leadership, and acts only on what that leadership has committed itself."""

    def __init__(
        self, fleet: Fleet, leadership: Leadership, restarter: Restarter, *, wall: Callable[[], float], apply: Apply
    ) -> None:
        self._fleet = fleet
        self._leadership = leadership
        self._restarter = restarter
        self._wall = wall
        self._apply = apply
        self._asked: asyncio.Queue[PowerCycle] = asyncio.Queue()

    def committed(self, record: PowerCycle) -> None:
        """The record has landed: it may be acted on."""
        self._asked.put_nowait(record)

    async def run(self) -> None:
        """Until cancelled. What is under way then stays ``asked``: the next leader takes it as sent."""
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(self._act(await self._asked.get()))

    async def _act(self, record: PowerCycle) -> None:
        log.warning("power-cycle", machine=record.machine, boot_id=record.boot_id, address=record.address)
        outcome = await self._restarter.restart(record, partial(self._objection, record))
        state = PowerState.SENT if outcome.sent else PowerState.CANCELLED if outcome.cancelled else PowerState.FAILED
        log.warning("power-cycle-ended", machine=record.machine, state=state.value, detail=outcome.detail)
        try:
            await self._apply(partial(conclude, record=record, state=state, result=outcome.detail))
        except RebootdError as error:
            log.error("power-cycle-not-recorded", machine=record.machine, error=str(error))

    def _objection(self, record: PowerCycle) -> str:
        """Asked right before the reset is sent: leadership, time, boot_id and any sign of life."""
        if not self._leadership.may_speak():
            return "this daemon cannot be sure that it leads"
        if not under_way(record, self._wall(), record.epoch):
            return "it took too long"
        name = record.machine
        return objection(record, self._fleet.machines.get(name), self._fleet.observed.get(name))

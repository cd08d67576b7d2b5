"""Estimates kept beside the leader's work: people look at them, and what is computed is looked at (FORECAST)."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING
from unittest import mock

from rebootd.coordinator import forecasts
from rebootd.coordinator.forecasts import Forecasts
from rebootd.core.model import State

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from rebootd.core.forecast_told import Forecast
    from rebootd.core.model import Snapshot
    from tests.sim.world import World

LOOK_EVERY = 60.0


async def _idle(_self: Forecasts) -> None:
    """Estimates cost more than all decisions together, and decide nothing: most seeds go without."""
    await asyncio.Event().wait()


@contextmanager
def forecasting(world: World) -> Iterator[None]:
    """Estimates as the plan wants them: kept current and looked at, or not at all."""
    with ExitStack() as stack:
        if not world.plan.features.forecast:
            stack.enter_context(mock.patch.object(Forecasts, "keep", _idle))
        else:
            real = vars(forecasts)["forecast"]

            def watched(snapshot: Snapshot, cycle_id: str = "") -> Generator[float, None, Forecast]:
                return _watched(world, snapshot, real(snapshot, cycle_id))

            stack.enter_context(mock.patch.object(forecasts, "forecast", watched))
            world.loop.after(LOOK_EVERY, _look, world)
        yield


def _look(world: World) -> None:
    """Somebody has the page of a cycle open."""
    desk = world.desk()
    if desk is not None:
        for name in sorted(world.checks.cycles):
            desk.estimate(name)
    world.loop.after(LOOK_EVERY, _look, world)


def _watched(
    world: World, snapshot: Snapshot, slices: Generator[float, None, Forecast]
) -> Generator[float, None, Forecast]:
    """The forecast itself: a mistake in it is told, although a leader would survive it."""
    before = (snapshot.machines, dict(snapshot.machines))
    try:
        found = yield from slices
    except Exception as error:
        world.checks.fail("FORECAST", f"{type(error).__name__}: {error}")
        raise
    if before[0] != before[1]:
        world.checks.fail("FORECAST", "it changed the snapshot that it was computed from")
    world.checks.counts["forecasts"] += 1
    why = _wrong(snapshot, found)
    if why:
        world.checks.fail("FORECAST", why)
    return found


def _wrong(snapshot: Snapshot, found: Forecast) -> str:
    """What no forecast may say, or ""."""
    for planned in found.planned:
        machine = snapshot.machines.get(planned.machine)
        if machine is None or machine.state is State.QUARANTINED:
            return f"{planned.machine} is planned, which is {machine.state.value if machine else 'unknown'}"
        if planned.back < planned.start:
            return f"{planned.machine} is back before it goes"
    for cycle, estimate in found.cycles.items():
        if estimate.last is not None and estimate.last < estimate.at:
            return f"cycle {cycle} ended before it was asked for"
    for never in found.never:
        if not never.reasons:
            return f"{never.machine} can never go, and nobody says why"
    return ""

"""Forecasts beside the leader's work: computed in small slices of its loop, one at a time, and kept for a while."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import structlog
from msgspec.structs import replace

from rebootd.core.decision import Change, RecordWrite
from rebootd.core.errors import InvalidInput, NotFound, RebootdError, Refused
from rebootd.core.forecast import Estimate, Forecast, forecast
from rebootd.core.model import CycleState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rebootd.core.model import Cycle, Snapshot

log = structlog.get_logger(__name__)

EVERY = 30.0
"""Seconds between two computations of what ``cycle show`` shows."""
ASKED_LATELY = 120.0
"""Seconds for which estimates are kept current after somebody has looked at one."""
SHARE = 5.0
"""A computation is followed by at least so many times its own length of rest."""
LOOK = 2.0


class Forecasts:
    """Belongs to one leadership."""

    def __init__(
        self, snapshot: Callable[[], Snapshot], apply: Callable[[Callable[[Snapshot], Change]], Awaitable[Change]]
    ) -> None:
        self._snapshot = snapshot
        self._apply = apply
        self._one = asyncio.Lock()
        self._estimates: dict[str, Estimate] = {}
        self._asked = float("-inf")

    async def of(self, cycle_id: str = "", extra: Cycle | None = None) -> Forecast:
        """The forecast of a cycle, or of all (``""``); ``extra`` is one that does not exist yet and is asked about."""
        async with self._one:
            snapshot = self._snapshot()
            if extra is not None:
                snapshot = replace(snapshot, cycles={**snapshot.cycles, extra.id: extra})
            slices = forecast(snapshot, extra.id if extra is not None else cycle_id)
            while True:
                try:
                    next(slices)
                except StopIteration as stop:
                    result: Forecast = stop.value
                    return result
                # Everybody else in the loop has a turn; a slice is a few milliseconds.
                await asyncio.sleep(0)

    def estimate(self, cycle_id: str) -> Estimate | None:
        """What is known of a cycle's end; asking keeps it current for a while."""
        self._asked = asyncio.get_running_loop().time()
        return self._estimates.get(cycle_id)

    async def keep(self) -> None:
        """Keeps estimates current while somebody looks, and writes the first one of each cycle down. Never returns."""
        loop = asyncio.get_running_loop()
        rest = 0.0
        while True:
            await asyncio.sleep(LOOK)
            if loop.time() < rest:
                continue
            running = [c for c in self._snapshot().cycles.values() if c.state is CycleState.RUNNING]
            fresh = [c for c in running if not c.estimated and not c.standing]
            if not fresh and not (running and loop.time() - self._asked < ASKED_LATELY):
                continue
            began = loop.time()
            try:
                self._estimates = (await self.of()).cycles
                for cycle in fresh:
                    await self._write_down(cycle.id)
            except (InvalidInput, NotFound, Refused) as error:
                # Denied, or others write the same record: it is tried again, and no reason to stop leading.
                log.warning("estimate-not-written", error=str(error))
            except RebootdError:
                raise
            except Exception:
                # An estimate is a convenience: a mistake in one must not cost the leadership.
                log.exception("forecast failed")
            rest = loop.time() + max(EVERY, SHARE * (loop.time() - began))

    async def _write_down(self, cycle_id: str) -> None:
        estimate = self._estimates.get(cycle_id)
        if estimate is None or estimate.last is None:
            return
        last, at = estimate.last, estimate.at

        def plan(snapshot: Snapshot) -> Change:
            cycle = snapshot.cycles.get(cycle_id)
            if cycle is None or cycle.estimated or cycle.state is not CycleState.RUNNING:
                return Change()
            noted = replace(cycle, estimated=last, estimated_at=at, epoch=snapshot.epoch, version=cycle.version + 1)
            return Change(writes=(RecordWrite(key=f"cycles/{cycle_id}", value=msgspec.json.encode(noted)),))

        await self._apply(plan)

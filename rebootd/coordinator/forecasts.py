"""Forecasts beside the leader's work: one at a time, kept for a while, and never at the cost of that work.

A small fleet's is computed in slices of the leader's loop. A large one's has slices of a third of a second, and many
windows take a tenth to work out, so these have a thread of their own: the core is pure and the snapshot immutable, so
nothing is shared that could change. What takes too long, or would need too much memory, is given up, and whoever asks
is told so.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

import msgspec
import structlog
from msgspec.structs import replace

from rebootd.core.advance import ENDED
from rebootd.core.decision import Change, RecordWrite
from rebootd.core.errors import InvalidInput, NotFound, RebootdError, Refused
from rebootd.core.forecast import estimate_due, forecast, with_estimate
from rebootd.core.forecast_told import Estimate, Forecast
from rebootd.core.model import CycleState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from rebootd.core.model import Cycle, Snapshot

log = structlog.get_logger(__name__)

EVERY = 30.0
"""Seconds between two computations of what ``cycle show`` shows."""
ASKED_LATELY = 120.0
"""Seconds for which estimates are kept current after somebody has looked at one."""
SHARE = 5.0
"""A computation is followed by at least so many times its own length of rest."""
LOOK = 2.0
SMALL = 100
"""Machines up to which a forecast is computed in the loop, if there are few windows besides."""
FEW = 4
"""Calendar windows up to which it is: each costs some milliseconds when its days are worked out for the first time."""
LONGEST = 60.0
"""Seconds after which a forecast is given up."""
ROWS = 200_000
"""Machines times cycles under way of which a forecast may tell; each takes some hundred bytes."""


class Forecasts:
    """Belongs to one leadership."""

    def __init__(
        self, snapshot: Callable[[], Snapshot], apply: Callable[[Callable[[Snapshot], Change]], Awaitable[Change]]
    ) -> None:
        self._snapshot = snapshot
        self._apply = apply
        self._one = asyncio.Lock()
        self._estimates: dict[str, Estimate] = {}
        self._given_up: Estimate | None = None
        self._asked = float("-inf")

    async def of(self, cycle_id: str = "", extra: Cycle | None = None) -> Forecast:
        """The forecast of a cycle, or of all (``""``); ``extra`` is one that does not exist yet and is asked about.

        Raises Refused when it takes more than ``LONGEST`` seconds, or would have more than ``ROWS`` rows.
        """
        async with self._one:
            snapshot = self._snapshot()
            if extra is not None:
                snapshot = replace(snapshot, cycles={**snapshot.cycles, extra.id: extra})
            machines = len(snapshot.machines)
            cycles = sum(cycle.state not in ENDED for cycle in snapshot.cycles.values()) or 1
            if machines * cycles > ROWS:
                raise Refused(f"a forecast of {machines} machines in {cycles} cycles would need too much memory")
            slices = forecast(snapshot, extra.id if extra is not None else cycle_id)
            small = machines <= SMALL and len(snapshot.policy.windows) <= FEW
            return await (_in_slices(slices) if small else _in_thread(slices))

    def estimate(self, cycle_id: str) -> Estimate | None:
        """What is known of a cycle's end, or why nothing is; asking keeps it current for a while."""
        self._asked = asyncio.get_running_loop().time()
        return self._estimates.get(cycle_id) or self._given_up

    async def keep(self) -> None:
        """Keeps estimates current while somebody looks, and writes those down that are due. Never returns."""
        loop = asyncio.get_running_loop()
        rest = 0.0
        while True:
            await asyncio.sleep(LOOK)
            if loop.time() < rest:
                continue
            snapshot = self._snapshot()
            running = [c for c in snapshot.cycles.values() if c.state is CycleState.RUNNING]
            fresh = [c for c in running if estimate_due(c, snapshot.now)]
            if not fresh and not (running and loop.time() - self._asked < ASKED_LATELY):
                continue
            began = loop.time()
            try:
                await self._renew()
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

    async def _renew(self) -> None:
        try:
            self._estimates, self._given_up = (await self.of()).cycles, None
        except Refused as error:
            # An old estimate would look like a new one.
            self._estimates = {}
            now = self._snapshot().now
            self._given_up = Estimate(at=now, to_go=0, never=0, last=None, ends=None, note=str(error))
            log.warning("forecast-given-up", error=str(error))

    async def _write_down(self, cycle_id: str) -> None:
        estimate = self._estimates.get(cycle_id)
        if estimate is None:
            return

        def plan(snapshot: Snapshot) -> Change:
            cycle = snapshot.cycles.get(cycle_id)
            if cycle is None or not estimate_due(cycle, snapshot.now):
                return Change()
            noted = with_estimate(cycle, estimate)
            if noted is cycle:
                return Change()
            noted = replace(noted, epoch=snapshot.epoch, version=cycle.version + 1)
            return Change(writes=(RecordWrite(key=f"cycles/{cycle_id}", value=msgspec.json.encode(noted)),))

        await self._apply(plan)


async def _in_slices(slices: Generator[float, None, Forecast]) -> Forecast:
    loop = asyncio.get_running_loop()
    began = loop.time()
    while True:
        try:
            next(slices)
        except StopIteration as stop:
            result: Forecast = stop.value
            return result
        _patience(loop.time() - began)
        # Everybody else in the loop has a turn.
        await asyncio.sleep(0)


async def _in_thread(slices: Generator[float, None, Forecast]) -> Forecast:
    unwanted = threading.Event()

    def work() -> Forecast | None:
        began = time.monotonic()
        while not unwanted.is_set():
            try:
                next(slices)
            except StopIteration as stop:
                result: Forecast = stop.value
                return result
            _patience(time.monotonic() - began)
        return None

    try:
        found = await asyncio.to_thread(work)
    finally:
        unwanted.set()
    if found is None:
        raise asyncio.CancelledError
    return found


def _patience(took: float) -> None:
    if took > LONGEST:
        raise Refused(f"the forecast was given up after {took:.0f} s")

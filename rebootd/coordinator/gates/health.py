"""Which machines Consul says have failed: critical node checks, our own out mark aside.

A critical check of a *node* (``serfHealth``, ``_node_maintenance``, or one of the fleet's own) takes its services out
of Consul's answers, so the machine counts as unavailable, whatever its record says.

A check that is critical no longer may have passed, or gone with its node: Consul removes dead servers a few seconds
after they failed (autopilot's ``CleanupDeadServers``), other nodes after 72 h. So a machine counts as failed until the
catalog was read after that. A query that hangs, in a server that stands still, says nothing: what has not been
confirmed for ``WAIT`` and a little is unknown.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import structlog

from rebootd.coordinator.gates.tools import decoded
from rebootd.core.errors import RebootdError, Unreachable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rebootd.coordinator.fleet import Fleet
    from rebootd.coordinator.gates.sight import Sight
    from rebootd.coordinator.gates.tools import Tools

log = structlog.get_logger(__name__)

PATH = "/v1/health/state/critical"
OUT_MARK = "rebootd"
MAINTENANCE = "_node_maintenance"
WAIT = 4.0
"""Seconds of one blocking query; Consul adds up to a sixteenth. With ``LATE`` it is how old what is known may be,
and gossip needs about as long to tell that a server stands still."""
LATE = 2.0
"""Seconds that an answer may then still take."""
PAUSE = 0.5
"""Seconds between two answers: in a large fleet some check changes all the time."""
FAULT = "health"


class _Check(msgspec.Struct, rename="pascal"):
    node: str
    check_id: str = msgspec.field(name="CheckID", default="")
    name: str = ""
    notes: str = ""
    output: str = ""
    service_id: str = msgspec.field(name="ServiceID", default="")


async def read(tools: Tools, index: int, wait: float) -> tuple[dict[str, str], int]:
    """Nodes with a critical check of their own and why, as soon as that may have changed since ``index``.

    Raises ``Unreachable``.
    """
    params = [("filter", 'ServiceID == ""')]
    if index:
        params += [("index", str(index)), ("wait", f"{max(1, round(wait))}s")]
    body, headers = await tools.consul_get(PATH, params)
    failing: dict[str, str] = {}
    for check in decoded(body, list[_Check], PATH):
        if check.service_id or check.check_id == OUT_MARK:
            continue
        why = _why(check)
        failing[check.node] = f"{failing[check.node]}; {why}" if check.node in failing else why
    given = headers.get("X-Consul-Index", "")
    now = int(given) if given.isdigit() else 0
    # Consul's page on blocking queries: one that went backwards begins anew.
    return failing, now if now >= index else 0


def _why(check: _Check) -> str:
    if check.check_id == MAINTENANCE:
        return f"in maintenance{f' ({check.notes[:120]})' if check.notes else ''}"
    return f"{check.check_id or check.name} is critical"


class HealthWatch:
    """Keeps ``fleet.failing`` true for as long as a leadership lasts.

    ``look_up`` reads the catalog into the fleet and says whether it could.
    """

    def __init__(
        self,
        fleet: Fleet,
        sight: Sight,
        dirty: asyncio.Event,
        wall: Callable[[], float],
        look_up: Callable[[], Awaitable[bool]],
    ) -> None:
        self._fleet = fleet
        self._sight = sight
        self._dirty = dirty
        self._wall = wall
        self._look_up = look_up
        # What is unknown is not safe: until the first answer nobody goes.
        fleet.faults[FAULT] = "Consul's node checks have not been read yet"

    async def run(self) -> None:
        """Until cancelled."""
        index = 0
        while True:
            try:
                failing, index = await self._read(index)
            except RebootdError as error:
                log.warning("health-unreadable", error=str(error))
                self._fleet.faults[FAULT] = f"Consul's node checks cannot be watched: {error}"
                self._dirty.set()
                index = 0
            else:
                if self._fleet.faults.pop(FAULT, None) is not None or failing != self._fleet.failing:
                    self._take(failing)
            await asyncio.sleep(PAUSE)

    async def _read(self, index: int) -> tuple[dict[str, str], int]:
        limit = WAIT * 17 / 16 + LATE
        try:
            async with asyncio.timeout(limit):
                failing, now = await self._sight.failing(index, WAIT)
                left = self._fleet.failing.keys() - failing.keys()
                # Who has left the catalog has no checks any more; after a gap in the watch that may be anybody.
                if (not index or left & self._fleet.machines.keys()) and not await self._look_up():
                    raise Unreachable("the catalog cannot be read")
        except TimeoutError:
            raise Unreachable(f"no answer within {limit:g} s") from None
        return failing, now

    def _take(self, failing: dict[str, str]) -> None:
        known, now = self._fleet.failing_since, self._wall()
        self._fleet.failing = failing
        self._fleet.failing_since = {name: known.get(name, now) for name in failing}
        self._dirty.set()

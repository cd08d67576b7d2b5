"""Which machines Consul says have failed: critical node checks, our own out mark aside.

A critical check of a *node* (``serfHealth``, ``_node_maintenance``, or one of the fleet's own) takes its services out
of Consul's answers, so the machine counts as unavailable, whatever its record says.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import structlog

from rebootd.coordinator.gates.tools import decoded
from rebootd.core.errors import RebootdError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebootd.coordinator.fleet import Fleet
    from rebootd.coordinator.gates.sight import Sight
    from rebootd.coordinator.gates.tools import Tools

log = structlog.get_logger(__name__)

PATH = "/v1/health/state/critical"
OUT_MARK = "rebootd"
MAINTENANCE = "_node_maintenance"
WAIT = 30.0
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
    """Keeps ``fleet.failing`` true for as long as a leadership lasts."""

    def __init__(self, fleet: Fleet, sight: Sight, dirty: asyncio.Event, wall: Callable[[], float]) -> None:
        self._fleet = fleet
        self._sight = sight
        self._dirty = dirty
        self._wall = wall
        # What is unknown is not safe: until the first answer nobody goes.
        fleet.faults[FAULT] = "Consul's node checks have not been read yet"

    async def run(self) -> None:
        """Until cancelled."""
        index = 0
        while True:
            try:
                failing, index = await self._sight.failing(index, WAIT)
            except RebootdError as error:
                log.warning("health-unreadable", error=str(error))
                self._fleet.faults[FAULT] = f"Consul's node checks cannot be watched: {error}"
                self._dirty.set()
                index = 0
            else:
                if self._fleet.faults.pop(FAULT, None) is not None or failing != self._fleet.failing:
                    self._take(failing)
            await asyncio.sleep(PAUSE)

    def _take(self, failing: dict[str, str]) -> None:
        known, now = self._fleet.failing_since, self._wall()
        self._fleet.failing = failing
        self._fleet.failing_since = {name: known.get(name, now) for name in failing}
        self._dirty.set()

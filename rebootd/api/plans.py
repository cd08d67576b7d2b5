"""The routes of the forecast: of a cycle that runs, and of one that does not exist yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from rebootd.api import shapes
from rebootd.api.bodies import answer, decode, query, read
from rebootd.api.door import DOOR
from rebootd.api.route import Parameter, Route
from rebootd.core.advance import ENDED
from rebootd.core.errors import Refused
from rebootd.core.forecast_told import Forecast
from rebootd.core.model import Cycle
from rebootd.core.operations_cycles import need_cycle, start_cycle
from rebootd.core.operations_inputs import Because

if TYPE_CHECKING:
    from aiohttp import web

    from rebootd.coordinator.desk import Desk
    from rebootd.core.model import Snapshot

MAX_ASKED = 64 * 1024
_asked = msgspec.json.Decoder(shapes.PlanAsked)


async def _plan(request: web.Request) -> web.StreamResponse:
    cycle_id = query(request, "cycle").get("cycle", "")

    async def act(desk: Desk) -> web.StreamResponse:
        if cycle_id:
            cycle = need_cycle(desk.snapshot(), cycle_id)
            if cycle.state in ENDED:
                raise Refused(f"cycle {cycle_id} is {cycle.state.value}: there is nothing left to plan")
        return answer(await desk.forecast(cycle_id))

    return await request.app[DOOR].lead(request, act)


async def _what_if(request: web.Request) -> web.StreamResponse:
    query(request)
    asked = decode(_asked, await read(request, MAX_ASKED) or b"{}")

    async def act(desk: Desk) -> web.StreamResponse:
        return answer(await desk.forecast(extra=_supposed(desk.snapshot(), asked)))

    return await request.app[DOOR].lead(request, act)


def _supposed(snapshot: Snapshot, asked: shapes.PlanAsked) -> Cycle:
    """The cycle that is asked about, as it would be started now. Raises InvalidInput as starting it does."""
    taken = {*snapshot.cycles, *(c for m in snapshot.machines.values() for c in m.outcomes)}
    cycle_id = next(i for i in ("plan", *(f"plan-{n}" for n in range(len(taken) + 1))) if i not in taken)
    change = start_cycle(
        snapshot,
        cycle_id=cycle_id,
        selector=asked.selector,
        target=asked.target,
        because=Because(reason="a plan" if asked.emergency else ""),
        waves=asked.waves,
        emergency=asked.emergency,
        skip_gates=asked.skip_gates,
    )
    return msgspec.json.decode(change.writes[0].value or b"", type=Cycle)


ROUTES = (
    Route(
        method="GET",
        path="/v1/plan",
        handler=_plan,
        summary="The forecast of one cycle, or of all that run: which machine goes when, and which never can",
        role="viewer",
        query=(Parameter(name="cycle", about="the cycle's id", schema={"type": "string"}),),
        answer=Forecast,
        errors=(404, 409),
    ),
    Route(
        method="POST",
        path="/v1/plan",
        handler=_what_if,
        summary="The forecast of a cycle that does not exist; changes nothing",
        role="viewer",
        body=shapes.PlanAsked,
        answer=Forecast,
    ),
)

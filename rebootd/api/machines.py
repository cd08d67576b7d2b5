"""The two routes that machines call: report-and-wait, and the permit. Kept lean: they are nearly all of the traffic."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from rebootd.api.bodies import answer, decode, query, read
from rebootd.api.door import DOOR, to_the_end
from rebootd.api.route import Route
from rebootd.core.errors import InvalidInput, NotLeader
from rebootd.core.inputs import parse_name, parse_token
from rebootd.core.wire import Answer, PermitAnswer, PermitRequest, Report

if TYPE_CHECKING:
    from aiohttp import web

    from rebootd.coordinator.desk import Desk

MAX_REPORT = 64 * 1024
"""Bytes of a report's or a permit request's body."""
LARGEST = 2**53
"""Indexes and epochs stay below what every JSON reader keeps exactly."""

_reports = msgspec.json.Decoder(Report)
_permits = msgspec.json.Decoder(PermitRequest)


async def _report(request: web.Request) -> web.StreamResponse:
    # The report is not kept here while it waits: those of ten thousand machines are megabytes.
    door = request.app[DOOR]
    desk = door.office.desk()
    if desk is not None:
        try:
            return answer(await desk.report(await _read_report(request)))
        except NotLeader:
            pass  # It ended meanwhile: the long way finds the next leader.

    async def act(desk: Desk) -> web.StreamResponse:
        return answer(await desk.report(await _read_report(request)))

    return await door.lead(request, act, (await _read_report(request)).wait)


async def _read_report(request: web.Request) -> Report:
    _no_query(request)
    report = decode(_reports, await read(request, MAX_REPORT))
    _check_name(request, report.name)
    # Records keep the last boot_ids, and must stay small.
    parse_token(report.boot_id, "boot_id")
    parse_token(report.machine_id, "machine_id")
    if not 0 <= report.index < LARGEST:
        raise InvalidInput("index", report.index, "the index of the last answer, or 0")
    if not 0 <= report.wait <= 3600:
        raise InvalidInput("wait", report.wait, "seconds from 0 to 3600")
    return report


async def _permit(request: web.Request) -> web.StreamResponse:
    _no_query(request)
    asked = decode(_permits, await read(request, MAX_REPORT))
    _check_name(request, asked.name)
    parse_token(asked.nonce, "nonce")
    if not 0 <= asked.epoch < LARGEST:
        raise InvalidInput("epoch", asked.epoch, "the epoch of the directive")

    async def act(desk: Desk) -> web.StreamResponse:
        # A permit that is being committed goes on to its end, also when its agent hangs up.
        return answer(await to_the_end(desk.permit(asked)))

    return await request.app[DOOR].lead(request, act)


def _no_query(request: web.Request) -> None:
    # Looking into the query costs more than looking whether there is one.
    if "?" in request.path_qs:
        query(request)


def _check_name(request: web.Request, name: str) -> None:
    if name != request.match_info["name"]:
        raise InvalidInput("name", name, f"the name in the path, {request.match_info['name'][:128]!r}")
    parse_name(name, "name")


ROUTES = (
    Route(
        method="POST",
        path="/v1/machines/{name}/report",
        handler=_report,
        summary="What a machine says of itself; answers what it is to do, and waits for news as it asks",
        role="machine",
        body=Report,
        answer=Answer,
        errors=(409,),
    ),
    Route(
        method="POST",
        path="/v1/machines/{name}/permit",
        handler=_permit,
        summary="May this machine reboot this boot_id now? A refusal is a 200 that says why",
        role="machine",
        body=PermitRequest,
        answer=PermitAnswer,
        errors=(409,),
    ),
)

"""Where the audit chain stands, for those who verify the files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from rebootd.api.bodies import answer, query
from rebootd.api.door import DOOR
from rebootd.api.route import Route
from rebootd.core.audit import Head

if TYPE_CHECKING:
    from aiohttp import web

    from rebootd.coordinator.desk import Desk


class AuditShow(msgspec.Struct, frozen=True, kw_only=True):
    """The head as the leader holds it. ``enabled`` False: no daemon keeps an audit log. ``broken``: what this leader
    found wrong with the chain; ``problem``: why it cannot write its file. Both are empty when all is well.
    """

    enabled: bool
    head: Head
    broken: str = ""
    problem: str = ""


async def _show(request: web.Request) -> web.StreamResponse:
    query(request)

    async def act(desk: Desk) -> web.StreamResponse:
        chain = desk.audit
        return answer(AuditShow(enabled=chain.enabled, head=chain.head, broken=chain.broken, problem=chain.problem))

    return await request.app[DOOR].lead(request, act)


ROUTES = (
    Route(
        method="GET",
        path="/v1/audit",
        handler=_show,
        summary="Where the audit chain stands",
        role="viewer",
        answer=AuditShow,
    ),
)

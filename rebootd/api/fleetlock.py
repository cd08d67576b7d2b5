"""FleetLock, as Zincati speaks it: two routes for machines without an agent (docs/fleetlock.md).

The protocol is described in Zincati's own documentation (docs/development/fleetlock/protocol.md of coreos/zincati): a
200 is a yes, everything else a no with a ``kind`` out of a small set and a ``value`` for people. Clients take a base
URL that these paths are below. A body has no place for a machine's name, so who may speak for whom is asked here, once
the leader has found out whom the client's id stands for.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from rebootd.api.bodies import answer, decode, problem, query, read
from rebootd.api.callers import caller
from rebootd.api.door import DOOR, to_the_end
from rebootd.api.route import Parameter, Route
from rebootd.core.errors import Forbidden, InvalidInput
from rebootd.core.fleetlock_record import Call
from rebootd.core.inputs import MAX_NAME, parse_token

if TYPE_CHECKING:
    from aiohttp import web

    from rebootd.coordinator.desk import Desk
    from rebootd.core.wire import Problem

HEADER = "fleet-lock-protocol"
GROUP = rf"[a-zA-Z0-9.-]{{1,{MAX_NAME}}}"
MAX_BODY = 16 * 1024
"""Bytes of a request's body."""
KINDS = {
    400: "bad-input",
    401: "unauthorized",
    403: "forbidden",
    408: "too-slow",
    409: "refused",
    413: "too-large",
    500: "mistake",
    503: "unavailable",
}
"""What an error is called that says nothing of the machine itself, by its status; Zincati counts errors by kind."""


class ClientParams(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks: its ``id``, and the ``group`` that it was configured with."""

    id: str
    group: str


class LockRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of both requests. Other fields are not looked at."""

    client_params: ClientParams


class LockAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Yes: the client needs to see no more than the 200. ``valid_for`` (s) is how long it may take to reboot."""

    machine: str
    state: str
    valid_for: float = 0.0


class LockProblem(msgspec.Struct, frozen=True, kw_only=True):
    """No: ``kind`` in one word (a blocker's kind, where the machine waits), ``value`` in sentences."""

    kind: str
    value: str


_requests = msgspec.json.Decoder(LockRequest)
_group = re.compile(GROUP)


async def _pre_reboot(request: web.Request) -> web.StreamResponse:
    return await _ask(request, steady=False)


async def _steady_state(request: web.Request) -> web.StreamResponse:
    return await _ask(request, steady=True)


async def _ask(request: web.Request, *, steady: bool) -> web.StreamResponse:
    query(request)
    body = await read(request, MAX_BODY)
    if request.headers.get(HEADER) != "true":
        raise InvalidInput(HEADER, request.headers.get(HEADER), "this header with the value true")
    call = read_call(body, steady=steady)

    async def act(desk: Desk) -> web.StreamResponse:
        name = await desk.clients.machine(call.id)
        who = caller(request)
        if not who.may_speak_for(name):
            raise Forbidden(f"the certificate is machine {who.identity}'s: it may not speak for client {call.id}")
        # A permit that is being committed goes on to its end, also when its client hangs up.
        word = await to_the_end(desk.clients.ask(name, call))
        if word.granted:
            return answer(LockAnswer(machine=name, state=word.state, valid_for=word.valid_for))
        return problem(409, LockProblem(kind=word.kind, value=word.why))

    return await request.app[DOOR].lead(request, act)


def read_call(body: bytes, *, steady: bool) -> Call:
    """What the body of a request says. Raises InvalidInput."""
    client = decode(_requests, body).client_params
    parse_token(client.id, "client_params.id")
    if not _group.fullmatch(client.group):
        raise InvalidInput("client_params.group", client.group, f"1 to {MAX_NAME} characters of A-Z a-z 0-9 . -")
    return Call(id=client.id, group=client.group, steady=steady)


def in_its_words(status: int, said: Problem) -> LockProblem:
    """An error of rebootd as the protocol puts it."""
    return LockProblem(kind=KINDS.get(status, "refused"), value=said.error)


_HEADERS = (Parameter(name=HEADER, about="that this was meant for a FleetLock server", schema={"enum": ["true"]}),)

ROUTES = (
    Route(
        method="POST",
        path="/fleetlock/v1/pre-reboot",
        handler=_pre_reboot,
        summary="FleetLock: may the client's machine reboot now? Until then it is remembered that it wants to",
        role="machine",
        headers=_HEADERS,
        body=LockRequest,
        answer=LockAnswer,
        problem=LockProblem,
        wording=in_its_words,
        errors=(409,),
    ),
    Route(
        method="POST",
        path="/fleetlock/v1/steady-state",
        handler=_steady_state,
        summary="FleetLock: the client's machine is back, or does not want to reboot any more",
        role="machine",
        headers=_HEADERS,
        body=LockRequest,
        answer=LockAnswer,
        problem=LockProblem,
        wording=in_its_words,
        errors=(409,),
    ),
)

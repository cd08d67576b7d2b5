"""What operators may look at and change: each route is a view of the snapshot, or a plan for the leader."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import msgspec

from rebootd.api import asking, shapes, views, views_gates, views_places
from rebootd.api.bodies import answer, decode, query, read
from rebootd.api.callers import because
from rebootd.api.door import DOOR, to_the_end
from rebootd.api.route import Handler, Parameter, Route
from rebootd.core import operations, operations_cycles, operations_policy
from rebootd.core.errors import InvalidInput
from rebootd.core.forecast import past_errors
from rebootd.core.model import CycleState, State
from rebootd.core.policy import render_policy
from rebootd.core.policy_told import PolicyDiff

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aiohttp import web

    from rebootd.coordinator.desk import Desk
    from rebootd.core.decision import Change
    from rebootd.core.model import Event
    from rebootd.core.operations_inputs import Because

    Show = Callable[[Desk, web.Request], msgspec.Struct]

T = TypeVar("T")

MAX_ASKED = 64 * 1024
MAX_POLICY = 256 * 1024
SMALL = 500
"""Machines up to which the loop itself finds what a policy would change: that is two decisions, some milliseconds."""

_asked = msgspec.json.Decoder(shapes.Asked)
_cycle_asked = msgspec.json.Decoder(shapes.CycleAsked)
_window_asked = msgspec.json.Decoder(shapes.WindowAsked)


# ------------------------------------------------------------------------------------------------- looking


def _shown(show: Show, parameters: tuple[Parameter, ...]) -> Handler:
    names = [p.name for p in parameters]

    async def handle(request: web.Request) -> web.StreamResponse:
        query(request, *names)

        async def act(desk: Desk) -> web.StreamResponse:
            return answer(show(desk, request))

        return await request.app[DOOR].lead(request, act)

    return handle


def _daemon(request: web.Request) -> dict[str, object]:
    return request.app[DOOR].office.describe()


def _machines(desk: Desk, request: web.Request) -> shapes.Machines:
    return views.machines(desk.snapshot(), desk.decision(), **request.query)


def _cycle(desk: Desk, request: web.Request) -> shapes.CycleShow:
    snapshot = desk.snapshot()
    shown = views.cycle(snapshot, desk.decision(), request.match_info["id"])
    if shown.cycle.state is not CycleState.RUNNING:
        return shown
    return msgspec.structs.replace(shown, estimate=desk.estimate(shown.cycle.id), errors=past_errors(snapshot))


def _show_policy(desk: Desk, _request: web.Request) -> shapes.PolicyShow:
    text, index = desk.policy_text()
    return shapes.PolicyShow(text=text, index=index, effective=render_policy(desk.snapshot().policy))


# ------------------------------------------------------------------------------------------------ changing


async def _body(request: web.Request, decoder: msgspec.json.Decoder[T]) -> T:
    query(request)
    asked = decode(decoder, await read(request, MAX_ASKED) or b"{}")
    request.app[DOOR].demand(request, asked)
    return asked


async def _change(
    request: web.Request, plan: partial[Change], said: Callable[[Change, Desk], shapes.Done]
) -> web.StreamResponse:
    how = asking.asked(request, plan.keywords["because"])

    async def act(desk: Desk) -> web.StreamResponse:
        change = await to_the_end(desk.apply(plan, how))
        return answer(msgspec.structs.replace(said(change, desk), events=_events(change)))

    return await request.app[DOOR].lead(request, act)


def _events(change: Change) -> tuple[Event, ...]:
    return (*change.events, *(e for step in change.steps for e in step.events))


def _done(sentence: str, made: str = "") -> Callable[[Change, Desk], shapes.Done]:
    return lambda _change, _desk: shapes.Done(done=sentence, id=made)


async def _forget(request: web.Request) -> web.StreamResponse:
    asked, name = await _body(request, _asked), request.match_info["name"]
    plan = partial(operations.forget, machine=name, because=_because(request, asked), force=asked.force)
    return await _change(request, plan, _done(f"forgot {name}"))


async def _start_cycle(request: web.Request) -> web.StreamResponse:
    asked = await _body(request, _cycle_asked)
    plan = partial(
        operations_cycles.start_cycle,
        cycle_id=asked.id,
        selector=asked.selector,
        target=asked.target,
        failure_budget=asked.failure_budget,
        because=_because(request, asked),
        allow_empty=asked.allow_empty,
        waves=asked.waves,
        emergency=asked.emergency,
        skip_gates=asked.skip_gates,
        method=asked.method,
    )
    return await _change(request, plan, _done(f"started cycle {asked.id}", asked.id))


_PAST = {"pause": "paused", "resume": "resumed", "cancel": "cancelled"}


async def _move_cycle(request: web.Request) -> web.StreamResponse:
    asked = await _body(request, _asked)
    cycle_id, verb = request.match_info["id"], request.match_info["verb"]
    plan = partial(operations_cycles.move_cycle, verb=verb, cycle_id=cycle_id, because=_because(request, asked))
    return await _change(request, plan, _done(f"{_PAST[verb]} cycle {cycle_id}", cycle_id))


async def _hold(request: web.Request) -> web.StreamResponse:
    asked = await _body(request, _asked)
    kind, name = request.match_info["kind"], request.match_info["name"]
    plan = partial(operations.hold, kind=kind, target=name, because=_because(request, asked))
    return await _change(request, plan, _done(f"held {kind} {name}", name))


async def _release(request: web.Request) -> web.StreamResponse:
    asked = await _body(request, _asked)
    kind, name = request.match_info["kind"], request.match_info["name"]
    plan = partial(operations.release, kind=kind, target=name, because=_because(request, asked))
    return await _change(request, plan, _done(f"released {kind} {name}", name))


async def _open_window(request: web.Request) -> web.StreamResponse:
    asked = await _body(request, _window_asked)
    plan = partial(
        operations.open_window,
        window_id=asked.id,
        start=asked.start,
        length=asked.duration,
        because=_because(request, asked),
    )

    def said(change: Change, desk: Desk) -> shapes.Done:
        made = change.writes[0].key.removeprefix("windows/")
        policy = desk.snapshot().policy
        idle = (
            "" if policy.windows or policy.window_required else "; the policy asks for no window, so it changes nothing"
        )
        return shapes.Done(done=f"opened window {made}{idle}", id=made)

    return await _change(request, plan, said)


async def _close_window(request: web.Request) -> web.StreamResponse:
    asked, window_id = await _body(request, _asked), request.match_info["id"]
    plan = partial(operations.close_window, window_id=window_id, because=_because(request, asked))
    return await _change(request, plan, _done(f"closed window {window_id}", window_id))


async def _halt(request: web.Request) -> web.StreamResponse:
    asked = await _body(request, _asked)
    said = _done("halted: nothing new goes out of service; machines that are out come back")
    return await _change(request, partial(operations.halt, because=_because(request, asked)), said)


async def _unhalt(request: web.Request) -> web.StreamResponse:
    asked = await _body(request, _asked)
    plan = partial(operations.unhalt, because=_because(request, asked))
    return await _change(request, plan, _done("ended the halt: machines may go out of service again"))


async def _unlock(request: web.Request) -> web.StreamResponse:
    asked, rack = await _body(request, _asked), request.match_info["rack"]
    plan = partial(operations.unlock_rack, rack=rack, because=_because(request, asked), force=asked.force)
    return await _change(request, plan, _done(f"unlocked rack {rack}", rack))


async def _clear(request: web.Request) -> web.StreamResponse:
    asked, name = await _body(request, _asked), request.match_info["name"]
    plan = partial(operations.clear_quarantine, machine=name, because=_because(request, asked))
    return await _change(request, plan, _done(f"cleared {name}: it has to prove itself again", name))


async def _policy_text(request: web.Request) -> str:
    body = await read(request, MAX_POLICY)
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput("body", f"byte {error.start}", "YAML text in UTF-8") from None


async def _told(desk: Desk, text: str) -> PolicyDiff:
    snapshot = desk.snapshot()
    if len(snapshot.machines) <= SMALL:
        return operations_policy.diff_policy(snapshot, text)
    return await asyncio.to_thread(operations_policy.diff_policy, snapshot, text)


async def _diff_policy(request: web.Request) -> web.StreamResponse:
    query(request)
    text = await _policy_text(request)

    async def act(desk: Desk) -> web.StreamResponse:
        return answer(await _told(desk, text))

    return await request.app[DOOR].lead(request, act)


async def _apply_policy(request: web.Request) -> web.StreamResponse:
    # The body is the policy itself, so who and why come in the query.
    asked = query(request, "by", "reason")
    why = because(request, asked.get("by", ""), asked.get("reason", ""))
    text = await _policy_text(request)
    how = asking.asked(request, why)

    async def act(desk: Desk) -> web.StreamResponse:
        diff = operations_policy.without_names(await _told(desk, text))
        why.checked()
        if desk.policy_text()[0] == text:
            return answer(shapes.PolicyApplied(done="the policy is this one already", diff=diff))
        plan = partial(operations_policy.apply_policy, text=text, because=why)
        change = await to_the_end(desk.apply(plan, how))
        return answer(shapes.PolicyApplied(done="applied the policy", diff=diff, events=_events(change)))

    return await request.app[DOOR].lead(request, act)


def _because(request: web.Request, asked: shapes.Asked | shapes.CycleAsked | shapes.WindowAsked) -> Because:
    return because(request, asked.by, asked.reason)


# ------------------------------------------------------------------------------------------------- the routes


def _look(
    path: str, answer: type[msgspec.Struct], summary: str, show: Show, *errors: int, query: tuple[Parameter, ...] = ()
) -> Route:
    return Route(
        method="GET",
        path=path,
        handler=_shown(show, query),
        summary=summary,
        role="viewer",
        query=query,
        answer=answer,
        errors=errors,
    )


def _act(
    method: str,
    path: str,
    handler: Handler,
    summary: str,
    *errors: int,
    body: type[msgspec.Struct] = shapes.Asked,
    role: str = "operator",
    stricter: Mapping[str, str] = {},
) -> Route:
    return Route(
        method=method,
        path=path,
        handler=handler,
        summary=summary,
        role=role,
        stricter=stricter,
        body=body,
        optional=body is shapes.Asked,
        answer=shapes.Done,
        errors=(409, *errors),
    )


FORCE = {"force": "admin"}
EMERGENCY = {"emergency": "admin", "skip_gates": "admin"}


def _text(name: str, about: str, **schema: object) -> Parameter:
    return Parameter(name=name, about=about, schema={"type": "string", **schema})


_STATES = ["", *(s.value for s in State), views.UNREADABLE]
_FILTERS = (
    _text("state", "only machines in this state", enum=_STATES),
    _text("rack", "only machines of this rack"),
    _text("selector", "only machines that it matches"),
)
_WHO = (_text("by", "who does it"), _text("reason", "why"))

ROUTES = (
    _look(
        "/v1/status",
        shapes.Status,
        "The fleet on one screen",
        lambda d, r: views.status(d.snapshot(), _daemon(r)),
    ),
    _look("/v1/machines", shapes.Machines, "All machines, or some", _machines, 404, query=_FILTERS),
    _look(
        "/v1/machines/{name}",
        shapes.MachineShow,
        "Everything about one machine",
        lambda d, r: views.machine(d.snapshot(), d.decision(), r.match_info["name"]),
        404,
    ),
    _look(
        "/v1/machines/{name}/explain",
        shapes.Explanation,
        "Why a machine is where it is, and what it waits for",
        lambda d, r: views.explanation(d.snapshot(), d.decision(), r.match_info["name"]),
        404,
    ),
    _look("/v1/cycles", shapes.Cycles, "All cycles, newest first", lambda d, _: views.cycles(d.snapshot())),
    _look("/v1/cycles/{id}", shapes.CycleShow, "One cycle and how far it is", _cycle, 404),
    _look("/v1/holds", shapes.Holds, "All holds", lambda d, _: views.holds(d.snapshot())),
    _look("/v1/windows", shapes.Windows, "All windows", lambda d, _: views_places.windows(d.snapshot())),
    _look(
        "/v1/gates",
        shapes.Gates,
        "All gates and quorum groups",
        lambda d, _: views_gates.gates(d.snapshot(), d.decision()),
    ),
    _look("/v1/racks", shapes.Racks, "All racks", lambda d, _: views_places.racks(d.snapshot())),
    _look("/v1/quarantine", shapes.Quarantine, "Quarantined machines", lambda d, _: views.quarantine(d.snapshot())),
    _look("/v1/policy", shapes.PolicyShow, "The policy, as stored and as in force", _show_policy),
    _act("POST", "/v1/machines/{name}/forget", _forget, "Forget a machine that is gone", 404, role="admin"),
    _act("POST", "/v1/cycles", _start_cycle, "Start a cycle", body=shapes.CycleAsked, stricter=EMERGENCY),
    _act("POST", "/v1/cycles/{id}/{verb:pause|resume|cancel}", _move_cycle, "Pause, resume or cancel a cycle", 404),
    _act("PUT", "/v1/holds/{kind:machine|rack}/{name}", _hold, "Keep a machine or rack out of service", 404),
    _act("DELETE", "/v1/holds/{kind:machine|rack}/{name}", _release, "End a hold", 404),
    _act("POST", "/v1/windows", _open_window, "Open a window", body=shapes.WindowAsked),
    _act("DELETE", "/v1/windows/{id}", _close_window, "Close a window", 404),
    _act("PUT", "/v1/halt", _halt, "Halt: nothing new goes out of service"),
    _act("DELETE", "/v1/halt", _unhalt, "End the halt"),
    _act("POST", "/v1/racks/{rack}/unlock", _unlock, "Give up a rack's lock of ours", 404, stricter=FORCE),
    _act("POST", "/v1/quarantine/{name}/clear", _clear, "Let a quarantined machine prove itself again", 404),
    Route(
        method="POST",
        path="/v1/policy/diff",
        handler=_diff_policy,
        summary="What a policy would change; changes nothing",
        role="viewer",
        body=str,
        answer=PolicyDiff,
    ),
    Route(
        method="PUT",
        path="/v1/policy",
        handler=_apply_policy,
        summary="Put a policy in force",
        role="admin",
        query=_WHO,
        body=str,
        answer=shapes.PolicyApplied,
        errors=(409,),
    ),
)

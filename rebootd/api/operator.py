"""What operators may look at and change: each route is a view of the snapshot, or a plan for the leader."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeVar

import msgspec

from rebootd.api import shapes, views, views_gates, views_places
from rebootd.api.bodies import answer, decode, query, read
from rebootd.api.door import DOOR, to_the_end
from rebootd.core import operations, operations_cycles, operations_policy
from rebootd.core.errors import InvalidInput
from rebootd.core.model import CycleState
from rebootd.core.operations_inputs import Because
from rebootd.core.policy import render_policy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp import web

    from rebootd.coordinator.desk import Desk
    from rebootd.core.decision import Change
    from rebootd.core.model import Event, Snapshot

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
    Show = Callable[[Desk, web.Request], msgspec.Struct]

T = TypeVar("T")

MAX_ASKED = 64 * 1024
MAX_POLICY = 256 * 1024

_asked = msgspec.json.Decoder(shapes.Asked)
_cycle_asked = msgspec.json.Decoder(shapes.CycleAsked)
_window_asked = msgspec.json.Decoder(shapes.WindowAsked)


def add_routes(app: web.Application) -> None:
    """Adds every operator route but the event stream."""
    get, add = app.router.add_get, app.router.add_route
    get("/v1/status", _shown(lambda desk, request: views.status(desk.snapshot(), _daemon(request))))
    get("/v1/machines", _shown(_machines, "state", "rack", "selector"))
    get("/v1/machines/{name}", _shown(lambda d, r: views.machine(d.snapshot(), d.decision(), r.match_info["name"])))
    get(
        "/v1/machines/{name}/explain",
        _shown(lambda d, r: views.explanation(d.snapshot(), d.decision(), r.match_info["name"])),
    )
    get("/v1/cycles", _shown(lambda d, _: views.cycles(d.snapshot())))
    get("/v1/cycles/{id}", _shown(_cycle))
    get("/v1/holds", _shown(lambda d, _: views.holds(d.snapshot())))
    get("/v1/windows", _shown(lambda d, _: views_places.windows(d.snapshot())))
    get("/v1/gates", _shown(lambda d, _: views_gates.gates(d.snapshot(), d.decision())))
    get("/v1/racks", _shown(lambda d, _: views_places.racks(d.snapshot())))
    get("/v1/quarantine", _shown(lambda d, _: views.quarantine(d.snapshot())))
    get("/v1/policy", _shown(_show_policy))
    add("POST", "/v1/machines/{name}/forget", _forget)
    add("POST", "/v1/cycles", _start_cycle)
    add("POST", "/v1/cycles/{id}/{verb:pause|resume|cancel}", _move_cycle)
    add("PUT", "/v1/holds/{kind:machine|rack}/{name}", _hold)
    add("DELETE", "/v1/holds/{kind:machine|rack}/{name}", _release)
    add("POST", "/v1/windows", _open_window)
    add("DELETE", "/v1/windows/{id}", _close_window)
    add("PUT", "/v1/halt", _halt)
    add("DELETE", "/v1/halt", _unhalt)
    add("POST", "/v1/racks/{rack}/unlock", _unlock)
    add("POST", "/v1/quarantine/{name}/clear", _clear)
    add("POST", "/v1/policy/diff", _diff_policy)
    add("PUT", "/v1/policy", _apply_policy)


# ------------------------------------------------------------------------------------------------- looking


def _shown(show: Show, *parameters: str) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        query(request, *parameters)

        async def act(desk: Desk) -> web.StreamResponse:
            return answer(show(desk, request))

        return await request.app[DOOR].lead(request, act)

    return handle


def _daemon(request: web.Request) -> dict[str, object]:
    return request.app[DOOR].office.describe()


def _machines(desk: Desk, request: web.Request) -> shapes.Machines:
    return views.machines(desk.snapshot(), desk.decision(), **request.query)


def _cycle(desk: Desk, request: web.Request) -> shapes.CycleShow:
    shown = views.cycle(desk.snapshot(), desk.decision(), request.match_info["id"])
    running = shown.cycle.state is CycleState.RUNNING
    return msgspec.structs.replace(shown, estimate=desk.estimate(shown.cycle.id) if running else None)


def _show_policy(desk: Desk, _request: web.Request) -> shapes.PolicyShow:
    text, index = desk.policy_text()
    return shapes.PolicyShow(text=text, index=index, effective=render_policy(desk.snapshot().policy))


# ------------------------------------------------------------------------------------------------ changing


async def _body(request: web.Request, decoder: msgspec.json.Decoder[T]) -> T:
    query(request)
    return decode(decoder, await read(request, MAX_ASKED) or b"{}")


async def _change(
    request: web.Request, plan: Callable[[Snapshot], Change], said: Callable[[Change, Desk], shapes.Done]
) -> web.StreamResponse:
    async def act(desk: Desk) -> web.StreamResponse:
        change = await to_the_end(desk.apply(plan))
        return answer(msgspec.structs.replace(said(change, desk), events=_events(change)))

    return await request.app[DOOR].lead(request, act)


def _events(change: Change) -> tuple[Event, ...]:
    return (*change.events, *(e for step in change.steps for e in step.events))


def _done(sentence: str, made: str = "") -> Callable[[Change, Desk], shapes.Done]:
    return lambda _change, _desk: shapes.Done(done=sentence, id=made)


async def _forget(request: web.Request) -> web.StreamResponse:
    asked, name = await _body(request, _asked), request.match_info["name"]
    plan = partial(operations.forget, machine=name, because=_because(asked), force=asked.force)
    return await _change(request, plan, _done(f"forgot {name}"))


async def _start_cycle(request: web.Request) -> web.StreamResponse:
    asked = await _body(request, _cycle_asked)
    plan = partial(
        operations_cycles.start_cycle,
        cycle_id=asked.id,
        selector=asked.selector,
        target=asked.target,
        failure_budget=asked.failure_budget,
        because=_because(asked),
        allow_empty=asked.allow_empty,
        waves=asked.waves,
        emergency=asked.emergency,
        skip_gates=asked.skip_gates,
    )
    return await _change(request, plan, _done(f"started cycle {asked.id}", asked.id))


_PAST = {"pause": "paused", "resume": "resumed", "cancel": "cancelled"}


async def _move_cycle(request: web.Request) -> web.StreamResponse:
    asked = await _body(request, _asked)
    cycle_id, verb = request.match_info["id"], request.match_info["verb"]
    plan = partial(operations_cycles.move_cycle, verb=verb, cycle_id=cycle_id, because=_because(asked))
    return await _change(request, plan, _done(f"{_PAST[verb]} cycle {cycle_id}", cycle_id))


async def _hold(request: web.Request) -> web.StreamResponse:
    asked = await _body(request, _asked)
    kind, name = request.match_info["kind"], request.match_info["name"]
    plan = partial(operations.hold, kind=kind, target=name, because=_because(asked))
    return await _change(request, plan, _done(f"held {kind} {name}", name))


async def _release(request: web.Request) -> web.StreamResponse:
    asked = await _body(request, _asked)
    kind, name = request.match_info["kind"], request.match_info["name"]
    plan = partial(operations.release, kind=kind, target=name, because=_because(asked))
    return await _change(request, plan, _done(f"released {kind} {name}", name))


async def _open_window(request: web.Request) -> web.StreamResponse:
    asked = await _body(request, _window_asked)
    plan = partial(
        operations.open_window,
        window_id=asked.id,
        start=asked.start,
        length=asked.duration,
        because=_because(asked),
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
    plan = partial(operations.close_window, window_id=window_id, because=_because(asked))
    return await _change(request, plan, _done(f"closed window {window_id}", window_id))


async def _halt(request: web.Request) -> web.StreamResponse:
    asked = await _body(request, _asked)
    said = _done("halted: nothing new goes out of service; machines that are out come back")
    return await _change(request, partial(operations.halt, because=_because(asked)), said)


async def _unhalt(request: web.Request) -> web.StreamResponse:
    asked = await _body(request, _asked)
    plan = partial(operations.unhalt, because=_because(asked))
    return await _change(request, plan, _done("ended the halt: machines may go out of service again"))


async def _unlock(request: web.Request) -> web.StreamResponse:
    asked, rack = await _body(request, _asked), request.match_info["rack"]
    plan = partial(operations.unlock_rack, rack=rack, because=_because(asked), force=asked.force)
    return await _change(request, plan, _done(f"unlocked rack {rack}", rack))


async def _clear(request: web.Request) -> web.StreamResponse:
    asked, name = await _body(request, _asked), request.match_info["name"]
    plan = partial(operations.clear_quarantine, machine=name, because=_because(asked))
    return await _change(request, plan, _done(f"cleared {name}: it has to prove itself again", name))


async def _policy_text(request: web.Request) -> str:
    body = await read(request, MAX_POLICY)
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput("body", f"byte {error.start}", "YAML text in UTF-8") from None


async def _diff_policy(request: web.Request) -> web.StreamResponse:
    query(request)
    text = await _policy_text(request)

    async def act(desk: Desk) -> web.StreamResponse:
        return answer(operations_policy.diff_policy(desk.snapshot(), text))

    return await request.app[DOOR].lead(request, act)


async def _apply_policy(request: web.Request) -> web.StreamResponse:
    # The body is the policy itself, so who and why come in the query.
    because = Because(**query(request, "by", "reason"))
    text = await _policy_text(request)

    async def act(desk: Desk) -> web.StreamResponse:
        diff = operations_policy.diff_policy(desk.snapshot(), text)
        because.checked()
        if desk.policy_text()[0] == text:
            return answer(shapes.PolicyApplied(done="the policy is this one already", diff=diff))
        change = await to_the_end(desk.apply(partial(operations_policy.apply_policy, text=text, because=because)))
        return answer(shapes.PolicyApplied(done="applied the policy", diff=diff, events=_events(change)))

    return await request.app[DOOR].lead(request, act)


def _because(asked: shapes.Asked | shapes.CycleAsked | shapes.WindowAsked) -> Because:
    return Because(by=asked.by, reason=asked.reason)

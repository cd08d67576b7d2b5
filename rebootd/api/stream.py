"""The event stream: newline-delimited JSON, from the leader's memory and then as it happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from rebootd.api.bodies import query
from rebootd.api.door import DOOR
from rebootd.api.route import NDJSON, Parameter, Route
from rebootd.core.errors import NotLeader
from rebootd.core.inputs import parse_choice, parse_count
from rebootd.core.model import Event

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from rebootd.coordinator.desk import Desk

DEPTH = 20_000
"""How many events back a request may look; a leader keeps fewer."""
BEAT = 15.0
"""Seconds after which an empty line tells a silent follower that the stream lives."""
HEADERS = {"Content-Type": NDJSON, "Cache-Control": "no-store"}

_encoder = msgspec.json.Encoder()


async def _events(request: web.Request) -> web.StreamResponse:
    asked = query(request, "limit", "follow", "machine", "cycle", "after")
    limit = parse_count(asked.get("limit", 100), "limit", maximum=DEPTH)
    after = parse_count(asked.get("after", 0), "after", maximum=2**53)
    follow = parse_choice(asked.get("follow", "0"), "follow", ("0", "1")) == "1"
    machine, cycle = asked.get("machine", ""), asked.get("cycle", "")

    def wanted(event: Event) -> bool:
        return event.seq > after and machine in {"", event.machine} and cycle in {"", event.cycle}

    async def act(desk: Desk) -> web.StreamResponse:
        recent = desk.recent(DEPTH)
        chosen = [e for e in recent if wanted(e)]
        lines = b"".join(_line(e) for e in chosen[len(chosen) - limit if limit < len(chosen) else 0 :])
        if not follow:
            return web.Response(body=lines, headers=HEADERS)
        last = recent[-1].seq if recent else 0
        response = web.StreamResponse(headers=HEADERS)
        await response.prepare(request)
        if lines:
            await response.write(lines)
        await _follow(response, desk.follow(DEPTH), lambda e: e.seq > last and wanted(e))
        return response

    return await request.app[DOOR].lead(request, act)


async def _follow(response: web.StreamResponse, events: AsyncIterator[Event], wanted: Callable[[Event], bool]) -> None:
    """Writes new events until the leader ends or the client leaves."""
    waiting: asyncio.Task[Event] | None = None
    try:
        while True:
            if waiting is None:
                waiting = asyncio.ensure_future(_next(events))
            done, _ = await asyncio.wait({waiting}, timeout=BEAT)
            if not done:
                await response.write(b"\n")
                continue
            event, waiting = waiting.result(), None
            if wanted(event):
                await response.write(_line(event))
    except (StopAsyncIteration, NotLeader, ConnectionError):
        # The stream ends with the leader; whoever follows asks again with the last seq as ``after``.
        return
    finally:
        if waiting is not None:
            waiting.cancel()
            await asyncio.wait({waiting})
        if isinstance(events, AsyncGenerator):
            await events.aclose()


async def _next(events: AsyncIterator[Event]) -> Event:
    return await anext(events)


def _line(event: Event) -> bytes:
    return _encoder.encode(event) + b"\n"


_TEXT = {"type": "string"}

ROUTES = (
    Route(
        method="GET",
        path="/v1/events",
        handler=_events,
        summary="The newest events, oldest first, one a line; with follow=1 it stays open (empty lines are beats)",
        role="viewer",
        query=(
            Parameter(
                name="limit", about="at most so many", schema={"type": "integer", "minimum": 0, "maximum": DEPTH}
            ),
            Parameter(
                name="follow", about="1: stay and hear of new ones", schema={"type": "string", "enum": ["0", "1"]}
            ),
            Parameter(name="machine", about="only this machine's", schema=_TEXT),
            Parameter(name="cycle", about="only this cycle's", schema=_TEXT),
            Parameter(
                name="after",
                about="only those with a greater seq",
                schema={"type": "integer", "minimum": 0, "maximum": 10**12 - 1},
            ),
        ),
        answer=Event,
        media=NDJSON,
    ),
)

"""What is said of one route: enough to serve it, to guard it, and to describe it (see table and openapi)."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from rebootd.core.wire import Problem

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

JSON = "application/json"
NDJSON = "application/x-ndjson"
YAML = "application/yaml"
TEXT = "text/plain"

_CHOICE = re.compile(r"\{(\w+):[^}]*\}")


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """One parameter of a query, or one header. ``schema`` is JSON Schema."""

    name: str
    about: str
    schema: Mapping[str, Any]


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one path.

    ``path`` is as aiohttp takes it. ``role`` is the least role that may ask (``""``: open to everybody); ``stricter``
    names fields of the body that ask for a higher one when they are given (``force`` -> ``admin``); ``bare`` says that
    a daemon without certificates serves it to everybody. ``body`` is the struct of a JSON body, or ``str`` for a YAML
    document, or None; ``optional`` says that it may be left out.
    ``answer`` is the struct of a 200, or ``str`` for text or None for any JSON object; ``media`` is its type, of which
    NDJSON has one ``answer`` a line. ``leader`` tells that only the leader answers. ``errors`` are the statuses beside
    those that follow from all this. ``headers`` are those that a request must have. Errors are a ``problem``, which
    ``wording`` makes of a status and a Problem where a protocol of others has a shape of its own.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    role: str = ""
    stricter: Mapping[str, str] = {}
    bare: bool = False
    query: tuple[Parameter, ...] = ()
    headers: tuple[Parameter, ...] = ()
    body: type | None = None
    optional: bool = False
    answer: Any = None
    media: str = JSON
    leader: bool = True
    errors: tuple[int, ...] = ()
    problem: type[msgspec.Struct] = Problem
    wording: Callable[[int, Problem], msgspec.Struct] | None = None

    @property
    def plain_path(self) -> str:
        """The path without the choices that its parameters have."""
        return _CHOICE.sub(r"{\1}", self.path)

    @property
    def statuses(self) -> tuple[int, ...]:
        """Every status that it can answer with; a 500 would be a mistake in rebootd."""
        # 400 also answers what is no HTTP at all, on every route.
        found = {200, 400, *self.errors}
        if self.role:
            # Who asks is nobody (401), may not (403), or cannot be told because Consul is away (503).
            found |= {401, 403, 503}
        if self.leader:
            found |= {307, 503}
        if self.body is not None:
            found |= {408, 413}
        return tuple(sorted(found))


def add(app: web.Application, routes: tuple[Route, ...]) -> None:
    """Serves the routes, in their order. A GET also takes HEAD, unless it is a stream."""
    for route in routes:
        if route.method == "GET":
            app.router.add_get(route.path, route.handler, allow_head=route.media != NDJSON)
        else:
            app.router.add_route(route.method, route.path, route.handler)

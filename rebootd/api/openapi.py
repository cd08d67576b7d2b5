"""The OpenAPI 3.1 document of a daemon, made from the route table and the structs that go over the wire.

``python -m rebootd.api.openapi`` prints it; docs/openapi.json holds a copy, ``GET /v1/openapi.json`` serves it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import msgspec

from rebootd import __version__
from rebootd.api.fleetlock import GROUP
from rebootd.api.route import JSON, YAML, Route
from rebootd.api.table import ROUTES
from rebootd.core.amounts import MAX_AMOUNT
from rebootd.core.inputs import MAX_DURATION, MAX_NAME, MAX_TOKEN
from rebootd.core.methods import METHODS
from rebootd.core.operations_cycles import MAX_CYCLE_ID
from rebootd.core.operations_inputs import MAX_REASON

REF = "#/components/schemas/{name}"
_ONE = re.compile(r"\{(\w+)(?::([^}]*))?\}")

_Rule = Mapping[str, object]

_NAME: _Rule = {"pattern": rf"^[A-Za-z0-9._-]{{1,{MAX_NAME}}}$", "description": "not dots alone"}
_TOKEN: _Rule = {"pattern": rf"^[A-Za-z0-9._:@/+=-]{{1,{MAX_TOKEN}}}$"}
_INDEX: _Rule = {"minimum": 0, "maximum": 2**53 - 1}
_WHO: Mapping[str, _Rule] = {
    "by": {"description": "one printable line of at most 128 characters; spaces around it do not count"},
    "reason": {"description": f"one printable line of at most {MAX_REASON} characters; spaces around it do not count"},
}
_POLICY = {"type": "object", "description": "the policy (docs/policy.md)"}
_SELECTOR: _Rule = {"minLength": 1, "description": "such as role=web, rack in (r1,r2); * for all (docs/policy.md)"}
_TARGET: _Rule = {"description": 'key=value, such as kernel=6.12.9, or ""'}

RULES: Mapping[str, Mapping[str, _Rule]] = {
    "Report": {
        "name": _NAME,
        "machine_id": _TOKEN,
        "boot_id": _TOKEN,
        "index": _INDEX,
        "wait": {"minimum": 0, "maximum": 3600},
    },
    "ClientParams": {"id": _TOKEN, "group": {"pattern": rf"^{GROUP}$"}},
    "LockProblem": {"kind": {"minLength": 1}, "value": {"minLength": 1}},
    "PermitRequest": {"name": _NAME, "nonce": _TOKEN, "epoch": _INDEX},
    "Asked": _WHO,
    "CycleAsked": {
        **_WHO,
        "id": {"pattern": rf"^[A-Za-z0-9._-]{{1,{MAX_CYCLE_ID}}}$", "description": "not dots alone"},
        "selector": _SELECTOR,
        "target": _TARGET,
        "failure_budget": {
            "anyOf": [
                {"type": "integer", "minimum": 0, "maximum": MAX_AMOUNT},
                {"type": "string", "pattern": r"^\s*([0-9]{1,7}|[0-9]{1,3}\s*%)\s*$", "description": "such as 5%"},
                {"type": "null", "description": "the policy's"},
            ]
        },
        "method": {"enum": ["", *METHODS]},
    },
    "PlanAsked": {"selector": _SELECTOR, "target": _TARGET},
    "WindowAsked": {
        **_WHO,
        "id": {"pattern": rf"^([A-Za-z0-9._-]{{1,{MAX_NAME}}})?$"},
        "duration": {
            "anyOf": [
                {"type": "number", "minimum": 1, "maximum": MAX_DURATION},
                {"type": "string", "description": "such as 90s or 2h30m"},
            ]
        },
        "start": {
            "anyOf": [
                {"type": "number", "description": "seconds since 1970, at most a year from now"},
                {"type": "string", "description": "now, or ISO 8601 with its timezone"},
                {"type": "null"},
            ]
        },
    },
}
"""What is asked of the fields of requests beyond their types."""

SECURITY: Mapping[str, _Rule] = {
    "token": {"type": "http", "scheme": "bearer", "description": "the shared token: everything is allowed"},
    "certificate": {"type": "mutualTLS", "description": "names a machine, or a person and a role"},
    "consul": {"type": "apiKey", "in": "header", "name": "X-Consul-Token", "description": "policies map to roles"},
}
"""How a caller shows who it is; which of them a daemon takes is how it was started (docs/security.md)."""

SAID: Mapping[int, tuple[str, Mapping[str, object]]] = {
    307: (
        "Another daemon leads: ask there",
        {"Location": {"required": True, "schema": {"type": "string", "format": "uri"}}},
    ),
    400: ("Bad input: field, value and accepted say what is wrong; nothing changed", {}),
    401: (
        "Who asks did not say who it is, or a page of another origin asks",
        {"WWW-Authenticate": {"schema": {"type": "string"}}},
    ),
    403: ("Who asks may not", {}),
    404: ("There is no such thing", {}),
    408: ("The body did not come in time", {}),
    409: ("Well-formed, but the present state forbids it", {}),
    413: ("The body is too large", {}),
    503: (
        "Nobody leads or the store cannot be used: nothing was done, unless the text says that it is not known",
        {"Retry-After": {"required": True, "schema": {"type": "string", "pattern": "^[0-9]+$"}}},
    ),
}
"""Each status but 200: what it means and its headers."""


def document() -> dict[str, Any]:
    """The document. Its schemas are those of the structs."""
    used = [k for r in ROUTES for k in (r.body, r.answer, r.problem)]
    kinds = dict.fromkeys(k for k in used if isinstance(k, type) and issubclass(k, msgspec.Struct))
    _, components = msgspec.json.schema_components(list(kinds), ref_template=REF)
    for name, rules in RULES.items():
        for field, rule in rules.items():
            components[name]["properties"][field].update(rule)
    paths: dict[str, Any] = {}
    for route in ROUTES:
        paths.setdefault(route.plain_path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {
            "title": "rebootd",
            "version": __version__,
            "description": "Reboots a fleet safely, one rack at a time. Times are seconds since 1970 on the leader's "
            "clock, durations are seconds. Any daemon takes any request and redirects to the leader. "
            "Answers may get new fields; requests of operators may not have unknown ones.",
        },
        "paths": paths,
        "components": {
            "schemas": dict(sorted(components.items())),
            "securitySchemes": SECURITY,
        },
    }


@cache
def rendered() -> bytes:
    """The document as JSON, laid out for people."""
    return msgspec.json.format(msgspec.json.encode(document()), indent=1) + b"\n"


def _operation(route: Route) -> dict[str, Any]:
    said: dict[str, Any] = {
        "summary": route.summary,
        "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{route.plain_path}").strip("_"),
        "responses": {str(status): _response(route, status) for status in route.statuses},
    }
    parameters = [_in_path(name, choices) for name, choices in _ONE.findall(route.path)]
    parameters += [
        {"name": p.name, "in": "query", "description": p.about, "schema": dict(p.schema)} for p in route.query
    ]
    parameters += [
        {"name": p.name, "in": "header", "required": True, "description": p.about, "schema": dict(p.schema)}
        for p in route.headers
    ]
    if parameters:
        said["parameters"] = parameters
    if route.body is not None:
        media = YAML if route.body is str else JSON
        schema = _POLICY if route.body is str else _schema(route.body)
        said["requestBody"] = {"required": not route.optional, "content": {media: {"schema": schema}}}
    if route.role:
        said["security"] = [*({name: []} for name in SECURITY), *([{}] if route.bare else [])]
        said["x-role"] = route.role
        if route.stricter:
            said["x-role-for-field"] = dict(route.stricter)
    return said


def _in_path(name: str, choices: str) -> dict[str, Any]:
    schema = {"type": "string", "enum": choices.split("|")} if choices else {"type": "string", **_NAME}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _response(route: Route, status: int) -> dict[str, Any]:
    if status == 200:
        return {"description": "Done", "content": {route.media: {"schema": _schema(route.answer)}}}
    description, headers = SAID[status]
    response: dict[str, Any] = {"description": description}
    if headers:
        response["headers"] = headers
    if status != 307:
        response["content"] = {JSON: {"schema": _schema(route.problem)}}
    return response


def _schema(kind: Any) -> dict[str, Any]:
    if kind is None:
        return {"type": "object"}
    if kind is str:
        return {"type": "string"}
    return {"$ref": REF.format(name=kind.__name__)}


if __name__ == "__main__":
    print(rendered().decode(), end="")  # noqa: T201  run as a module it prints what docs/openapi.json holds

"""What schemathesis must know of our formats, and what a schema cannot say (see test_openapi)."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any

import schemathesis

from tests.support.service import CLIENT

if TYPE_CHECKING:
    from schemathesis import Case, DeserializationContext, HookContext, Response

GOOD: dict[str, list[str]] = {
    "selector": ["*", "role=web", "rack in (r1, r2), name!=r1m*", "!canary", "label.state", "kernel notin (6.1*)"],
    "target": ["", "kernel=6.12.9", "kernel=6.*"],
    "by": ["", "alice", "Zo\u00eb \u5927 (on call)"],
    "reason": ["", "a disk", "x" * 500],
    "duration": ["90s", "2h30m", "1d"],
    "start": ["", "now"],
    "failure_budget": ["0", "5%", " 100 % "],
}
"""Texts whose grammar no schema says: of these one stands for each that is meant to be right."""


@schemathesis.deserializer("application/x-ndjson")
def first_line(_context: DeserializationContext, response: Response) -> Any:
    """The document describes one line."""
    lines = [line for line in response.content.split(b"\n") if line]
    for line in lines[1:]:
        json.loads(line)
    return json.loads(lines[0]) if lines else {"seq": 0, "time": 0, "kind": ""}  # none is right too, and has no shape


@schemathesis.hook
def before_call(_context: HookContext, case: Case[Any], _kwargs: dict[str, Any]) -> None:
    """Nobody waits long; and what is meant to be right is right also where that hangs on other fields or the state."""
    query = case.query
    body: Any = case.body
    if query and str(query.get("follow")) == "1":
        query["follow"] = "0"  # the stream would not end by itself
    if query and case.meta is not None and case.meta.generation.mode is schemathesis.GenerationMode.POSITIVE:
        _choose(query)
    if not isinstance(body, dict):
        return
    wait = body.get("wait")
    if isinstance(wait, (int, float)) and wait > 0.05:
        body["wait"] = 0.05
    if case.meta is None or case.meta.generation.mode is not schemathesis.GenerationMode.POSITIVE:
        return
    _mend(body, case)


def _mend(body: dict[str, Any], case: Case[Any]) -> None:
    _choose(body)
    for name in ("epoch", "index", "failure_budget"):
        if isinstance(body.get(name), float):
            body[name] = int(body[name])  # 5.0 is an integer to JSON Schema, and not to us
    if isinstance(body.get("client_params"), dict):
        body["client_params"]["id"] = CLIENT
    if "boot_id" in body and case.path_parameters:
        body["name"] = case.path_parameters["name"]
    if "selector" in body:
        body |= {"emergency": False, "skip_gates": []} | ({"allow_empty": True} if "id" in body else {"selector": "*"})
    if body.get("method") == "soft-reboot" and "target" in body:
        body["target"] = ""  # the kernel stays
    if isinstance(body.get("start"), (int, float)):
        body["start"] = None
    if case.path.startswith("/v1/policy"):
        body.clear()
        body |= {"soak": "10m", "fleetlock": {"enabled": True}}


def _choose(values: dict[str, Any]) -> None:
    for name, good in GOOD.items():
        if isinstance(values.get(name), str):
            values[name] = good[zlib.crc32(values[name].encode("utf-8", "surrogatepass")) % len(good)]

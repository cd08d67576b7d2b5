"""What schemathesis must know of our formats, and what a schema cannot say (see test_openapi)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import schemathesis
from hypothesis import strategies as st

if TYPE_CHECKING:
    from schemathesis import Case, DeserializationContext, HookContext, Response

keys = st.sampled_from(["name", "rack", "kernel", "role", "label.state"])
words = st.from_regex(r"[a-z0-9*?.-]{1,8}", fullmatch=True)
terms = st.just("*") | st.builds("{}{}{}".format, keys, st.sampled_from(["=", "!="]), words)

schemathesis.openapi.format("selector", st.lists(terms, min_size=1, max_size=3).map(",".join))
schemathesis.openapi.format("target", st.just("") | st.from_regex(r"kernel=[0-9.]{1,6}[0-9]", fullmatch=True))
schemathesis.openapi.format("line", st.from_regex(r"[ -~]{0,60}", fullmatch=True))
schemathesis.openapi.format("span", st.from_regex(r"[1-9][0-9]?(s|m|h|h30m|d)", fullmatch=True))
schemathesis.openapi.format("moment", st.sampled_from(["", "now"]))


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
    if not isinstance(body, dict):
        return
    wait = body.get("wait")
    if isinstance(wait, (int, float)) and wait > 0.05:
        body["wait"] = 0.05
    meant_well = case.meta is not None and case.meta.generation.mode is schemathesis.GenerationMode.POSITIVE
    if not meant_well:
        return
    for name in ("epoch", "index", "failure_budget"):
        if isinstance(body.get(name), float):
            body[name] = int(body[name])  # 5.0 is an integer to JSON Schema, and not to us
    if isinstance(body.get("failure_budget"), str):
        body["failure_budget"] = "5%"
    if "boot_id" in body and case.path_parameters:
        body["name"] = case.path_parameters["name"]
    if "selector" in body:
        body |= {"emergency": False, "skip_gates": []} | ({"allow_empty": True} if "id" in body else {"selector": "*"})
    if isinstance(body.get("start"), (int, float)):
        body["start"] = None
    if case.path.startswith("/v1/policy"):
        body.clear()
        body["soak"] = "10m"

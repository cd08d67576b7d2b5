from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from rebootd.api.openapi import rendered
from rebootd.api.route import NDJSON, Route
from rebootd.api.table import ROUTES
from tests.api.fake_desk import FakeOffice
from tests.api.server import running
from tests.support.service import CLIENT, MACHINES, TOKEN, Service, service

if TYPE_CHECKING:
    from tests.api.server import Api
    from tests.support.cluster import Agent

ROOT = Path(__file__).parents[2]
COPY = ROOT / "docs" / "openapi.json"
COMMAND = "python -m rebootd.api.openapi"
FILLED = {"name": "r1m1", "id": "k1", "rack": "r1", "kind": "machine", "verb": "pause"}
SAID = {
    "report": {"name": "r1m1", "machine_id": "id-r1m1", "boot_id": "boot-r1m1"},
    "permit": {"name": "r1m1", "machine_id": "id-r1m1", "boot_id": "boot-r1m1", "nonce": "n"},
    "pre-reboot": {"client_params": {"id": "r1m1", "group": "default"}},
    "steady-state": {"client_params": {"id": "r1m1", "group": "default"}},
}


def path_of(route: Route) -> str:
    return route.plain_path.format(**FILLED)


def said(answer: Any) -> str:
    """What an error says: FleetLock's have a shape of their own."""
    text = answer["error"] if "error" in answer else answer["value"]
    assert isinstance(text, str)
    return text


def label(route: Route) -> str:
    return f"{route.method} {route.plain_path}"


every = pytest.mark.parametrize("route", ROUTES, ids=label)
leaders = pytest.mark.parametrize("route", [r for r in ROUTES if r.leader], ids=label)


# ---------------------------------------------------------------------------------------------------- the document


def test_the_copy_in_the_docs_is_the_document() -> None:
    assert COPY.read_bytes() == rendered(), f"put the output of `{COMMAND}` into docs/openapi.json"


def test_the_command_that_the_message_names_prints_it() -> None:
    command = [sys.executable, *COMMAND.split()[1:]]
    assert subprocess.run(command, capture_output=True, check=True, timeout=60).stdout == rendered()


async def test_it_is_served(api: Api) -> None:
    async with api.client.get(f"{api.url}/v1/openapi.json") as answer:
        assert (answer.status, answer.content_type) == (200, "application/json")
        assert await answer.read() == rendered()


def test_every_reference_leads_somewhere_and_no_schema_is_left_over() -> None:
    document = msgspec.json.decode(rendered())
    used: set[str] = set()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            used.update({value["$ref"]} if isinstance(value.get("$ref"), str) else ())
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk(document)
    assert used == {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}


def test_every_route_is_in_the_page_of_the_api() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    told = [f"{r.method} {path}" for r in ROUTES for path in spelled_out(r.path)]
    assert [t for t in told if not any(f"`{t}{end}" in page for end in ("`", "?"))] == []


def spelled_out(path: str) -> list[str]:
    """``/{verb:pause|resume}`` is two paths."""
    chosen = re.search(r"\{\w+:([^}]*)\}", path)
    return [path.replace(chosen[0], c) for c in chosen[1].split("|")] if chosen else [path]


# ----------------------------------------------------------------------------------------------------- every route


@every
async def test_it_is_refused_without_the_token_unless_it_is_open(route: Route) -> None:
    async with running(token=TOKEN) as api, api.client.request(route.method, api.url + path_of(route)) as answer:
        guarded = bool(route.role) and not route.bare
        assert (answer.status == 401) is guarded
        assert not guarded or said(msgspec.json.decode(await answer.read()))


@leaders
async def test_a_daemon_that_does_not_lead_says_where(route: Route) -> None:
    async with running(FakeOffice(elsewhere="http://other:1")) as api:
        body: Any = SAID.get(path_of(route).rpartition("/")[2]) or _body_of(route)
        data = msgspec.json.encode(body) if not isinstance(body, bytes) else body
        async with api.client.request(
            route.method,
            api.url + path_of(route),
            data=data,
            headers={h.name: h.schema["enum"][0] for h in route.headers},
            allow_redirects=False,
        ) as answer:
            assert answer.status == 307
            assert answer.headers["Location"] == f"http://other:1{path_of(route)}"


def _body_of(route: Route) -> object:
    if route.body is None or not issubclass(route.body, msgspec.Struct):
        return b""
    said = {"id": "k1", "selector": "*", "duration": "1h"}
    return {k: v for k, v in said.items() if k in route.body.__struct_fields__}


@every
async def test_it_knows_its_own_parameters_and_no_others(route: Route, api: Api) -> None:
    if not route.role or route.bare:
        pytest.skip("open to everybody, whatever they append")
    status, answer = await api.ask(route.method, f"{path_of(route)}?colour=red")
    known = "a known parameter: " + (", ".join(p.name for p in route.query) or "none")
    if route.wording is not None:
        assert (status, answer["kind"]) == (400, "bad-input")
        assert said(answer) == f"colour: 'red' is not accepted; expected {known}"
        return
    assert (status, answer["field"], answer["accepted"]) == (400, "colour", known)


async def test_no_body_may_be_larger_than_it_says(api: Api) -> None:
    for route in ROUTES:
        if route.body is not None:
            status, answer = await api.ask(route.method, path_of(route), b" " * (256 * 1024 + 1))
            assert (status, "too large" in said(answer)) == (413, True), label(route)


# ---------------------------------------------------------------------------------------------------- schemathesis


def explore(served: Service, folder: Path, *arguments: str) -> None:
    """Lets schemathesis look for answers that the document does not tell of."""
    for name in sorted(MACHINES.keys() - {CLIENT}):
        served.join(name)
    served.ask("PUT", "/v1/policy", {"fleetlock": {"enabled": True}})
    served.ask("POST", "/v1/cycles", {"id": "k1", "selector": "*"})
    served.ask("PUT", "/v1/holds/machine/r2m1", {"reason": "a disk"})
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", str(COPY), "--url", served.url]
    command += ["-H", f"Authorization: Bearer {TOKEN}", "--generation-database", "none", "--continue-on-failure"]
    environ = os.environ | {"SCHEMATHESIS_HOOKS": "tests.api.schemathesis_hooks", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--no-color", "--warnings", "off", *arguments],
        cwd=folder,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:]
    assert f"Tested: {len(ROUTES)}" in done.stdout, done.stdout[-3000:]
    assert served.ask("GET", "/v1/status")["daemon"]["leading"] is True
    # Not every request of a FleetLock client was refused at the door: one machine has become one.
    assert served.ask("GET", f"/v1/machines/{CLIENT}")["record"]["fleetlock"]["id"] == CLIENT
    assert "Traceback" not in served.log.read_text()


@pytest.mark.timeout(400)
def test_a_daemon_answers_as_documented(tmp_path: Path) -> None:
    with service(tmp_path) as served:
        explore(served, tmp_path, "--phases", "coverage", "--seed", "1")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_daemon_answers_as_documented_for_long(tmp_path: Path) -> None:
    with service(tmp_path) as served:
        explore(served, tmp_path, "--phases", "coverage,fuzzing,stateful", "--max-examples", "80")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_daemon_on_consul_answers_as_documented(tmp_path: Path, dev_consul: Agent, prefix: str) -> None:
    for name, rack in MACHINES.items():
        node = {"Node": name, "Address": "127.0.0.1", "NodeMeta": {"rack": rack}}
        dev_consul.ask("/v1/catalog/register", "PUT", msgspec.json.encode(node))
    arguments = ("--consul", dev_consul.url, "--prefix", prefix, "--service", prefix.rstrip("/"))
    try:
        with service(tmp_path, *arguments) as served:
            explore(served, tmp_path, "--phases", "coverage,fuzzing", "--max-examples", "20")
    finally:
        for name in MACHINES:
            dev_consul.ask("/v1/catalog/deregister", "PUT", msgspec.json.encode({"Node": name}))


def test_the_event_stream_is_the_only_one_that_stays_open() -> None:
    assert [r.path for r in ROUTES if r.media == NDJSON] == ["/v1/events"]

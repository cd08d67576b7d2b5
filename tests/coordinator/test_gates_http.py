"""Gates that ask others than Consul: a real Prometheus, a real Alertmanager, a stand-in for Nomad's servers."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from rebootd.coordinator.gates.sight import Eyes
from rebootd.core.errors import RebootdError
from rebootd.core.gates import Firing, Samples, Servers
from rebootd.core.policy_gates import Comparison, Gate, NoAlerts, NomadQuorum, PrometheusQuery, parse_matchers
from tests.support.cluster import wait_for
from tests.support.programs import alertmanager, ask, prometheus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from rebootd.core.gates import Value
    from rebootd.core.policy_gates import Test


async def read(test: Test, addresses: dict[str, str] | None = None) -> Value:
    eyes = Eyes(None)
    try:
        return await eyes.read(Gate(name="g", test=test), addresses or {})
    finally:
        await eyes.close()


# -------------------------------------------------------------------------------------------------- Prometheus


@pytest.fixture(scope="module")
def prom(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with prometheus(tmp_path_factory.mktemp("prometheus")) as url:
        yield url


def query(address: str, text: str, **facts: Any) -> PrometheusQuery:
    return PrometheusQuery(address=address, query=text, holds_when=Comparison("<", 5), **facts)


@pytest.mark.parametrize(
    ("text", "series"),
    [
        ("vector(3)", [("", 3.0)]),
        ("3", [("", 3.0)]),
        ("no_such_metric", []),
        ("vector(1) / 0", [("", float("inf"))]),
        (
            'label_replace(vector(1), "a", "b", "", "") or label_replace(vector(9), "a", "c", "", "")',
            [('{a="b"}', 1.0), ('{a="c"}', 9.0)],
        ),
    ],
)
async def test_prometheus_answers_with_series(prom: str, text: str, series: list[tuple[str, float]]) -> None:
    value = await read(query(prom, text))
    assert isinstance(value, Samples)
    assert sorted(value.series) == series


@pytest.mark.parametrize(
    ("text", "said"), [("sum(", "refuses the query"), ("up[5m]", "a matrix"), ('"text"', "a string")]
)
async def test_what_prometheus_cannot_say_is_an_error(prom: str, text: str, said: str) -> None:
    with pytest.raises(RebootdError, match=said):
        await read(query(prom, text))


async def test_a_token_goes_to_its_own_address_and_is_read_anew(tmp_path: Path) -> None:
    answers = {"/api/v1/query": {"status": "success", "data": {"resultType": "scalar", "result": [1, "3"]}}}
    shown: list[str] = []
    async with standing_in(answers, shown=shown) as url:
        eyes, gate = Eyes(None, tmp_path), Gate(name="g", test=query(url, "x"))
        token = tmp_path / url.removeprefix("http://")
        (tmp_path / "127.0.0.1:9").write_text("of another")
        await eyes.read(gate, {})
        token.write_text("secret\n")
        await eyes.read(gate, {})
        token.write_text("\n")
        with pytest.raises(RebootdError, match="holds no token"):
            await eyes.read(gate, {})
        await eyes.close()
    assert shown == ["", "Bearer secret"]


# ------------------------------------------------------------------------------------------------ Alertmanager


def test_alerts_that_fire_and_match(tmp_path: Path) -> None:
    import asyncio

    def firing(address: str, matchers: str) -> tuple[str, ...]:
        value = asyncio.run(read(NoAlerts(address=address, matchers=parse_matchers(matchers, "m"))))
        assert isinstance(value, Firing)
        return value.alerts

    with alertmanager(tmp_path) as url:
        assert firing(url, 'severity="page"') == ()
        alerts = [
            {"labels": {"alertname": "DiskFull", "severity": "page", "team": "sys", "instance": "m1"}},
            {"labels": {"alertname": "Slow", "severity": "low", "team": "net"}},
        ]
        ask(f"{url}/api/v2/alerts", alerts)
        wait_for(lambda: len(firing(url, 'alertname=~".+"')) == 2, "both alerts to fire")
        assert firing(url, 'severity="page"') == ("DiskFull (instance=m1, severity=page)",)
        assert firing(url, 'severity="page", team=~"net|web"') == ()
        assert firing(url, 'severity!="page"') == ("Slow (severity=low)",)
        # A silenced alert does not count,
        now = time.time()
        silence = {
            "matchers": [{"name": "alertname", "value": "DiskFull", "isRegex": False}],
            "startsAt": _time(now - 5),
            "endsAt": _time(now + 600),
            "createdBy": "test",
            "comment": "test",
        }
        ask(f"{url}/api/v2/silences", silence)
        wait_for(lambda: firing(url, 'severity="page"') == (), "the silence to hold")
        # nor does an inhibited one.
        ask(f"{url}/api/v2/alerts", [{"labels": {"alertname": "Outage"}}])
        wait_for(lambda: firing(url, 'severity="low"') == (), "the inhibition to hold")


def _time(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


# ------------------------------------------------------------------------------------- Nomad, and bad manners


@asynccontextmanager
async def standing_in(answers: dict[str, Any], status: int = 200, shown: list[str] | None = None) -> AsyncIterator[str]:
    """A server that answers each path with what is given: JSON, or bytes as they are; None is refused."""

    async def handle(request: web.Request) -> web.StreamResponse:
        if shown is not None:
            shown.append(request.headers.get("Authorization", ""))
        if request.path not in answers:
            return web.Response(status=404, text="no such path")
        answer = answers[request.path]
        if answer is None:
            return web.Response(status=403, text="Permission denied")
        code = status if request.path.endswith("health") else 200
        if isinstance(answer, bytes):
            return web.Response(body=answer)
        return web.json_response(answer, status=code)

    app = web.Application()
    app.router.add_get("/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


RAFT, HEALTH = "/v1/operator/raft/configuration", "/v1/operator/autopilot/health"


def nomad(*ill: str, lost: str = "") -> dict[str, Any]:
    """What three Nomad servers say; shapes as in Nomad's documentation of its operator API."""
    names = ["s1", "s2", "s3"]
    raft = [
        {
            "Address": f"10.0.0.{n[1]}:4647",
            "ID": f"id-{n}",
            "Leader": n == "s1",
            "Node": f"{n}.global",
            "RaftProtocol": 3,
            "Voter": True,
        }
        for n in names
    ]
    servers = [
        {
            "Address": f"10.0.0.{n[1]}:4647",
            "Healthy": n not in ill,
            "ID": f"id-{n}",
            "LastContact": "20ms",
            "LastIndex": 8,
            "LastTerm": 2,
            "Leader": n == "s1",
            "Name": f"{n}.global",
            "SerfStatus": "alive",
            "StableSince": "2026-01-01T00:00:00Z",
            "Version": "1.9.0",
            "Voter": True,
        }
        for n in names
        if n != lost
    ]
    return {
        RAFT: {"Index": 1, "Servers": raft},
        HEALTH: {"FailureTolerance": 0 if ill else 1, "Healthy": not ill, "Servers": servers},
    }


async def test_nomads_servers_are_machines_by_name_or_address() -> None:
    async with standing_in(nomad()) as url:
        value = await read(NomadQuorum(address=url), {"10.0.0.1": "s1", "10.0.0.2": "rack2-host7"})
    assert value == Servers(members={"s1": "", "rack2-host7": "", "s3": ""}, tolerance=1)


async def test_nomads_servers_that_are_not_well_say_why() -> None:
    async with standing_in(nomad("s2", lost="s3"), status=429) as url:
        value = await read(NomadQuorum(address=url))
    assert isinstance(value, Servers)
    assert value.members["s1"] == ""
    assert "not healthy" in value.members["s2"]
    assert "does not know" in value.members["s3"]


async def test_nomads_autopilot_stands_in_for_raft_that_only_management_tokens_may_read() -> None:
    async with standing_in({**nomad("s2"), RAFT: None}, status=429) as url:
        value = await read(NomadQuorum(address=url))
    assert isinstance(value, Servers)
    assert (value.members["s1"], value.members["s3"], value.tolerance) == ("", "", 0)
    assert "not healthy" in value.members["s2"]


async def test_without_any_right_nomads_servers_are_unknown() -> None:
    async with standing_in({RAFT: None, HEALTH: None}) as url:
        with pytest.raises(RebootdError, match="Permission denied"):
            await read(NomadQuorum(address=url))


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({}, "404"),
        ({RAFT: b"<html>"}, "cannot be read"),
        ({RAFT: {"Servers": []}, HEALTH: nomad()[HEALTH]}, "no servers"),
        ({RAFT: nomad()[RAFT], HEALTH: {"Healthy": "yes"}}, "cannot be read"),
    ],
)
async def test_answers_that_make_no_sense_are_errors(answers: dict[str, Any], said: str) -> None:
    async with standing_in(answers) as url:
        with pytest.raises(RebootdError, match=said):
            await read(NomadQuorum(address=url))


async def test_nobody_there_is_an_error() -> None:
    with pytest.raises(RebootdError):
        await read(query("http://127.0.0.1:9", "up"))
    with pytest.raises(RebootdError, match="no Consul"):
        await Eyes(None).failing(0, 1)


@pytest.mark.parametrize(
    "body",
    [
        {"status": "success", "warnings": ["partial"], "data": {"resultType": "vector", "result": []}},
        {"status": "success", "data": {"resultType": "vector", "result": [{"metric": {}, "value": [1, "x"]}]}},
        {"status": "success", "data": {"resultType": "vector", "result": [{"metric": 7}]}},
        {"status": "success"},
        {"status": "error", "error": "overload"},
        [],
    ],
)
async def test_a_partial_or_broken_answer_is_no_reading(body: Any) -> None:
    async with standing_in({"/api/v1/query": body}) as url:
        with pytest.raises(RebootdError):
            await read(query(url, "up"))

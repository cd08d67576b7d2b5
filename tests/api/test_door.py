from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import aiohttp
import msgspec
import pytest

from rebootd.core.errors import Conflict, Denied, OutcomeUnknown, Unreachable
from tests.api.fake_desk import FakeDesk, FakeOffice, fleet, report_of
from tests.api.server import Api, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TOKEN = "correct-horse"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


async def test_everything_but_health_and_metrics_asks_for_the_token() -> None:
    async with running(token=TOKEN) as api:
        for path in ("/v1/status", "/v1/machines/r1m1/report", "/nowhere", "/healthz/x"):
            for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Authorization": "ü"}):
                status, problem = await api.ask("POST" if "report" in path else "GET", path, **header)
                assert status == 401, (path, header)
                assert TOKEN not in str(problem)
        assert (await api.ask("GET", "/v1/status", **BEARER))[0] == 200
        assert (await api.ask("GET", "/healthz"))[0] == 200
        async with api.client.get(f"{api.url}/metrics") as response:
            assert (response.status, await response.text()) == (200, "rebootd_up 1\n")


async def test_unknown_routes_and_methods_are_problems(api: Api) -> None:
    for path in ("/", "/v2/status", "/v1/status/", "/v1/machines/r1m1/reboot"):
        status, problem = await api.ask("GET", path)
        assert (status, problem["error"].startswith("no such route")) == (404, True)
    async with api.client.request("DELETE", f"{api.url}/v1/status") as response:
        assert (response.status, response.headers["Allow"]) == (405, "GET,HEAD")
    assert (await api.ask("GET", "/v1/machines/r1m1/report"))[0] == 405


async def test_pages_of_other_sites_cannot_change_anything(api: Api) -> None:
    assert (await api.ask("PUT", "/v1/halt", Origin="http://evil.example"))[0] == 401
    assert api.desk.state.halt is None
    assert (await api.ask("PUT", "/v1/halt", Origin=api.url))[0] == 200


async def test_a_follower_redirects_and_passes_no_credentials_on() -> None:
    office = FakeOffice(elsewhere="http://10.0.0.9:8473/")
    async with running(office, token=TOKEN) as api:
        body = report_of(fleet()[0])
        asked = {
            "GET": ["/v1/status", "/v1/machines?rack=r%2B1&state=held", "/v1/events?follow=1"],
            "POST": ["/v1/machines/r1m1/report", "/v1/policy/diff"],
            "PUT": ["/v1/halt", "/v1/policy?by=ann"],
        }
        for method, paths in asked.items():
            for path in paths:
                data = msgspec.json.encode(body) if "report" in path else None
                async with api.client.request(
                    method,
                    api.url + path,
                    data=data,
                    headers=BEARER,
                    allow_redirects=False,
                ) as response:
                    assert response.status == 307
                    assert response.headers["Location"] == f"http://10.0.0.9:8473{path}"
                    assert TOKEN not in str(response.headers)
                    assert not await response.read()
        assert (await api.ask("GET", "/v1/status"))[0] == 401


async def test_requests_are_parked_until_somebody_leads() -> None:
    office = FakeOffice()
    async with running(office) as api:
        asked = [asyncio.create_task(api.ask("GET", "/v1/status")) for _ in range(20)]
        body = report_of(fleet()[0], wait=30.0)
        asked.append(asyncio.create_task(api.ask("POST", "/v1/machines/r1m1/report", body)))
        await asyncio.sleep(0.1)
        assert not any(t.done() for t in asked)
        office.elect(FakeDesk(fleet()))
        assert {status for status, _ in await asyncio.gather(*asked)} == {200}
        await api.desk.end()
        late = asyncio.create_task(api.ask("GET", "/v1/status"))
        await asyncio.sleep(0.05)
        office.elect(elsewhere="http://other:1")
        assert (await late)[0] == 307


async def test_without_a_leader_a_report_is_parked_no_longer_than_its_wait() -> None:
    async with running(FakeOffice()) as api:
        for wait in (0.0, 0.3):
            begun = time.monotonic()
            body = report_of(fleet()[0], wait=wait)
            async with api.client.post(
                f"{api.url}/v1/machines/r1m1/report", data=msgspec.json.encode(body)
            ) as response:
                assert (response.status, response.headers["Retry-After"]) == (503, "1")
            assert wait <= time.monotonic() - begun < wait + 0.5


async def test_a_leader_that_ends_while_agents_wait_sends_them_on(api: Api) -> None:
    machine = api.desk.state.machines["r1m1"]
    waiting = [
        asyncio.create_task(
            api.ask("POST", "/v1/machines/r1m1/report", report_of(machine, index=machine.version, wait=30.0))
        )
        for _ in range(5)
    ]
    await asyncio.sleep(0.1)
    api.office.elsewhere = "http://next:8473"
    await api.desk.end()
    assert {status for status, _ in await asyncio.wait_for(asyncio.gather(*waiting), 5)} == {307}


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OutcomeUnknown("timeout"), "may still be"),
        (Denied("token"), "permission"),
        (Unreachable("refused"), "store cannot be used"),
        (Conflict(()), "store cannot be used"),
    ],
)
async def test_what_the_store_says_becomes_503(api: Api, error: Exception, words: str) -> None:
    api.desk.error = error
    status, problem = await api.ask("PUT", "/v1/halt", {"reason": "x"})
    assert status == 503
    assert words in problem["error"]


async def test_a_mistake_of_ours_is_a_500_without_details(api: Api) -> None:
    api.desk.error = ZeroDivisionError("secret detail")
    status, problem = await api.ask("PUT", "/v1/halt")
    assert status == 500
    assert "secret" not in str(problem)
    api.desk.error = None
    assert (await api.ask("PUT", "/v1/halt"))[0] == 200


async def test_a_change_goes_on_when_its_client_hangs_up(api: Api) -> None:
    api.desk.slow = 0.2
    with pytest.raises(TimeoutError):
        async with api.client.put(f"{api.url}/v1/halt", timeout=aiohttp.ClientTimeout(total=0.05)):
            pass
    async with asyncio.timeout(5):
        while api.desk.state.halt is None:
            await asyncio.sleep(0.02)


async def test_bodies_have_limits_of_size_and_time(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await api.ask("POST", "/v1/machines/r1m1/report", b"x" * (64 * 1024 + 1)))[0] == 413
    assert (await api.ask("POST", "/v1/cycles", b"x" * (300 * 1024)))[0] == 413

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 8192

    async with api.client.put(f"{api.url}/v1/halt", data=endless()) as response:
        assert response.status == 413

    monkeypatch.setattr("rebootd.api.bodies.BODY_TIME", 0.2)
    port = api.serving.port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"PUT /v1/halt HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
    line = await asyncio.wait_for(reader.readline(), 5)
    assert b"408" in line
    writer.close()
    assert api.desk.state.halt is None


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b"\xff", b'{"a":', b"[" * 5000, b'{"id":"\\ud800"}', b"1e999"])
async def test_what_is_no_json_object_is_bad_input(api: Api, body: bytes) -> None:
    for method, path in (("POST", "/v1/cycles"), ("PUT", "/v1/halt"), ("POST", "/v1/machines/r1m1/report")):
        assert (await api.bad(method, path, body))[0] == 400


async def test_stopping_ends_waiting_requests_quickly() -> None:
    async with running() as api:
        machine = api.desk.state.machines["r1m1"]
        body = report_of(machine, index=machine.version, wait=30.0)
        waiting = [asyncio.create_task(api.ask("POST", "/v1/machines/r1m1/report", body)) for _ in range(10)]
        follow = asyncio.create_task(api.ask("GET", "/v1/events?follow=1"))
        await asyncio.sleep(0.1)
        begun = time.monotonic()
        await api.serving.close()
        assert time.monotonic() - begun < 1.0
        await asyncio.gather(*waiting, follow, return_exceptions=True)

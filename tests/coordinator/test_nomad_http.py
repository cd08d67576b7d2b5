"""What is said to Nomad's HTTP API, and what its answers and silences come to."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from aiohttp import web

from rebootd.coordinator.drains.nomad_api import Nomad
from rebootd.coordinator.drains.nomad_http import NomadHttp, NomadSettings
from rebootd.core.errors import Denied, InvalidInput, OutcomeUnknown, Refused, Unreachable
from rebootd.core.nomad import NomadAlloc, NomadClient, NomadDrain, NomadService
from tests.support.cluster import free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

STUB = {
    "ID": "n1",
    "Name": "w1",
    "Status": "ready",
    "SchedulingEligibility": "ineligible",
    "Datacenter": "dc1",
    "Drain": True,
    "LastDrain": {"Status": "draining", "Meta": {"rebootd": "rebootd/w1/7", "rebootd-was": "eligible"}},
    "ModifyIndex": 12,
}
CLIENT = NomadClient(
    id="n1",
    name="w1",
    status="ready",
    datacenter="dc1",
    eligible=False,
    draining=True,
    drain="draining",
    mark="rebootd/w1/7",
    was="eligible",
    index=12,
)
DRAIN = NomadDrain(node="n1", mark="rebootd/w1/7", since=1.0, eligible=True, deadline=90, keep_system=True)


class Fake:
    """Answers what ``say`` returns (a status and a JSON value, or None: nothing at all) and keeps what was asked."""

    def __init__(self, say: Callable[[web.Request], tuple[int, Any] | None]) -> None:
        self.say = say
        self.asked: list[tuple[str, str, dict[str, str], Any]] = []
        self.next = ""

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        headers = {k: v for k, v in request.headers.items() if k.startswith("X-Nomad")}
        self.asked.append((request.method, request.raw_path, headers, msgspec.json.decode(body) if body else None))
        said = self.say(request)
        if said is None:
            assert request.transport is not None
            request.transport.close()
            await asyncio.sleep(0)
            return web.Response()
        following, self.next = self.next, ""
        answer = web.Response(status=said[0], body=msgspec.json.encode(said[1]))
        if following:
            answer.headers["X-Nomad-NextToken"] = following
        return answer


@asynccontextmanager
async def spoken(
    say: Callable[[web.Request], tuple[int, Any] | None], *, socket: Path | None = None, **settings: Any
) -> AsyncIterator[tuple[Nomad, Fake]]:
    fake = Fake(say)
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", fake.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    (port,) = free_ports(1)
    site = web.UnixSite(runner, str(socket)) if socket is not None else web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    address = f"unix://{socket}" if socket is not None else f"http://127.0.0.1:{port}"
    nomad = Nomad(NomadHttp(NomadSettings(address=address, **settings)))
    try:
        yield nomad, fake
    finally:
        await nomad.close()
        await runner.cleanup()


async def test_clients_are_read_page_by_page() -> None:
    async with spoken(lambda _: (200, [STUB])) as (nomad, fake):
        fake.next = "n2"
        assert await nomad.clients() == [CLIENT, CLIENT]
        paths = [path for _, path, _, _ in fake.asked]
        assert paths == ["/v1/nodes?per_page=500", "/v1/nodes?per_page=500&next_token=n2"]


async def test_a_name_cannot_break_out_of_its_filter() -> None:
    async with spoken(lambda _: (200, [])) as (nomad, fake):
        assert await nomad.clients('x" or ID != "') == []
        assert fake.asked[0][1].endswith("filter=Name%20%3D%3D%20%22x%5C%22%20or%20ID%20%21%3D%20%5C%22%22")


async def test_allocations_and_jobs_of_every_namespace() -> None:
    def say(request: web.Request) -> tuple[int, Any]:
        if "allocations" in request.path:
            row = {"Name": "a.g[0]", "Namespace": "team", "JobID": "a/b", "Job": {"Type": "service"}}
            return 200, [
                row | {"ClientStatus": "running", "DesiredStatus": "stop"},
                row | {"ClientStatus": "complete", "DesiredStatus": "stop"},
                row | {"ClientStatus": "unknown", "DesiredStatus": "run"},
            ]
        if "gone" in request.path:
            return 404, "job not found"
        if request.path.endswith("/summary"):
            return 200, {"Summary": {"g": {"Running": 2}, "h": {"Running": 1}}}
        return 200, {"Type": "service", "Stop": "stopped" in request.path, "TaskGroups": [{"Count": 3}, {"Count": 1}]}

    async with spoken(say) as (nomad, fake):
        one = NomadAlloc(name="a.g[0]", job="team/a/b", type="service", live=True, running=False)
        assert await nomad.allocs("n1") == (one, msgspec.structs.replace(one, live=False), one)
        assert await nomad.service("team/a/b") == NomadService(3, 4)
        assert await nomad.service("team/stopped") == NomadService(3, 0)
        assert await nomad.service("team/gone") is None
        assert fake.asked[0][1] == "/v1/node/n1/allocations?namespace=%2A"
        assert fake.asked[1][1] == "/v1/job/a%2Fb?namespace=team"


async def test_what_is_ordered() -> None:
    async with spoken(lambda _: (200, {})) as (nomad, fake):
        await nomad.drain(DRAIN)
        await nomad.drain(msgspec.structs.replace(DRAIN, force=True))
        await nomad.stop_drain("n1", eligible=True)
        await nomad.enable("n1")
        meta = {"rebootd": "rebootd/w1/7", "rebootd-was": "eligible", "message": "rebootd"}
        bodies = [body for _, _, _, body in fake.asked]
        # Without force Nomad is given no deadline: it would stop what is left then.
        assert bodies[0]["DrainSpec"] == {"Deadline": 0, "IgnoreSystemJobs": True}
        assert bodies[0]["Meta"] == meta
        assert bodies[1]["DrainSpec"]["Deadline"] == 90_000_000_000
        assert bodies[2] == {"NodeID": "n1", "DrainSpec": None, "MarkEligible": True}
        assert bodies[3] == {"NodeID": "n1", "Eligibility": "eligible"}


async def test_token_region_and_a_socket(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("one\n")
    settings = {"token_file": str(token), "token": "other", "region": "eu"}
    async with spoken(lambda _: (200, []), socket=tmp_path / "api.sock", **settings) as (nomad, fake):
        await nomad.clients()
        token.write_text("two\n")
        await nomad.clients()
        assert [headers for _, _, headers, _ in fake.asked] == [{"X-Nomad-Token": "one"}, {"X-Nomad-Token": "two"}]
        assert fake.asked[0][1] == "/v1/nodes?per_page=500&region=eu"
        token.unlink()
        with pytest.raises(Unreachable, match="token"):
            await nomad.clients()


@pytest.mark.parametrize(
    ("said", "read", "ordered"),
    [
        ((403, "Permission denied"), Denied, Denied),
        ((400, "bad"), Refused, Refused),
        ((500, "No cluster leader"), Unreachable, OutcomeUnknown),
        ((429, "slow down"), Unreachable, OutcomeUnknown),
        ((302, ""), Unreachable, OutcomeUnknown),
        (None, Unreachable, OutcomeUnknown),
    ],
    ids=["denied", "refused", "no-leader", "limited", "redirect", "cut"],
)
async def test_what_an_answer_means(
    said: tuple[int, Any] | None, read: type[Exception], ordered: type[Exception]
) -> None:
    async with spoken(lambda _: said) as (nomad, _):
        with pytest.raises(read):
            await nomad.clients()
        with pytest.raises(ordered):
            await nomad.enable("n1")


@pytest.mark.parametrize("body", [{}, [{"Name": "w1"}], [{**STUB, "Drain": "yes"}], "x"])
async def test_garbage_is_no_answer(body: Any) -> None:
    async with spoken(lambda _: (200, body)) as (nomad, _):
        with pytest.raises(Unreachable, match="cannot be read"):
            await nomad.clients()


async def test_nobody_there_means_that_nothing_was_done() -> None:
    (port,) = free_ports(1)
    nomad = Nomad(NomadHttp(NomadSettings(address=f"http://127.0.0.1:{port}")))
    try:
        with pytest.raises(Unreachable):
            await nomad.enable("n1")
    finally:
        await nomad.close()


@pytest.mark.parametrize(
    "address", ["127.0.0.1:4646", "ftp://x", "http://", "http://u@h:1", "http://h:99999", "unix://"]
)
def test_a_bad_address_is_refused(address: str) -> None:
    with pytest.raises(InvalidInput, match="nomad"):
        NomadSettings(address=address)


def test_settings_come_from_nomads_own_variables() -> None:
    assert NomadSettings.from_env({}) is None
    environ = {"NOMAD_ADDR": "https://n:4646", "NOMAD_TOKEN": "t", "NOMAD_REGION": "eu", "NOMAD_SKIP_VERIFY": "true"}
    found = NomadSettings.from_env(environ, address=None, token_file="/t")
    assert found == NomadSettings(address="https://n:4646", token_file="/t", region="eu", verify=False)
    with pytest.raises(InvalidInput, match="cert_file"):
        NomadSettings(address="https://n:4646", key_file="k")
    with pytest.raises(InvalidInput, match="readable certificates"):
        NomadHttp(NomadSettings(address="https://n:4646", ca_file="/nowhere"))

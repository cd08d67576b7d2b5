from __future__ import annotations

import asyncio
import contextlib
import zlib
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec
import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs
from yarl import URL

from rebootd.api.connections import Limits
from rebootd.core.model import Event
from tests.api.fake_desk import FakeOffice
from tests.api.raw import call
from tests.api.secure import secured
from tests.api.server import Api, running
from tests.support.pki import Pki

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from rebootd.api.listen import Serving

TIGHT = Limits(head=0.3, idle=2.0, pace=1000, look=0.3, per_address=8, total=12, loopback=True)
GOOD = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
async def tight() -> AsyncIterator[Api]:
    async with running(limits=TIGHT) as api:
        yield api


async def healthy(api: Api) -> bool:
    async with call(api.serving.port) as caller:
        caller.send(GOOD)
        return await caller.status() == 200


# ------------------------------------------------------------------------------------------------------ slow callers


@pytest.mark.parametrize("begun", [b"", b"GET /healthz HTTP/1.1\r\nX-A: b"], ids=["nothing", "half a head"])
async def test_who_never_ends_a_head_is_left(tight: Api, begun: bytes) -> None:
    async with call(tight.serving.port) as caller:
        caller.send(begun)
        started = asyncio.get_running_loop().time()
        assert await caller.gone(3)
        assert asyncio.get_running_loop().time() - started > 0.2


async def test_a_head_byte_by_byte_does_not_buy_time(tight: Api) -> None:
    async with call(tight.serving.port) as caller:

        async def drip() -> None:
            with contextlib.suppress(ConnectionError):
                for byte in GOOD[:-2] * 100:
                    caller.send(bytes([byte]))
                    await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        try:
            assert await caller.gone(3)
        finally:
            dripping.cancel()


async def test_a_second_head_has_as_little_time_as_the_first() -> None:
    async with running(limits=replace(TIGHT, idle=30.0)) as api, call(api.serving.port) as caller:
        caller.send(GOOD)
        assert await caller.status() == 200
        await asyncio.sleep(0.5)  # idle for longer than a head may take, which is allowed
        caller.send(GOOD[:10])
        assert await caller.gone(5)


async def test_who_is_idle_is_left_after_a_while(tight: Api) -> None:
    async with call(tight.serving.port) as caller:
        caller.send(GOOD)
        assert await caller.status() == 200
        assert await caller.gone(4)


async def test_a_slow_body_is_not_waited_for(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rebootd.api.bodies.BODY_TIME", 0.3)
    async with call(api.serving.port) as caller:
        caller.send(b"POST /v1/machines/r1m1/report HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{")

        async def drip() -> None:
            with contextlib.suppress(ConnectionError):
                for _ in range(100):
                    caller.send(b" ")
                    await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        try:
            assert await caller.status(3) == 408
        finally:
            dripping.cancel()
    assert await healthy(api)


async def test_who_reads_too_slowly_is_left_and_holds_nothing(tight: Api) -> None:
    tight.desk.events = [Event(seq=n, time=1.0, kind="note", detail="x" * 900) for n in range(1, 20_001)]
    async with call(tight.serving.port, window=1024) as caller:
        caller.send(b"GET /v1/events?limit=20000 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await caller.reader.read(10)
        async with asyncio.timeout(5):
            while tight.serving.gate.open:
                await asyncio.sleep(0.05)
    assert await healthy(tight)


async def test_who_reads_at_a_fair_pace_is_kept() -> None:
    async with running(limits=replace(TIGHT, look=1.0)) as api:
        api.desk.events = [Event(seq=n, time=1.0, kind="note", detail="x" * 900) for n in range(1, 5_001)]
        async with call(api.serving.port, window=65_536) as caller:
            caller.send(b"GET /v1/events?limit=5000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            got = 0
            async with asyncio.timeout(60):
                while chunk := await caller.reader.read(100_000):
                    got += len(chunk)
                    await asyncio.sleep(0.05)  # twice as long in all as a look
    assert got > 4_500_000


async def test_a_follower_that_does_not_read_is_left(tight: Api) -> None:
    async with call(tight.serving.port, window=1024) as caller:
        caller.send(b"GET /v1/events?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await caller.reader.read(10)

        async def tell() -> None:
            while True:
                tight.desk._tell(*[Event(time=1.0, kind="note", detail="x" * 900)] * 500)
                await tight.desk._wake()
                await asyncio.sleep(0.01)

        telling = asyncio.create_task(tell())
        try:
            async with asyncio.timeout(15):
                while tight.serving.gate.open:
                    await asyncio.sleep(0.05)
        finally:
            telling.cancel()
    assert await healthy(tight)


@pytest.mark.parametrize("begun", [b"", b"\x16\x03\x01\x02\x00"], ids=["nothing", "half a hello"])
async def test_who_never_ends_a_handshake_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr("rebootd.api.handshake.HANDSHAKE_TIME", 0.3)
    async with secured(Pki(tmp_path)) as api, call(api.serving.port) as caller:
        caller.send(begun)
        assert await caller.gone(3)
        await left(api.serving)


async def left(serving: Serving) -> None:
    """Until nobody is connected."""
    async with asyncio.timeout(3):
        while serving.gate.open:
            await asyncio.sleep(0.01)


async def test_who_is_still_shaking_hands_is_counted_too(tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    viewer = pki.issue("viewer", "bob")
    async with secured(pki, limits=TIGHT) as api, AsyncExitStack() as stack:
        for _ in range(TIGHT.per_address):
            await stack.enter_async_context(call(api.serving.port))
        async with asyncio.timeout(3):
            while api.serving.gate.open < TIGHT.per_address:
                await asyncio.sleep(0.01)
        async with call(api.serving.port) as caller:
            assert await caller.gone(1)
        assert api.serving.gate.turned_away == 1
        await stack.aclose()
        await left(api.serving)
        # One that came to speak counts once, not once for each layer.
        status, _ = await api.ask(viewer, "GET", "/v1/status")
        assert status == 200
        await left(api.serving)
        assert api.serving.gate.addresses == {}


# ------------------------------------------------------------------------------------------------------------ floods


async def test_one_address_has_so_many_connections_and_gets_them_back(tight: Api) -> None:
    async with AsyncExitStack() as stack:
        held = [await stack.enter_async_context(call(tight.serving.port)) for _ in range(TIGHT.per_address)]
        for caller in held:
            caller.send(GOOD)
        assert [await caller.status() for caller in held] == [200] * TIGHT.per_address
        with capture_logs() as told:
            for _ in range(50):
                async with call(tight.serving.port) as caller:
                    caller.send(GOOD)
                    assert await caller.status() == 0
        assert [t["event"] for t in told] == ["connection turned away"]
        assert tight.serving.gate.turned_away == 50
    async with asyncio.timeout(3):
        while tight.serving.gate.open:
            await asyncio.sleep(0.01)
    assert tight.serving.gate.addresses == {}
    assert await healthy(tight)


async def test_all_addresses_together_have_so_many() -> None:
    async with running(limits=replace(TIGHT, per_address=100)) as api, AsyncExitStack() as stack:
        held = [await stack.enter_async_context(call(api.serving.port)) for _ in range(TIGHT.total + 3)]
        for caller in held:
            caller.send(GOOD)
        assert sorted([await caller.status() for caller in held]) == [0] * 3 + [200] * TIGHT.total


async def test_relays_on_loopback_are_bound_by_the_total_alone() -> None:
    async with running(limits=replace(TIGHT, loopback=False)) as api, AsyncExitStack() as stack:
        held = [await stack.enter_async_context(call(api.serving.port)) for _ in range(TIGHT.total)]
        for caller in held:
            caller.send(GOOD)
        assert [await caller.status() for caller in held] == [200] * TIGHT.total


# -------------------------------------------------------------------------------------------- large and odd requests


async def test_heads_are_bounded(api: Api) -> None:
    for head in (
        b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 10_000 + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"X-Many: a\r\n" * 200 + b"\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Endless: " + b"a" * 100_000,
    ):
        async with call(api.serving.port) as caller:
            caller.send(head)
            said = await caller.rest(3)
            assert b" 400 " in said.split(b"\r\n")[0], said[:100]
            assert b'"error"' in said


SMUGGLED = b"PUT /v1/halt HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
POST = b"POST /v1/machines/r1m1/report HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    "head",
    [
        POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Content-Length: 0\r\nContent-Length: 60\r\n\r\n",
        POST + b"Content-Length: +0\r\n\r\n",
        POST + b"Content-Length: 0x0\r\n\r\n",
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"Content-Length : 0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
        POST + b"X-Folded: a\r\n Content-Length: 60\r\nContent-Length: 0\r\n\r\n",
        POST + b"X-Nul: a\0b\r\nContent-Length: 0\r\n\r\n",
        POST + b"X-Bare: a\rTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n",
        b"POST /v1/machines/r1m1/report HTTP/9.9\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
async def test_nothing_is_smuggled_behind_a_head_that_can_be_read_in_two_ways(api: Api, head: bytes) -> None:
    with capture_logs() as told:
        async with call(api.serving.port) as caller:
            caller.send(head + SMUGGLED)
            said = await caller.rest(12)
    assert b" 400 " in said.split(b"\r\n")[0], said[:200]
    assert said.count(b"Content-Length: ") == 1  # one answer, and to nothing else
    assert api.desk.state.halt is None
    assert told == []


async def test_compressed_bodies_stay_within_the_limit(api: Api) -> None:
    bomb = zlib.compress(b" " * 50_000_000)
    assert len(bomb) < 64 * 1024
    async with api.client.post(
        f"{api.url}/v1/machines/r1m1/report", data=bomb, headers={"Content-Encoding": "deflate"}
    ) as answer:
        assert answer.status == 413


# ------------------------------------------------------------------------------------------------------------- paths

TRICKS = [
    *("/v1/../v1/halt", "/healthz/../v1/halt", "/healthz/..%2fv1/halt", "/metrics/%2e%2e/v1/halt", "//v1/halt"),
    *("/v1//halt", "/./v1/halt", "/v1/halt/", "/V1/halt", "/v1/halt;x=1", "/v1/halt%00", "/v1/halt%0d%0aX:1"),
    *("/v1/h%61lt", "/%76%31/halt", "/v1/halt%20", "/v1/halt%2f", "/v1%2fhalt", "/v1/halt#/healthz"),
    *("/v1/halt?/healthz", "/healthz%00/../v1/halt"),
]


@pytest.mark.parametrize("path", TRICKS)
async def test_no_spelling_of_a_path_is_let_in_without_the_token(path: str) -> None:
    async with running(token="correct-horse") as api:
        for method in ("PUT", "GET", "DELETE"):
            async with call(api.serving.port) as caller:
                head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
                caller.send(head.encode())
                assert await caller.status() in {400, 401}
        assert api.desk.state.halt is None


NAMES = [
    *(
        "..",
        ".",
        "...",
        "a/b",
        "../r1m1",
        "r1m1/../r1m2",
        "r1m1\0",
        "\0",
        "r1m1\r\nX: y",
        "r1m1 ",
        " r1m1",
        "r1m1%2f",
        "",
    ),
    *("a" * 129, "a" * 5000, "r1m1\u202e", "r1m\uff11", "\u04401m1", "r1m1\ud800", "*", "r1m1,r1m2", "r1m1;r1m2"),
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
async def test_no_spelling_of_a_name_is_a_machine(api: Api, name: str) -> None:
    known = dict(api.desk.state.machines)
    spelled = quote(name, safe="", errors="surrogatepass")
    told = {"name": name.encode(errors="replace").decode(), "machine_id": "id", "boot_id": "b", "nonce": "n"}
    asked: list[tuple[str, str, object]] = [
        ("GET", f"/v1/machines/{spelled}", None),
        ("GET", f"/v1/machines/{spelled}/explain", None),
        ("POST", f"/v1/machines/{spelled}/report", told),
        ("POST", f"/v1/machines/{spelled}/permit", told),
        ("POST", f"/v1/machines/{spelled}/forget", {"force": True}),
        ("PUT", f"/v1/holds/machine/{spelled}", {}),
        ("DELETE", f"/v1/windows/{spelled}", {}),
    ]
    for method, path, said in asked:
        data = None if said is None else msgspec.json.encode(said)
        async with api.client.request(
            method, URL(f"{api.url}{path}", encoded=True), data=data, allow_redirects=False
        ) as answer:
            assert answer.status in {400, 404, 405}, (path, await answer.text())
    assert dict(api.desk.state.machines) == known
    assert api.desk.state.machine_holds == {}


async def test_a_redirect_leads_to_the_leader_and_nowhere_else() -> None:

    async with running(FakeOffice(elsewhere="http://leader:8473")) as api:
        for target in (
            "/v1/status",
            "http://evil.example/v1/status",
            "/v1/machines/x@evil.example",
            "/v1/cycles/%0d%0aX-A:b",
        ):
            async with call(api.serving.port) as caller:
                caller.send(f"GET {target} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n".encode())
                said = (await caller.rest()).split(b"\r\n\r\n")[0]
                assert said.startswith(b"HTTP/1.1 307 ")
                (location,) = [line for line in said.split(b"\r\n") if line.startswith(b"Location: ")]
                assert location.startswith(b"Location: http://leader:8473/v1/")
                assert b"\r\nX-A" not in said

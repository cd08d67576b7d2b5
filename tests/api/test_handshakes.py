"""Handshakes that come to nothing are counted, silent callers cost little, and a storm of handshakes stops nobody."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest

from rebootd.api import handshake as shaking
from rebootd.api import turns as taking
from rebootd.api.handshake import Handshake
from rebootd.api.listen import BACKLOG
from rebootd.api.turns import Turns
from rebootd.tls.contexts import client_context
from rebootd.tls.files import TlsFiles
from rebootd.tls.follow import ClientTls
from rebootd.tls.identity import SERVER_NAME
from rebootd.tls.listener import BROKEN_OFF, LEFT, SILENT, SLOW
from tests.api.raw import call
from tests.api.secure import secured
from tests.support.pki import Pki, field

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.api.secure import Secure

STORM = 300


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


def hello(pki: Pki) -> bytes:
    """The first words of an agent."""
    context = ClientTls(pki.issue("machine", "r1m1"), field).context()
    out = ssl.MemoryBIO()
    side = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=SERVER_NAME)
    with suppress(ssl.SSLWantReadError):
        side.do_handshake()
    return out.read()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)


def connected(api: Secure, number: int) -> Callable[[], bool]:
    return lambda: api.serving.gate.open == number


# ----------------------------------------------------------------------------------------------------------- counted


@pytest.mark.parametrize(
    ("words", "why"), [(0, SILENT), (5, SLOW), (10_000, SLOW)], ids=["nothing", "half a hello", "a hello"]
)
async def test_who_stops_speaking_is_counted(pki: Pki, monkeypatch: pytest.MonkeyPatch, words: int, why: str) -> None:
    monkeypatch.setattr(shaking, "HANDSHAKE_TIME", 0.2)
    async with secured(pki) as api, call(api.serving.port) as caller:
        caller.send(hello(pki)[:words])
        assert await caller.gone(5)
        await until(connected(api, 0))
        assert api.refused == [why]


@pytest.mark.parametrize(
    ("words", "why"), [(0, LEFT), (5, BROKEN_OFF), (10_000, BROKEN_OFF)], ids=["nothing", "half a hello", "a hello"]
)
async def test_who_leaves_is_counted(pki: Pki, words: int, why: str) -> None:
    async with secured(pki) as api:
        async with call(api.serving.port) as caller:
            caller.send(hello(pki)[:words])
            await until(connected(api, 1))
        await until(connected(api, 0))
        assert api.refused == [why]


async def test_a_failure_is_counted_once_and_success_never(pki: Pki) -> None:
    viewer = pki.issue("viewer", "bob")
    async with secured(pki) as api:
        assert (await api.ask(viewer, "GET", "/v1/status"))[0] == 200
        await until(connected(api, 0))
        assert api.refused == []
        bare = client_context(TlsFiles(ca=viewer.ca), field)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", api.serving.port, ssl=bare, server_hostname=SERVER_NAME
        )
        with pytest.raises(OSError, match=r"(?i)certificate.required"):
            await reader.read()
        writer.close()
        await until(connected(api, 0))
        assert api.refused == ["no certificate was shown"]


async def test_who_is_turned_away_at_the_door_is_no_failed_handshake(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    async with secured(pki) as api:
        monkeypatch.setattr(api.serving.gate, "total", 0)
        async with call(api.serving.port) as caller:
            assert await caller.gone(5)
        assert api.serving.gate.turned_away == 1
        assert api.refused == []


async def test_a_silent_caller_holds_nothing_of_tls(pki: Pki) -> None:
    async with secured(pki) as api, AsyncExitStack() as stack:
        for _ in range(20):
            await stack.enter_async_context(call(api.serving.port))
        await until(connected(api, 20))
        assert not any(isinstance(one, Handshake) for one in gc.get_objects())


async def test_more_than_a_hello_is_not_taken_before_its_turn(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    first = Handshake.hear

    def hear(self: Handshake, said: bytes) -> None:
        taken.append(len(said))
        first(self, said)

    monkeypatch.setattr(Handshake, "hear", hear)
    held = Turns._go
    monkeypatch.setattr(Turns, "_go", lambda self: None)
    async with secured(pki) as api, call(api.serving.port) as caller:
        caller.send(b"x" * 1_000_000)
        await until(lambda: bool(api.serving._turns.waiting))
        await asyncio.sleep(0.1)  # as long as it is read from, more comes in
        monkeypatch.setattr(Turns, "_go", held)
        api.serving._turns._go()
        await until(lambda: bool(taken))
        assert taken[0] <= shaking.HELLO + len(api.serving._turns.buffer)


# ------------------------------------------------------------------------------------------------------------- turns


async def test_agents_and_others_take_turns_and_what_has_begun_goes_first() -> None:
    done: list[str] = []
    turns = Turns()

    def step(name: str) -> Callable[[], None]:
        return lambda: done.append(name)

    for name in ("a1", "a2", "a3"):
        turns.begin(step(name), patient=True)
    turns.go_on(step("a0"), patient=True)
    for name in ("o1", "o2"):
        turns.begin(step(name), patient=False)
    turns.go_on(step("o0"), patient=False)
    assert turns.waiting == 5
    await until(lambda: len(done) == 7)
    assert done == ["a0", "o0", "a1", "o1", "a2", "o2", "a3"]
    assert turns.waiting == 0
    # One of either kind alone is served as well.
    turns.begin(step("a4"), patient=True)
    turns.go_on(step("a5"), patient=True)
    await until(lambda: len(done) == 9)
    turns.begin(step("o3"), patient=False)
    await until(lambda: len(done) == 10)
    assert done[7:] == ["a5", "a4", "o3"]


async def test_between_two_turns_the_loop_does_its_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taking, "BUDGET", 0.0)
    done: list[str] = []
    turns = Turns()
    for _ in range(3):
        turns.begin(lambda: done.append("handshake"), patient=True)
    for _ in range(3):
        await asyncio.sleep(0)
        done.append("other work")
    await until(lambda: len(done) == 6)
    assert done[:4] in (
        ["other work", "handshake", "other work", "handshake"],
        ["handshake", "other work", "handshake", "other work"],
    )


async def test_an_operator_is_answered_in_the_middle_of_a_storm(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taking, "BUDGET", 0.0)
    context, said = client_context(pki.issue("operator", "alice"), field), hello(pki)
    async with secured(pki) as api, AsyncExitStack() as stack:
        client = await stack.enter_async_context(aiohttp.ClientSession())

        async def ask(*, fresh: bool) -> int:
            """How many still wait for their turn when the operator has the answer."""
            if fresh:
                assert (await api.ask(context, "GET", "/v1/status"))[0] == 200
            else:
                url = api.url + "/v1/status"
                async with client.get(url, ssl=context, server_hostname=SERVER_NAME) as answer:
                    assert answer.status == 200
                    await answer.read()
            return api.serving._turns.waiting

        await ask(fresh=False)
        callers = [await stack.enter_async_context(call(api.serving.port)) for _ in range(STORM)]
        await until(connected(api, STORM + 1))
        held = Turns._run
        monkeypatch.setattr(Turns, "_run", lambda self: None)
        for caller in callers:
            caller.send(said)
        await until(lambda: api.serving._turns.waiting == STORM)
        monkeypatch.setattr(Turns, "_run", held)
        api.serving._turns._going = False
        api.serving._turns._go()
        assert await ask(fresh=False) > STORM / 2
        assert await ask(fresh=True) > STORM / 2
        await until(lambda: not api.serving._turns.waiting)


async def test_the_kernel_keeps_thousands_waiting_and_the_loop_takes_few_at_a_time(pki: Pki) -> None:
    async with secured(pki) as api:
        (listening,) = api.serving._servers[0].sockets
        # Of a listening socket the kernel tells here how many may wait (struct tcp_info, tcpi_sacked).
        info = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        most = int(Path("/proc/sys/net/core/somaxconn").read_text(encoding="ascii"))
        assert int.from_bytes(info[28:32], "little") == min(BACKLOG, most)

"""Whoever answers at a coordinator's address: what it says is bounded, and the host stays in or out as it was."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from aiohttp import web

from rebootd.agent.client import NoCoordinator
from rebootd.core.wire import Directive, DirectiveKind, Report
from tests.agent.fake import FakeCoordinator, FakeHost, eventually
from tests.agent.test_client import GOOD, REPORT, Server, client

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    MakeHost = Callable[..., FakeHost]


# ------------------------------------------------------------------------------------------------- one request


async def raw(serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> asyncio.Server:
    return await asyncio.start_server(serve, "127.0.0.1", 0)


async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A head that never ends."""
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X-A: b\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)


async def trickle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A body that never ends."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500000\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.05)


async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A body without an end, as fast as it goes."""
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + b" " * 65536 + b"\r\n")
        await writer.drain()


async def silence(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


@pytest.mark.parametrize("serve", [drip, trickle, flood, silence])
async def test_an_answer_that_does_not_end_costs_a_bounded_time(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], tmp_path: Path
) -> None:
    server = await raw(serve)
    ours = client([[f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"]], tmp_path)
    started = time.monotonic()
    with pytest.raises(NoCoordinator):
        await ours.report("m", REPORT)
    assert time.monotonic() - started < 3
    await ours.close()
    server.close()


ODD = [
    {"index": 2**53},
    {"index": -1},
    {"epoch": 2**60},
    {"epoch": -1},
    {"state": "x" * 100_000},
    {"waiting_for": "x" * 100_000},
    {"directive": {"id": "m/1/drain" * 10_000, "kind": "drain", "epoch": 1, "version": 1, "boot_id": "b"}},
    {"directive": {"id": "m/1/drain", "kind": "drain", "epoch": 2**60, "version": 1, "boot_id": "b"}},
    {"directive": {"id": "m/1/drain", "kind": "format", "epoch": 1, "version": 1, "boot_id": "b"}},
    {"directive": {"id": "m/1/drain", "kind": "drain", "epoch": 1, "version": 1, "boot_id": "b", "cycle": "c" * 9999}},
]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: str(odd)[:40])
async def test_what_no_coordinator_says_leads_to_the_next_instance(odd: dict[str, Any], tmp_path: Path) -> None:
    bad, good = Server(), Server()
    runners = [await bad.start(), await good.start()]
    said: dict[str, Any] = {"index": 1, "epoch": 1, "state": "in-service", **odd}
    bad.respond = lambda: web.json_response(said)
    good.respond = lambda: web.Response(body=GOOD)
    ours = client([[bad.url], [good.url]], tmp_path)
    assert (await ours.report("m", REPORT)).index == 3
    assert ours.leader == good.url
    await ours.close()
    for runner in runners:
        await runner.cleanup()


async def test_a_circle_of_redirects_is_left(tmp_path: Path) -> None:
    made = [Server() for _ in range(4)]
    runners = [await server.start() for server in made]
    for server, after in zip(made, made[1:] + made[:1], strict=True):
        server.redirect(after.url)
    ours = client([[made[0].url]], tmp_path)
    with pytest.raises(NoCoordinator, match="redirects"):
        await ours.report("m", REPORT)
    assert sum(len(server.asked) for server in made) <= 4
    await ours.close()
    for runner in runners:
        await runner.cleanup()


# ------------------------------------------------------------------------------------------------ a whole agent


class Liar:
    """Says each of its lies to so many reports, and counts."""

    def __init__(self, lies: list[Callable[[Report], dict[str, Any]]], times: int = 2) -> None:
        self.left = [lie for lie in lies for _ in range(times)]
        self.index = 1000

    def __call__(self, report: Report) -> web.Response | None:
        if not self.left:
            return None
        self.index += 1  # else the agent would pause between two answers
        said = {"index": self.index, "epoch": 1, "state": "in-service", **self.left.pop(0)(report)}
        return web.json_response(said)


def directive(report: Report, kind: str, **more: Any) -> dict[str, Any]:
    made = Directive(f"m/77/{kind}", DirectiveKind(kind), 1, 77, report.boot_id)
    return {"directive": msgspec.to_builtins(msgspec.structs.replace(made, **more))}


def lie(kind: str, **more: Any) -> Callable[[Report], dict[str, Any]]:
    return partial(directive, kind=kind, **more)


LIES: list[Callable[[Report], dict[str, Any]]] = [
    *(lie(kind, id=f"other/77/{kind}") for kind in ("drain", "reboot", "enable")),
    *(lie(kind, id=f"m/m2/77/{kind}") for kind in ("drain", "reboot", "enable")),
    *(lie(kind, boot_id="another-boot") for kind in ("drain", "reboot", "enable")),
    *(lie(kind, epoch=0) for kind in ("drain", "reboot", "enable")),
    lie("drain", id=""),
    lambda _: {"epoch": 0, "directive": None},
    lambda _: {"state": "no such state"},
]


async def told_all(coordinator: FakeCoordinator, liar: Liar) -> None:
    coordinator.answer = liar
    await coordinator.until(lambda: not liar.left)
    seen = len(coordinator.reports)
    await coordinator.until(lambda: len(coordinator.reports) > seen)


async def test_lies_neither_take_out_nor_reboot_a_machine_in_service(
    coordinator: FakeCoordinator, make_host: MakeHost
) -> None:
    host = make_host()
    for folder in ("drain.d", "pre-reboot.d", "enable.d"):
        host.hook(folder, "10-log", f"echo $REBOOTD_HOOK >> {host.hook_log}")
    await host.start()
    await coordinator.until(lambda: coordinator.state == "in-service")
    await told_all(coordinator, Liar(LIES))
    assert all(report.in_service for report in coordinator.reports)
    assert (host.reboots, coordinator.permits, host.hook_log.exists()) == ([], [], False)
    await eventually(lambda: host.state()["in_service"])
    # And it obeys again as soon as the truth is told.
    await coordinator.go("draining")
    await coordinator.until(lambda: coordinator.states[-1] == "in-service" and len(coordinator.states) > 2)
    assert len(host.reboots) == 1


async def test_lies_do_not_put_a_machine_into_service(coordinator: FakeCoordinator, make_host: MakeHost) -> None:
    host = make_host(fresh_boot=10**9)
    host.hook("enable.d", "10-log", f"echo $REBOOTD_HOOK >> {host.hook_log}")
    coordinator.hold_back = True
    await host.start()
    await coordinator.until(lambda: any(r.boot_check.status == "passed" for r in coordinator.reports))
    await told_all(coordinator, Liar(LIES))
    assert not any(report.in_service for report in coordinator.reports)
    assert (host.reboots, coordinator.permits, host.hook_log.exists()) == ([], [], False)
    coordinator.hold_back = False
    await coordinator.until(lambda: coordinator.state == "in-service")


async def test_a_directive_that_is_said_again_is_done_once(coordinator: FakeCoordinator, make_host: MakeHost) -> None:
    host = make_host()
    host.hook("drain.d", "10-log", f"echo $REBOOTD_HOOK >> {host.hook_log}")
    first = host.boot_id
    told: list[Directive] = []

    def note(said: Directive) -> Directive:
        told.append(said)
        return said

    coordinator.directive = note
    await host.start()
    await coordinator.until(lambda: coordinator.state == "in-service")
    await coordinator.go("draining")
    await coordinator.until(lambda: coordinator.states[-1] == "in-service" and len(coordinator.states) > 2)
    replayed = list({said.id: said for said in told}.values())
    assert {said.kind.value for said in replayed} == {"drain", "reboot", "enable"}
    again: list[Callable[[Report], dict[str, Any]]] = [
        partial(lambda _report, said: {"directive": msgspec.to_builtins(said)}, said=said) for said in replayed
    ]
    asked = len(coordinator.permits)
    await told_all(coordinator, Liar(again))
    assert host.reboots == [first]
    assert len(coordinator.permits) == asked
    assert host.hook_log.read_text().splitlines() == ["drain.d"]
    assert coordinator.reports[-1].in_service

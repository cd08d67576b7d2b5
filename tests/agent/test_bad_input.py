"""What a host may come up with: hooks of every kind, a clock that is years off, DNS that leads nowhere first."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from tests.agent.fake import FakeCoordinator, FakeHost, eventually
from tests.agent.test_consul import Dns, answering
from tests.support.cluster import free_ports

if TYPE_CHECKING:
    from collections.abc import Callable

    MakeHost = Callable[..., FakeHost]

YEAR = 365 * 86400.0
HOOKS = {
    "hangs": ("sleep 100", False, "drain.d/10: killed after 1 s"),
    "fails": ("echo disk is busy\nexit 3", False, "drain.d/10: exit code 3: disk is busy"),
    "prints binary": (r"printf 'a\377\000\033b'" + "\nexit 1", False, "drain.d/10: exit code 1: a\ufffd\ufffd\ufffdb"),
    "prints without end": ("yes 0123456789 | head -c 3000000\nexit 1", False, "drain.d/10: exit code 1: "),
    "forks and ends": ("sleep 100 &\necho $! > $REBOOTD_STATE_DIR/child\necho left one", True, "left one"),
    "is killed": ("kill -9 $$", False, "drain.d/10: "),
}


@pytest.mark.parametrize("kind", HOOKS)
async def test_hooks_of_every_kind(coordinator: FakeCoordinator, make_host: MakeHost, kind: str) -> None:
    """The drain ends with a word that says what happened, and a host whose hook failed comes back."""
    text, fine, said = HOOKS[kind]
    host = make_host(hook_timeout=1)
    first = host.boot_id
    host.hook("drain.d", "10", text)
    await host.start()
    await coordinator.until(lambda: coordinator.state == "in-service")
    await coordinator.go("draining")
    await coordinator.until(lambda: coordinator.states[-1] == "in-service" and len(coordinator.states) > 2)
    result = next(r.result for r in coordinator.reports if r.result and r.result.kind == "drain")
    assert result.ok is fine
    assert said in result.detail, result.detail
    assert len(result.detail) < 10_000
    assert host.reboots == ([first] if fine else [])


@pytest.mark.parametrize("off", [-30 * YEAR, 30 * YEAR], ids=["in the past", "in the future"])
async def test_a_clock_that_is_years_off(coordinator: FakeCoordinator, make_host: MakeHost, off: float) -> None:
    """It is reported as it is, for the leader to judge; a reboot depends on no wall clock."""
    host = make_host()
    host.environ["CLOCK_OFF"] = str(off)
    first = host.boot_id
    await host.start(module="tests.agent.astray")
    await coordinator.until(lambda: coordinator.state == "in-service")
    await coordinator.go("draining")
    await coordinator.until(lambda: coordinator.states[-1] == "in-service" and len(coordinator.states) > 2)
    assert host.reboots == [first]
    assert all(abs(report.clock - time.time() - off) < 3600 for report in coordinator.reports)
    await eventually(lambda: host.state()["in_service"])


async def test_dns_that_names_dead_addresses_first(coordinator: FakeCoordinator, make_host: MakeHost) -> None:
    port = coordinator.url.rpartition(":")[2]
    (nobody,) = free_ports(1)
    respond = answering(
        ("@ SRV 1 1 8473 lost.example.", f"@ SRV 2 1 {nobody} here.example.", f"@ SRV 3 1 {port} here.example."),
        ("lost.example. A 192.0.2.1", "here.example. A 127.0.0.1"),
    )
    async with Dns(respond) as server:
        host = make_host(coordinators=[], dns=[server.server], consul="127.0.0.1:1")
        await host.start()
        await coordinator.until(lambda: coordinator.state == "in-service")


async def test_dns_that_answers_nothing(coordinator: FakeCoordinator, make_host: MakeHost) -> None:
    """A new boot stays out and says what it misses; it is received when DNS answers at last."""
    port = int(coordinator.url.rpartition(":")[2])

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(swallow, "127.0.0.1", 0)
    mute = f"127.0.0.1:{silent.sockets[0].getsockname()[1]}"
    async with Dns(answering((f"@ SRV 1 1 {port} here.example.",), ("here.example. A 127.0.0.1",))) as server:
        host = make_host(coordinators=[], dns=[mute], dns_timeout=0.3, consul="127.0.0.1:1", fresh_boot=10**9)
        await host.start()
        await eventually(lambda: "no coordinator could be found" in host.state().get("problem", ""))
        assert not host.state()["in_service"]
        assert host.state()["waiting_for"] == "a coordinator that answers"
        await host.end()
        host.values["dns"] = [mute, server.server]
        await host.start()
        await coordinator.until(lambda: coordinator.state == "in-service")
    silent.close()

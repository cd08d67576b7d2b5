"""Somebody else's reboot: the delay lock, the drain before it, and how the boot before is told to have ended."""

from __future__ import annotations

import asyncio
import shutil
import signal
from typing import TYPE_CHECKING

import msgspec
import pytest

from rebootd.agent import inhibit
from rebootd.agent.boot import last_shutdown
from rebootd.agent.host import Host
from rebootd.agent.inhibit import Logind
from rebootd.agent.journal import Intent, Record
from rebootd.agent.settings import AgentSettings
from rebootd.core.wire import DirectiveKind, Result
from tests.agent.fake import FakeCoordinator, FakeHost, eventually
from tests.agent.login import Login

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    MakeHost = Callable[..., FakeHost]

needs_bus = pytest.mark.skipif(not shutil.which("dbus-daemon"), reason="no dbus-daemon on this machine")


@pytest.fixture
def login(tmp_path: Path) -> Iterator[Login]:
    made = Login(tmp_path, delay=4.0)
    yield made
    made.close()


class Heard:
    def __init__(self) -> None:
        self.kinds: list[tuple[str, float]] = []
        self.called_off = 0
        self.may_end = asyncio.Event()

    async def announced(self, kind: str, seconds: float) -> None:
        self.kinds.append((kind, seconds))
        await self.may_end.wait()

    async def off(self) -> None:
        self.called_off += 1


@needs_bus
async def test_the_lock_is_held_until_we_are_done(login: Login, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inhibit, "AGAIN", 0.1)
    heard, logind = Heard(), Logind(login.address)
    task = asyncio.create_task(logind.run(heard.announced, heard.off))
    try:
        await eventually(lambda: logind.allowed == 4.0 and login.held())
        assert login.asked == [("shutdown", "rebootd", "take this machine out of service first", "delay")]
        login.liar()
        login.shutdown(True, "poweroff")
        await eventually(lambda: heard.kinds == [("poweroff", 4.0)])
        assert login.held()
        heard.may_end.set()
        await eventually(lambda: not login.held())
        # It is called off: the lock is taken anew, for the next one.
        login.shutdown(False, "poweroff")
        await eventually(lambda: heard.called_off == 1 and len(login.locks) == 2 and login.held())
        login.shutdown(True, old=True)
        await eventually(lambda: heard.kinds[1:] == [("shutdown", 4.0)])
    finally:
        task.cancel()
        await asyncio.wait({task})
    assert not login.held()


@needs_bus
async def test_no_lock(login: Login, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(inhibit, "AGAIN", 0.05)
    heard = Heard()
    login.refuse = True
    for logind in (Logind(login.address), Logind(f"unix:path={tmp_path}/none"), Logind("nonsense")):
        task = asyncio.create_task(logind.run(heard.announced, heard.off))
        await asyncio.sleep(0.3)
        assert not task.done()
        assert logind.allowed == 0.0
        task.cancel()
        await asyncio.wait({task})
    assert len(login.asked) > 1, "it asks again"


@needs_bus
async def test_anyones_reboot_is_orderly(login: Login, coordinator: FakeCoordinator, make_host: MakeHost) -> None:
    host = make_host(inhibit="always")
    host.environ["DBUS_SYSTEM_BUS_ADDRESS"] = login.address
    host.hook("drain.d", "10-log", f"echo drained >> {host.hook_log}")
    await host.start()
    await coordinator.until(lambda: coordinator.state == "in-service")
    await eventually(login.held)
    first = host.boot_id
    login.shutdown(True)
    await coordinator.until(lambda: coordinator.reports[-1].announced == "reboot")
    said = coordinator.reports[-1]
    assert not said.in_service
    await coordinator.go("verifying")
    await eventually(lambda: not login.held())
    assert host.hook_log.read_text() == "drained\n"
    assert host.state()["announced"] == "reboot"
    # The coordinator may want it back; a host that goes down does not come back into service.
    await coordinator.go("enabling")
    await host.end(signal.SIGTERM)
    host.new_boot_id()
    coordinator.hold_back = True
    await host.start()
    await coordinator.until(lambda: coordinator.reports[-1].boot_id != first)
    after = coordinator.reports[-1]
    assert (after.announced, after.last_shutdown, after.in_service) == ("", "announced", False)
    assert "enabling" in coordinator.states
    assert all(r.result is None for r in coordinator.reports if r.boot_id == first)


@needs_bus
async def test_a_shutdown_that_is_called_off(login: Login, coordinator: FakeCoordinator, make_host: MakeHost) -> None:
    host = make_host(inhibit="always")
    host.environ["DBUS_SYSTEM_BUS_ADDRESS"] = login.address
    await host.start()
    await coordinator.until(lambda: coordinator.state == "in-service")
    await eventually(login.held)
    login.shutdown(True)
    await coordinator.until(lambda: coordinator.reports[-1].announced == "reboot")
    login.shutdown(False)
    await coordinator.until(lambda: coordinator.reports[-1].announced == "")
    await coordinator.go("verifying")
    await coordinator.until(lambda: coordinator.state == "in-service")
    await eventually(lambda: host.state()["in_service"])


@needs_bus
async def test_our_own_reboot_is_not_delayed(login: Login, coordinator: FakeCoordinator, make_host: MakeHost) -> None:
    host = make_host(inhibit="always", reboot_command=["sh", "-c", "sleep 3"])
    host.environ["DBUS_SYSTEM_BUS_ADDRESS"] = login.address
    host.hook("drain.d", "10-log", f"echo drained >> {host.hook_log}")
    await host.start()
    await coordinator.until(lambda: coordinator.state == "in-service")
    await eventually(login.held)
    await coordinator.go("draining")
    await eventually(lambda: host.state().get("doing") == "reboot: waiting for the end")
    login.shutdown(True)
    await eventually(lambda: not login.held(), timeout=2.0)
    assert host.hook_log.read_text() == "drained\n", "drained once, by the directive"
    assert all(not r.announced for r in coordinator.reports)


@pytest.mark.parametrize(("state", "expected"), [("stopping", "orderly"), ("running", "none")])
async def test_stopped_with_the_system_or_alone(
    state: str, expected: str, coordinator: FakeCoordinator, make_host: MakeHost, tmp_path: Path
) -> None:
    host = make_host(crash_dirs=[str(tmp_path / "pstore")], inhibit="never")
    host.tool("systemctl", f"echo {state}; exit 1")
    # What makes an agent a service: somebody listens.
    host.environ["NOTIFY_SOCKET"] = str(tmp_path / "nobody")
    await host.start()
    await coordinator.until(lambda: coordinator.state == "in-service")
    assert await host.end(signal.SIGTERM) == 0
    host.new_boot_id()
    await host.start()
    await coordinator.until(lambda: coordinator.reports[-1].last_shutdown != "")
    assert coordinator.reports[-1].last_shutdown == expected
    await coordinator.until(lambda: coordinator.state == "in-service")
    await eventually(lambda: host.state()["last_shutdown"] == expected)


def test_words(tmp_path: Path) -> None:
    intent = Intent(directive="d", boot_id="b", nonce="n", sent=1.0)
    record = Record(boot_id="b")
    assert last_shutdown(Record(), crashed=False) == ""
    assert last_shutdown(record, crashed=False) == "none"
    assert last_shutdown(record, crashed=True) == "crash"
    assert last_shutdown(msgspec.structs.replace(record, stopped=True), crashed=False) == "orderly"
    announced = msgspec.structs.replace(record, stopped=True, announced="reboot")
    assert last_shutdown(announced, crashed=False) == "announced"
    permitted = msgspec.structs.replace(announced, intent=intent)
    assert last_shutdown(permitted, crashed=False) == "permitted"
    failed = msgspec.structs.replace(permitted, results=(Result("d", DirectiveKind.REBOOT, ok=False),), announced="")
    assert last_shutdown(failed, crashed=False) == "orderly"
    fresh, moved = tmp_path / "pstore", tmp_path / "moved"
    host = Host(AgentSettings(crash_dirs=(str(fresh), str(moved))))
    assert not host.crashed()
    moved.mkdir()
    (moved / "1700000000").mkdir()
    assert host.crashed(), "moved since this boot"
    assert not Host(AgentSettings(crash_dirs=(str(fresh), str(fresh)))).crashed()
    fresh.mkdir()
    (fresh / "dmesg-efi-1").write_text("panic")
    assert Host(AgentSettings(crash_dirs=(str(fresh),))).crashed()
    assert not Host(AgentSettings(crash_dirs=())).crashed()

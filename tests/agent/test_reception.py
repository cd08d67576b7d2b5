"""Boot reception: the target, the mark that needs no Python, and a host that no coordinator answers."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from rebootd.agent.outmark import CHECK_ID, CHECK_NAME, AgentMark
from rebootd.agent.settings import AgentSettings, validate
from rebootd.consul.client import connect
from rebootd.core.errors import InvalidInput
from tests.agent.fake import FakeCoordinator, FakeHost, eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.cluster import Agent

    MakeHost = Callable[..., FakeHost]

TARGET = "rebootd-in-service.target"


def calls(host: FakeHost) -> list[str]:
    path = host.folder / "systemctl.log"
    return path.read_text().splitlines() if path.exists() else []


async def test_the_target_follows(coordinator: FakeCoordinator, make_host: MakeHost) -> None:
    host = make_host(target=TARGET)
    host.tool("systemctl", f'echo "$@" >> {host.folder}/systemctl.log')
    host.hook("drain.d", "10-log", f"echo drain hook >> {host.folder}/systemctl.log")
    host.hook("enable.d", "10-log", f"echo enable hook >> {host.folder}/systemctl.log")
    marker = host.folder / "run" / "in-service"
    await host.start()
    await coordinator.until(lambda: coordinator.state == "in-service")
    start, stop = f"start --no-block {TARGET}", f"stop {TARGET}"
    await eventually(lambda: calls(host) == [start])
    await eventually(lambda: marker.exists() and marker.read_text() == f"{host.boot_id}\n")
    first = host.boot_id
    await coordinator.go("draining")
    await coordinator.until(lambda: coordinator.states[-1] == "in-service" and coordinator.boot_id != first)
    assert calls(host) == [start, "drain hook", stop, "enable hook", start]
    await eventually(lambda: marker.exists() and marker.read_text() == f"{host.boot_id}\n")
    # An agent that starts again finds the host in service, and says so to systemd once more.
    await host.end()
    await host.start()
    await eventually(lambda: calls(host)[-2:] == [start, start])


async def test_a_target_that_does_not_start_is_told(coordinator: FakeCoordinator, make_host: MakeHost) -> None:
    host = make_host(target=TARGET, fresh_boot=10**9)
    host.tool("systemctl", "echo Unit not found.; exit 5")
    await host.start()
    await coordinator.until(lambda: coordinator.state == "quarantined")
    result = coordinator.reports[-1].result
    assert result is not None
    assert result.detail == f"systemctl start {TARGET}: exit code 5: Unit not found."
    assert not coordinator.reports[-1].in_service
    await eventually(lambda: not (host.folder / "run" / "in-service").exists())


def test_words() -> None:
    assert AgentSettings().enable_after is None
    assert validate({"on_unreachable": "enable-after 10m"}).enable_after == 600.0
    for bad in ("", "enable", "enable-after", "enable-after soon", "stay-out 3s"):
        with pytest.raises(InvalidInput, match="on_unreachable"):
            validate({"on_unreachable": bad})
    with pytest.raises(InvalidInput, match="target"):
        validate({"target": "a b"})


def away(_: Any) -> web.Response:
    return web.Response(status=503)


async def test_stays_out_by_default(coordinator: FakeCoordinator, make_host: MakeHost) -> None:
    coordinator.answer = away
    host = make_host(fresh_boot=10**9)
    await host.start()
    await eventually(lambda: host.state().get("boot_check") == "passed")
    await asyncio.sleep(1.5)
    assert not host.state()["in_service"]


async def test_enables_itself_and_says_so(coordinator: FakeCoordinator, make_host: MakeHost) -> None:
    coordinator.answer = away
    host = make_host(fresh_boot=10**9, on_unreachable="enable-after 2s")
    host.values["textfile"] = str(host.folder / "metrics.prom")
    host.hook("enable.d", "10-log", f"echo enabled >> {host.hook_log}")
    await host.start()
    await eventually(lambda: host.state().get("by_itself"))
    assert host.state()["in_service"]
    assert "enabled by itself: no coordinator answered for" in host.state()["problem"]
    assert host.hook_log.read_text() == "enabled\n"
    # It is written after the state.
    await eventually(lambda: "rebootd_agent_enabled_by_itself 1.0" in (host.folder / "metrics.prom").read_text())
    assert "this machine enables itself" in host.log.read_text()
    coordinator.answer = lambda _: None
    await coordinator.until(lambda: bool(coordinator.reports) and coordinator.reports[-1].in_service)
    assert coordinator.reports[-1].by_hand.startswith("by itself: no coordinator answered for")


@pytest.mark.parametrize("state", ["quarantined", "held"])
async def test_who_was_kept_out_stays_out(state: str, coordinator: FakeCoordinator, make_host: MakeHost) -> None:
    host = make_host(fresh_boot=10**9, on_unreachable="enable-after 1s")
    coordinator.hold_back = True
    await host.start()
    await coordinator.until(lambda: coordinator.state == "verifying")
    await coordinator.go(state)
    await eventually(lambda: host.state().get("state") == state)
    coordinator.answer = away
    # Over a boot too: a technician's power cycle does not lift what a coordinator said.
    await host.end(signal.SIGTERM)
    host.new_boot_id()
    await host.start()
    await eventually(lambda: host.state().get("boot_id") == host.boot_id and host.state()["boot_check"] == "passed")
    await asyncio.sleep(2.5)
    assert not host.state()["in_service"]


# --- systemd/out-mark ------------------------------------------------------------------------------


def out_mark(dev_consul: Agent, run: Path, tools: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": os.environ["PATH"] if tools is None else str(tools), "CONSUL_HTTP_ADDR": dev_consul.url}
    environ |= {"REBOOTD_RUN_DIR": str(run), "REBOOTD_BOOT_ID_FILE": str(run / "boot_id"), **more}
    return subprocess.run(
        ["/bin/sh", "systemd/out-mark"], env=environ, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("wget")), reason="no curl and wget on this machine")
async def test_the_mark_without_python(dev_consul: Agent, tmp_path: Path) -> None:
    consul = connect(dev_consul.settings)
    mark = AgentMark(consul)

    def check() -> dict[str, Any]:
        return dict(dev_consul.ask("/v1/agent/checks").get(CHECK_ID, {}))

    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("cat", "sed", "sleep", "wget", "mktemp", "rm"):
        (tools / name).symlink_to(str(shutil.which(name)))
    (tmp_path / "boot_id").write_text("b1\n")
    try:
        for chosen in (None, tools):
            done = out_mark(dev_consul, tmp_path, chosen)
            assert (done.returncode, done.stderr) == (0, "rebootd out mark: set\n")
            assert (check()["Status"], check()["Name"]) == ("critical", CHECK_NAME)
            # Somebody passed it: it is set again, and the agent takes for its own what stands there.
            dev_consul.ask(f"/v1/agent/check/pass/{CHECK_ID}", "PUT", b"")
            assert out_mark(dev_consul, tmp_path, chosen).returncode == 0
            assert check()["Status"] == "critical"
            await mark.apply(False, "")
            assert check() == {}
        (tmp_path / "in-service").write_text("b1\n")
        assert "is in service" in out_mark(dev_consul, tmp_path).stderr
        assert check() == {}
        (tmp_path / "boot_id").write_text("b2\n")
        assert out_mark(dev_consul, tmp_path).returncode == 0
        assert check()["Status"] == "critical"
    finally:
        await mark.apply(False, "")
        await consul.close()
    (tools / "wget").unlink()
    assert "neither curl nor wget" in out_mark(dev_consul, tmp_path, tools).stderr
    nowhere = out_mark(dev_consul, tmp_path, CONSUL_HTTP_ADDR="127.0.0.1:1", REBOOTD_OUT_MARK_TRIES="2")
    assert nowhere.returncode == 1
    assert "not set" in nowhere.stderr


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze on this machine")
def test_units_are_valid(tmp_path: Path) -> None:
    target = tmp_path / TARGET
    target.write_text(Path("systemd", TARGET).read_text())
    consul = tmp_path / "consul.service"
    consul.write_text("[Service]\nExecStart=/bin/true\n")
    drop_in = tmp_path / "consul.service.d" / "10-rebootd-out-mark.conf"
    drop_in.parent.mkdir()
    text = Path("systemd/consul.service.d/10-rebootd-out-mark.conf").read_text()
    drop_in.write_text(text.replace("/usr/local/lib/rebootd/out-mark", "/bin/true"))
    for unit in (target, consul):
        found = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False
        )
        assert found.returncode == 0, found.stderr
        assert "rebootd" not in found.stderr

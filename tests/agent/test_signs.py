"""What the agent shows: systemd's notifications, the textfile metrics, the state file, the unit."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rebootd.agent import statefile, textfile
from rebootd.agent.notify import Notifier
from rebootd.agent.statefile import AgentState
from rebootd.core.errors import NotFound


async def test_notifications(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "notify"))
        server.settimeout(5)
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "100000", "PATH": "/bin"}
        notifier = Notifier(environ)
        assert environ == {"PATH": "/bin"}
        assert notifier.interval == 0.05
        notifier.ready()
        notifier.status("waits\nfor x")
        notifier.status("waits for x")
        task = asyncio.create_task(notifier.watchdog())
        await asyncio.sleep(0)
        assert [server.recv(100) for _ in range(3)] == [b"READY=1", b"STATUS=waits for x", b"WATCHDOG=1"]
        await asyncio.sleep(0.2)
        assert server.recv(100) == b"WATCHDOG=1"
        task.cancel()
    notifier.ready()
    assert Notifier({"WATCHDOG_USEC": "100", "WATCHDOG_PID": "1"}).interval == 0
    Notifier({}).ready()


def test_textfile(tmp_path: Path) -> None:
    state = AgentState(machine='m"\\x', in_service=True, reboot_required="unknown", last_contact=12.5)
    textfile.write(tmp_path / "rebootd.prom", state, "1")
    families = {f.name: f for f in text_string_to_metric_families((tmp_path / "rebootd.prom").read_text())}
    assert families["rebootd_agent_info"].samples[0].labels["machine"] == 'm"\\x'
    assert families["rebootd_agent_in_service"].samples[0].value == 1
    required = {s.labels["is"]: s.value for s in families["rebootd_agent_reboot_required"].samples}
    assert required == {"yes": 0, "no": 0, "unknown": 1}
    assert families["rebootd_agent_last_contact_timestamp_seconds"].samples[0].value == 12.5
    assert [p.name for p in tmp_path.iterdir()] == ["rebootd.prom"]


def test_state_file(tmp_path: Path) -> None:
    path = tmp_path / "run" / "agent.json"
    with pytest.raises(NotFound):
        statefile.read(path)
    statefile.write(path, AgentState(machine="m"))
    assert statefile.read(path).machine == "m"
    path.write_text("{")
    with pytest.raises(NotFound):
        statefile.read(path)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze on this machine")
def test_unit_is_valid(tmp_path: Path) -> None:
    text = Path("systemd/rebootd-agent.service").read_text()
    unit = tmp_path / "rebootd-agent.service"
    unit.write_text(text.replace("/usr/local/bin/rebootd", "/bin/true"))
    found = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "rebootd-agent" not in found.stderr

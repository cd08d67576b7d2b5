"""What the systemd units may do: measured by systemd itself, where it can."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNITS = {"rebootd.service": 2.5, "rebootd-agent.service": 2.5}
"""Each unit and the exposure (0 best, 10 worst) that it must stay below or at."""


def analyze(*arguments: str | Path) -> str:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("no systemd-analyze here: the units were not measured")
    command = [tool, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_is_exposed_no_more_than_the_docs_say(unit: str) -> None:
    if "--offline" not in analyze("--help"):
        pytest.skip("this systemd-analyze cannot measure units that are not installed (it needs systemd 250)")
    said = analyze("security", "--offline=true", "--no-pager", ROOT / "systemd" / unit)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert found, said
    assert float(found[1]) <= UNITS[unit], said
    stated = re.search(rf"\| `{unit}` \| ([0-9.]+) \|", (ROOT / "docs" / "limits.md").read_text())
    assert stated
    version = re.search(r"^systemd (\d+)", analyze("--version"), re.MULTILINE)
    if version and version[1] == "252":
        assert found[1] == stated[1]


def test_the_drop_in_for_hooks_is_understood(tmp_path: Path) -> None:
    """Every right that the agent does without can be given back."""
    name = "rebootd-agent.service"
    unit = tmp_path / name
    unit.write_text((ROOT / "systemd" / name).read_text().replace("/usr/local/bin/rebootd", sys.executable))
    folder = tmp_path / f"{name}.d"
    folder.mkdir()
    shutil.copy(ROOT / "systemd" / f"{name}.d" / "10-hooks.conf.example", folder / "10-hooks.conf")
    said = analyze("verify", "--man=no", unit)
    assert not [line for line in said.splitlines() if name in line]


def test_the_agent_keeps_what_rebooting_needs() -> None:
    text = (ROOT / "systemd" / "rebootd-agent.service").read_text()
    settings = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    assert {"User", "DynamicUser", "ProcSubset", "PrivateNetwork", "PrivateUsers"}.isdisjoint(settings)
    assert "AF_UNIX" in settings["RestrictAddressFamilies"]  # the bus, by which it is all asked for
    assert {"/run", "/var"} <= set(settings["ReadWritePaths"].split())

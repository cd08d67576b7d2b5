"""Other distributions' ways to say that a reboot is required, on recorded answers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rebootd.agent.detect import Detector, Finding
from rebootd.agent.detect.system import os_release, sources
from rebootd.agent.detect.tools import TOOLS, from_tool
from rebootd.agent.hooks import Outcome
from rebootd.agent.settings import TOOL_SOURCES, AgentSettings
from rebootd.core.wire import Tri

RECORDED = sorted((Path(__file__).parent / "recorded").glob("*.txt"))
REASONS = {
    "needs-restarting.dnf4.yes": ("glibc", "kernel", "linux-firmware", "systemd"),
    "needs-restarting.dnf5.yes": ("kernel", "kernel-core"),
    "needs-restarting.yum-utils.yes": ("kernel", "systemd"),
    "rpm-ostree.staged.yes": ("deployment 41.20250117.3.0 waits for a boot",),
    "rpm-ostree.other-first.yes": ("deployment 77aa2d5c6c5b waits for a boot",),
    "bootc.staged.yes": ("image quay.io/example/os:10 10.20250210.0 is staged",),
    "update-engine.yes": ("version 4081.2.1 waits for a boot",),
}
OS = {
    "debian": ("ID=debian\nVERSION_ID=12\n", False, ("file", "kernel")),
    "ubuntu": ('ID=ubuntu\nID_LIKE=debian\nNAME="Ubuntu"\n', False, ("file", "kernel")),
    "rocky": ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', False, ("needs-restarting",)),
    "amazon": ('ID="amzn"\nID_LIKE="fedora"\n', False, ("needs-restarting",)),
    "leap": ('ID="opensuse-leap"\nID_LIKE="suse opensuse"\n', False, ("zypper",)),
    "sles": ('ID="sles"\nID_LIKE="suse"\n', False, ("zypper",)),
    "coreos": ("ID=fedora\nVARIANT_ID=coreos\n", True, ("rpm-ostree",)),
    "flatcar": ("ID=flatcar\nID_LIKE=coreos\n", False, ("update-engine",)),
    "arch": ("# comment\nID=arch\nBROKEN='\n", False, ("kernel",)),
    "nothing": ("", False, ("kernel",)),
}


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_recorded(path: Path) -> None:
    source, expected = path.stem.split(".")[0], path.stem.split(".")[-1]
    head, _, output = path.read_text().partition("\n")
    code = int(head.rsplit(" ", 1)[1])
    _, judge = TOOLS[source]
    found = judge(Outcome(code, output.strip(), f"exit code {code}" if code else ""))
    assert found.required is Tri(expected)
    assert bool(found.reasons) == (found.required is not Tri.NO)
    assert found.reasons == REASONS.get(path.stem, found.reasons)


@pytest.mark.parametrize("source", TOOLS)
def test_every_tool_has_each_answer_recorded_and_knows_nothing_else(source: str) -> None:
    assert {p.stem.split(".")[-1] for p in RECORDED if p.stem.split(".")[0] == source} == {"yes", "no", "unknown"}
    for outcome in (
        Outcome(None, "", "killed after 30 s"),
        Outcome(127, "not found", "exit code 127"),
        Outcome(-9, "", "ended by signal 9"),
    ):
        assert TOOLS[source][1](outcome).required is Tri.UNKNOWN


async def test_a_missing_tool_is_unknown_and_a_tool_is_asked_untranslated(tmp_path: Path) -> None:
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "LC_ALL": "de_DE.UTF-8"}
    found = await from_tool("needs-restarting", 5, environ | {"PATH": str(tmp_path)})
    assert found == Finding(Tri.UNKNOWN, ("dnf and needs-restarting not found",))
    tool = tmp_path / "needs-restarting"
    tool.write_text('#!/bin/sh\necho "$@ $LC_ALL"; echo Reboot is required; exit 1\n')
    tool.chmod(0o755)
    assert (await from_tool("needs-restarting", 5, environ)).required is Tri.YES
    tool.write_text("#!/bin/sh\nsleep 9\n")
    assert (await from_tool("needs-restarting", 0.2, environ)).required is Tri.UNKNOWN


async def test_tools_are_asked_seldom(tmp_path: Path) -> None:
    tool = tmp_path / "zypper"
    tool.write_text(f"#!/bin/sh\necho x >> {tmp_path}/asked\nexit 102\n")
    tool.chmod(0o755)
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    settings = AgentSettings(detect=("zypper",), detect_tools_every=0.5)
    detector = Detector(settings)
    for _ in range(3):
        assert (await detector.find("6.1", environ)).required is Tri.YES
    assert (tmp_path / "asked").read_text() == "x\n"
    await asyncio.sleep(0.6)
    await detector.find("6.1", environ)
    assert (tmp_path / "asked").read_text() == "x\nx\n"


@pytest.mark.parametrize("name", OS)
def test_auto(name: str, tmp_path: Path) -> None:
    text, image, expected = OS[name]
    (tmp_path / "os-release").write_text(text)
    assert (
        sources(os_release((str(tmp_path / "none"), str(tmp_path / "os-release"))), image=image, has=bool) == expected
    )


def test_auto_without_os_release() -> None:
    assert os_release(("/nonexistent",)) == {}
    assert sources({"ID": "centos"}, image=True, has=lambda _: None) == ("bootc",)
    assert tuple(TOOLS) == TOOL_SOURCES
    assert "auto" not in Detector(AgentSettings()).sources

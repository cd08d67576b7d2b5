from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from rebootd.agent.detect import Finding, combine
from rebootd.agent.detect.files import flavour, from_file, from_kernel, installed, version_key
from rebootd.agent.detect.tools import from_command
from rebootd.agent.hook_files import hooks_in
from rebootd.agent.hooks import OUTPUT_KEPT, run_hooks, run_program
from rebootd.core.wire import Tri
from tests.agent.fake import eventually

ENV = {"PATH": os.environ["PATH"]}


def script(folder: Path, name: str, text: str, mode: int = 0o755) -> Path:
    path = folder / name
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(mode)
    return path


async def test_order_and_choice(tmp_path: Path) -> None:
    for name in ("20-b", "10-a", ".hidden", "30-c~"):
        script(tmp_path, name, "echo $0")
    script(tmp_path, "15-not-executable", "exit 1", 0o644)
    (tmp_path / "05-folder").mkdir()
    assert [h.path.name for h in hooks_in(tmp_path)] == ["10-a", "20-b"]
    assert (await run_hooks(tmp_path / "none", 5, ENV)).ok
    assert [line.split(":")[0] for line in (await run_hooks(tmp_path, 5, ENV)).detail.splitlines()] == [
        f"{tmp_path.name}/10-a",
        f"{tmp_path.name}/20-b",
    ]


async def test_timeout_kills_forked_children_too(tmp_path: Path) -> None:
    hook = script(tmp_path, "h", f"sleep 100 &\necho $! > {tmp_path}/child\necho before\nwait")
    started = time.monotonic()
    outcome = await run_program([str(hook)], 0.5, ENV)
    assert time.monotonic() - started < 3
    assert outcome.problem == "killed after 0.5 s"
    assert outcome.output == "before"
    child = int((tmp_path / "child").read_text())
    await eventually(lambda: not alive(child))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_left_child_does_not_hold_us_and_cancel_kills(tmp_path: Path) -> None:
    hook = script(tmp_path, "h", f"sleep 30 & echo $! > {tmp_path}/child\necho done")
    started = time.monotonic()
    assert (await run_program([str(hook)], 10, ENV)).output == "done"
    assert time.monotonic() - started < 3
    os.kill(int((tmp_path / "child").read_text()), 9)
    slow = script(tmp_path, "s", f"echo $$ > {tmp_path}/slow\nsleep 30")
    task = asyncio.create_task(run_program([str(slow)], 60, ENV))
    await eventually(lambda: (tmp_path / "slow").exists() and (tmp_path / "slow").read_text())
    task.cancel()
    await eventually(lambda: not alive(int((tmp_path / "slow").read_text())))


async def test_output_is_bounded_and_binary_safe(tmp_path: Path) -> None:
    hook = script(tmp_path, "h", r"printf '\377\000\033[31m'; head -c 300000 /dev/zero | tr '\0' x; echo; echo last")
    outcome = await run_program([str(hook)], 20, ENV)
    assert outcome.code == 0
    assert len(outcome.output) <= OUTPUT_KEPT
    assert outcome.output.endswith("x\nlast")
    hook = script(tmp_path, "h", r"printf 'a\377\000\033b'")
    assert (await run_program([str(hook)], 20, ENV)).output == "a\ufffd\ufffd\ufffdb"
    assert "cannot be started" in (await run_program(["/nonexistent"], 1, ENV)).problem


def test_flag_file(tmp_path: Path) -> None:
    flag = tmp_path / "reboot-required"
    assert from_file(flag) == Finding(Tri.NO)
    flag.touch()
    assert from_file(flag) == Finding(Tri.YES, (str(flag),))
    (tmp_path / "reboot-required.pkgs").write_text("libc6\nlinux-image\nlibc6\n")
    assert from_file(flag) == Finding(Tri.YES, ("libc6", "linux-image"))
    assert from_file(tmp_path / ("x" * 300)).required is Tri.UNKNOWN


def test_versions() -> None:
    ordered = [
        "5.14.0-362.el9.x86_64",
        "5.14.0-362.8.1.el9_3.x86_64",
        "5.14.0-427.el9.x86_64",
        "6.1.0-9-amd64",
        "6.1.0-18-amd64",
        "6.1.0-100-amd64",
        "6.7.0-rc2",
        "6.7.0-rc10",
        "6.7.0",
        "6.7.1",
    ]
    assert sorted(ordered, key=version_key) == ordered
    assert flavour("6.1.0-18-rt-amd64") != flavour("6.1.0-18-amd64")
    assert flavour("5.14.0-362.el9.x86_64+debug") != flavour("5.14.0-362.el9.x86_64")
    assert flavour("6.6.9-arch1-1") == flavour("6.6.10-arch2-1")


def test_kernels(tmp_path: Path) -> None:
    boot, modules = tmp_path / "boot", tmp_path / "modules"
    folders = [boot, modules]
    assert from_kernel("6.1.0-9-amd64", folders).required is Tri.UNKNOWN
    for release in ("6.1.0-9-amd64", "6.1.0-12-amd64"):
        (modules / release).mkdir(parents=True)
    (modules / "6.1.0-9-amd64" / "kernel").mkdir()
    assert from_kernel("6.1.0-9-amd64", folders).required is Tri.NO
    boot.mkdir()
    for release in ("6.1.0-9-amd64", "6.1.0-10-amd64", "6.1.0-30-rt-amd64", "0-rescue-abc", "6.9.0-1-amd64.old"):
        (boot / f"vmlinuz-{release}").touch()
    assert len(installed(folders)) == 3
    found = from_kernel("6.1.0-9-amd64", folders)
    assert found == Finding(Tri.YES, ("kernel 6.1.0-10-amd64 is installed, 6.1.0-9-amd64 runs",))
    assert from_kernel("6.1.0-10-amd64", folders).required is Tri.NO
    assert from_kernel("6.1.0-11-amd64", folders).required is Tri.NO
    assert from_kernel("6.1.0-9-cloud-amd64", folders).required is Tri.UNKNOWN


async def test_command(tmp_path: Path) -> None:
    answers = {0: Tri.NO, 1: Tri.YES, 2: Tri.UNKNOWN, 127: Tri.UNKNOWN}
    for code, expected in answers.items():
        assert (await from_command(["sh", "-c", f"exit {code}"], 5, ENV)).required is expected
    assert (await from_command(["sleep", "5"], 0.1, ENV)).required is Tri.UNKNOWN
    assert (await from_command(["/nonexistent"], 1, ENV)).required is Tri.UNKNOWN


@given(st.lists(st.sampled_from(Tri)))
def test_unknown_is_never_yes_and_spoils_a_no(says: list[Tri]) -> None:
    verdict = combine(Finding(s, (s.value,)) for s in says).required
    assert (verdict is Tri.YES) == (Tri.YES in says)
    assert (verdict is Tri.NO) == (bool(says) and set(says) == {Tri.NO})

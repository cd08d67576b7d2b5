"""No file runs as a hook that others than root, or the agent's own user, could have written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rebootd.agent import hook_files
from rebootd.agent.hook_files import hooks_in
from rebootd.agent.hooks import run_hooks

if TYPE_CHECKING:
    from collections.abc import Callable

ENV = {"PATH": os.environ["PATH"]}
root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "etc" / "drain.d"
    made.parent.mkdir(mode=0o755)
    made.mkdir(mode=0o755)
    return made


def hook(folder: Path, name: str = "10-a", mode: int = 0o755) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\ntouch {folder.parent}/ran\necho $0\n")
    path.chmod(mode)
    return path


async def refused(folder: Path) -> str:
    """Why nothing of the folder was run."""
    outcome = await run_hooks(folder, 5, ENV)
    assert not outcome.ok
    assert not (folder.parent / "ran").exists()
    assert outcome.detail.startswith("drain.d")
    assert ": not run: " in outcome.detail
    return outcome.detail


async def test_a_hook_of_ones_own_runs_under_its_own_name(folder: Path) -> None:
    path = hook(folder, mode=0o500)
    outcome = await run_hooks(folder, 5, ENV)
    assert outcome.ok
    assert outcome.detail == f"drain.d/10-a: ok: {path}"


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o722, 0o4775])
async def test_a_file_that_others_may_write_is_not_run(folder: Path, mode: int) -> None:
    hook(folder, mode=mode)
    said = await refused(folder)
    assert f"mode {mode:04o}" in said
    assert "chmod go-w" in said


@pytest.mark.parametrize("mode", [0o775, 0o777, 0o1777])
async def test_nothing_runs_from_a_folder_that_others_may_write(folder: Path, mode: int) -> None:
    hook(folder)
    folder.chmod(mode)
    assert f"mode {mode:04o}" in await refused(folder)


async def test_nothing_runs_from_below_a_folder_that_others_may_write(folder: Path) -> None:
    hook(folder)
    folder.parent.chmod(0o777)
    assert f"its folder {folder.parent} belongs to" in await refused(folder)
    folder.parent.chmod(0o1777)  # in it others cannot replace what is ours
    assert (await run_hooks(folder, 5, ENV)).ok


async def test_an_empty_folder_that_others_may_write_may_have_lost_a_check(folder: Path) -> None:
    folder.chmod(0o777)
    await refused(folder)


@root
@pytest.mark.parametrize("which", [Path("10-a"), Path(), Path("..")], ids=["file", "folder", "above"])
async def test_what_belongs_to_somebody_else_is_not_run(folder: Path, which: Path) -> None:
    hook(folder)
    os.chown(folder / which, 65534, -1)
    said = await refused(folder)
    assert "belongs to nobody and has mode 0755" in said
    assert "must belong to root" in said


@pytest.mark.parametrize("target", ["hook", "program", "nothing", "itself"])
async def test_links_are_not_followed(folder: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    targets = {
        "hook": hook(tmp_path / "elsewhere"),
        "program": Path(shutil.which("true") or "/bin/true"),
        "nothing": tmp_path / "nothing",
        "itself": folder / "10-link",
    }
    (folder / "10-link").symlink_to(targets[target])
    assert "is a link" in await refused(folder)


async def test_a_folder_may_be_a_link_if_what_it_leads_to_is_safe(folder: Path, tmp_path: Path) -> None:
    hook(folder)
    (tmp_path / "drain.d").symlink_to(folder)
    assert (await run_hooks(tmp_path / "drain.d", 5, ENV)).ok
    folder.chmod(0o777)
    (folder.parent / "ran").unlink()
    assert "mode 0777" in (await run_hooks(tmp_path / "drain.d", 5, ENV)).detail
    assert not (folder.parent / "ran").exists()


def swap_for_link(folder: Path, aside: Path) -> None:
    folder.rename(aside)
    folder.symlink_to(aside)


def swap_for_file(folder: Path, aside: Path) -> None:
    folder.rename(aside)
    folder.write_text("no folder")


@pytest.mark.parametrize("swap", [swap_for_link, swap_for_file])
def test_what_is_swapped_while_we_look_is_not_followed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swap: Callable[[Path, Path], None]
) -> None:
    hook(folder)
    resolve = Path.resolve

    def late(self: Path, strict: bool = False) -> Path:
        found = resolve(self, strict)
        swap(folder, tmp_path / "aside")
        return found

    monkeypatch.setattr(Path, "resolve", late)
    (found,) = hooks_in(folder)
    assert found.refused.startswith("cannot be looked into")


def test_fifos_devices_and_folders_are_no_hooks_and_do_not_hold_us(folder: Path) -> None:
    os.mkfifo(folder / "10-fifo", 0o755)
    (folder / "20-folder").mkdir()
    (folder / "30-data").write_text("x")
    assert hooks_in(folder) == []
    assert hooks_in(folder / "none") == []


def test_an_agent_that_is_not_root_runs_its_own_and_roots(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    hook(folder)
    owner = folder.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 12345)
    assert hook_files.trusted() == {0, owner + 12345}
    (found,) = hooks_in(folder)
    assert (found.refused == "") == (owner == 0)

"""The audit log on a disk that is full or hangs, and files that cannot be had."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rebootd.coordinator import audit as audit_room
from rebootd.coordinator import audit_file
from rebootd.coordinator.audit_file import AuditFile
from rebootd.core.errors import InvalidInput, Refused
from rebootd.core.operations_cycles import start_cycle
from rebootd.core.operations_policy import apply_policy
from tests.coordinator.audit_office import ASKED, WHY, Office, halt
from tests.coordinator.lab import Host, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def full_disk(path: Path, room: int = 10) -> Iterator[None]:
    """This file has ``room`` bytes left: a write is cut short, and the next one is refused."""
    write, left = os.write, [room]

    def writes(fd: int, data: memoryview) -> int:
        if Path(f"/proc/self/fd/{fd}").readlink() != path:
            return write(fd, data)
        if not left[0]:
            left[0] = room
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        wrote = write(fd, data[: left[0]])
        left[0] -= wrote
        return wrote

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", writes)
        yield


async def test_a_full_disk_refuses_changes_keeps_machines_in_and_never_delays_coming_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_room, "LOOK_EVERY", 0.05)
    office = Office(tmp_path)
    out, waiting = Host("m1"), Host("m2")
    async with office.leads("d1") as leader:
        await out.join(leader)
        await waiting.join(leader)
        await leader.apply(partial(apply_policy, text="settle: 0\n", because=WHY), ASKED)
        start = partial(start_cycle, cycle_id="k", selector="*", because=WHY, target="", failure_budget=None)
        await leader.apply(start, ASKED)
        await out.until(leader, "drained")
        assert (await out.ask(leader)).granted
        await eventually(lambda: leader.audit.head.seq == 3)
        await asyncio.sleep(0.1)
        with full_disk(tmp_path / "d1.log"):
            for _ in range(2):
                with pytest.raises(Refused, match="cannot be written"):
                    await halt(leader)
            assert leader.snapshot().halt is None
            assert office.metric("rebootd_audit_unwritable") == 1
            out.reboot()
            async with asyncio.timeout(5):
                await out.join(leader)
            # Nothing new goes out; it says why.
            await waiting.report(leader, wait=0.3)
            assert leader.fleet.machines["m2"].state.value == "in-service"
            assert any("cannot be written" in b.what for b in leader.decision().reasons["m2"])
        await eventually(lambda: office.metric("rebootd_audit_unwritable") == 0)
        await halt(leader)
    verdict = office.verdict()
    assert verdict.findings == ()


async def test_a_permit_is_not_given_without_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_room, "LOOK_EVERY", 0.05)
    office = Office(tmp_path)
    host = Host("m1")
    async with office.leads("d1") as leader:
        await host.join(leader)
        await leader.apply(partial(apply_policy, text="settle: 0\n", because=WHY), ASKED)
        start = partial(start_cycle, cycle_id="k", selector="*", because=WHY, target="", failure_budget=None)
        await leader.apply(start, ASKED)
        await host.until(leader, "drained")
        await asyncio.sleep(0.1)
        with full_disk(tmp_path / "d1.log"):
            answer = await host.ask(leader)
            assert not answer.granted
            assert "cannot be written" in answer.reason
        await eventually(lambda: office.metric("rebootd_audit_unwritable") == 0)
        assert (await host.ask(leader)).granted
    assert office.verdict().findings == ()


async def test_a_disk_that_hangs_holds_up_a_change_for_a_moment_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_file, "PATIENCE", 0.2)
    monkeypatch.setattr(audit_room, "LOOK_EVERY", 0.05)
    office = Office(tmp_path)
    host = Host("m1")
    thawed = threading.Event()
    sync = os.fdatasync
    async with office.leads("d1") as leader:
        await host.join(leader)

        def hangs(fd: int) -> None:
            thawed.wait(20)
            sync(fd)

        monkeypatch.setattr(os, "fdatasync", hangs)
        began = time.monotonic()
        for _ in range(3):
            with pytest.raises(Refused, match="disk"):
                await halt(leader)
        host.reboot()
        await host.join(leader)
        assert time.monotonic() - began < 2
        thawed.set()
        monkeypatch.setattr(os, "fdatasync", sync)

        async def halted() -> bool:
            try:
                await halt(leader)
            except Refused:
                return False
            return True

        async with asyncio.timeout(15):
            while not await halted():
                await asyncio.sleep(0.1)
    assert office.verdict().findings == ()
    assert office.verdict().committed == 1


def test_two_daemons_do_not_share_a_file(tmp_path: Path) -> None:
    first = AuditFile(tmp_path / "a.log", "d1", time.time)
    with pytest.raises(InvalidInput, match="no other daemon"):
        AuditFile(tmp_path / "a.log", "d2", time.time)
    asyncio.run(first.close())


@pytest.mark.parametrize("where", ["none/a.log", ".", "link"])
def test_a_file_that_cannot_be_had_is_bad_input(tmp_path: Path, where: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidInput, match="audit-log"):
        AuditFile(tmp_path / where, "d1", time.time)

"""Whole ways through a reboot with a real agent process and a fake coordinator."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from aiohttp import web

from rebootd.core.wire import Answer, PermitAnswer
from tests.agent.fake import FakeCoordinator, FakeHost, eventually, problem

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    MakeHost = Callable[..., FakeHost]


async def test_one_cycle(coordinator: FakeCoordinator, make_host: MakeHost) -> None:
    host = make_host(token_file="")
    for folder in ("drain.d", "pre-reboot.d", "post-boot.d", "enable.d"):
        host.hook(folder, "10-log", f'echo "$REBOOTD_HOOK $REBOOTD_MACHINE $REBOOTD_CYCLE" >> {host.hook_log}\necho hi')
    first = host.boot_id
    await host.start()
    await coordinator.until(lambda: coordinator.state == "in-service")
    living = coordinator.reports[0]
    assert living.in_service
    assert living.boot_check.status == "passed"
    assert not host.hook_log.exists(), "an install on a living machine runs nothing"
    await coordinator.go("draining")
    await coordinator.until(lambda: coordinator.states[-1] == "in-service" and len(coordinator.states) > 2)
    assert coordinator.states == [
        "in-service",
        *("draining", "drained", "rebooting", "verifying", "enabling", "in-service"),
    ]
    assert host.reboots == [first]
    assert host.hook_log.read_text().splitlines() == [
        "drain.d m kernel-1",
        "pre-reboot.d m kernel-1",
        "post-boot.d m ",
        "enable.d m kernel-1",
    ]
    drained = next(r.result for r in coordinator.reports if r.result and r.result.kind == "drain")
    assert drained.ok
    assert drained.detail == "drain.d/10-log: ok: hi"
    enabled = next(r for r in coordinator.reports if r.result and r.result.kind == "enable")
    assert enabled.in_service
    assert enabled.wait == host.values["wait_out"], "it is not idle before it has heard that it is back"
    assert len(coordinator.permits) == 1
    await eventually(lambda: host.state()["in_service"])
    code, output = await host.command("status")
    assert code == 0, output
    assert await host.end(signal.SIGTERM) == 0


async def test_new_boot_without_journal_is_taken_out(coordinator: FakeCoordinator, make_host: MakeHost) -> None:
    host = make_host(fresh_boot=10**9)
    coordinator.hold_back = True
    await host.start()
    await coordinator.until(lambda: any(r.boot_check.status == "passed" for r in coordinator.reports))
    assert not coordinator.reports[0].in_service
    coordinator.hold_back = False
    await coordinator.until(lambda: coordinator.state == "in-service")


async def test_damaged_journal_is_kept_aside(coordinator: FakeCoordinator, make_host: MakeHost) -> None:
    host = make_host()
    coordinator.hold_back = True
    (host.folder / "state" / "journal.json").write_bytes(b'{"crc32":"00000000","journal":{"boot')
    await host.start()
    await coordinator.until(lambda: bool(coordinator.reports))
    assert not coordinator.reports[0].in_service
    aside = list((host.folder / "state").glob("journal.json.corrupt-*"))
    assert len(aside) == 1
    await eventually(lambda: "kept at" in host.state().get("problem", ""))


async def test_permit_refused_then_granted_with_one_nonce(coordinator: FakeCoordinator, make_host: MakeHost) -> None:
    host = make_host()
    first = host.boot_id
    lies: list[dict[str, Any]] = [
        {"granted": False, "reason": "window closed"},
        {"granted": True, "boot_id": "another"},
        {"granted": True, "nonce": "another"},
        {"granted": True, "epoch": 0},
        {"granted": True, "valid_for": 0.0},
    ]

    def grant(asked: object) -> PermitAnswer | None:
        if len(coordinator.permits) > len(lies):
            return None
        lie = lies[len(coordinator.permits) - 1]
        nonce = coordinator.permits[-1].nonce
        usual: dict[str, Any] = {"granted": True, "nonce": nonce, "boot_id": first, "epoch": 1, "valid_for": 30.0}
        return PermitAnswer(**(usual | lie))

    coordinator.grant = grant
    await host.start()
    await coordinator.until(lambda: coordinator.state == "in-service")
    await coordinator.go("draining")
    await coordinator.until(lambda: coordinator.states[-1] == "in-service" and len(coordinator.states) > 2)
    assert host.reboots == [first]
    assert len({p.nonce for p in coordinator.permits}) == 1
    assert len(coordinator.permits) == len(lies) + 1


async def test_failed_reboot_command_is_reported(coordinator: FakeCoordinator, make_host: MakeHost) -> None:
    host = make_host(reboot_command=["sh", "-c", "echo no such thing; exit 7"])
    await host.start()
    await coordinator.until(lambda: coordinator.state == "in-service")
    await coordinator.go("draining")
    await coordinator.until(lambda: coordinator.state == "quarantined")
    result = coordinator.reports[-1].result
    assert result is not None
    assert not result.ok
    assert "exit code 7: no such thing" in result.detail


async def test_reboot_that_never_comes_is_reported_and_not_repeated(
    coordinator: FakeCoordinator, make_host: MakeHost, tmp_path: Path
) -> None:
    host = make_host(reboot_command=["sh", "-c", f"echo once >> {tmp_path}/ran"], reboot_timeout=1.5)
    await host.start()
    await coordinator.until(lambda: coordinator.state == "in-service")
    await coordinator.go("draining")
    await coordinator.until(lambda: coordinator.state == "rebooting")
    await eventually((tmp_path / "ran").exists)
    await host.end()
    await host.start()
    await coordinator.until(lambda: coordinator.state == "quarantined")
    assert (tmp_path / "ran").read_text() == "once\n"


async def test_failing_hooks(coordinator: FakeCoordinator, make_host: MakeHost) -> None:
    host = make_host()
    bad = host.hook("drain.d", "50-bad", "echo cannot move >&2; exit 3")
    await host.start()
    await coordinator.until(lambda: coordinator.state == "in-service")
    await coordinator.go("draining")
    await coordinator.until(lambda: coordinator.states[-1] == "in-service" and len(coordinator.states) > 2)
    assert coordinator.states == ["in-service", "draining", "enabling", "in-service"]
    failed = next(r.result for r in coordinator.reports if r.result and r.result.kind == "drain")
    assert failed.detail == "drain.d/50-bad: exit code 3: cannot move"
    bad.unlink()
    check = host.hook("post-boot.d", "10-disk", f"test -e {host.folder}/disk")
    await coordinator.go("draining")
    await coordinator.until(lambda: any(r.boot_check.status == "failed" for r in coordinator.reports))
    assert check.exists()
    (host.folder / "disk").touch()
    await coordinator.until(lambda: coordinator.state == "in-service")


async def test_old_epoch_and_foreign_boot_are_ignored(coordinator: FakeCoordinator, make_host: MakeHost) -> None:
    host = make_host()
    coordinator.epoch = 5
    await host.start()
    await coordinator.until(lambda: coordinator.state == "in-service")
    await eventually(lambda: host.state().get("epoch") == 5)
    coordinator.epoch = 4
    await coordinator.go("draining")
    seen = len(coordinator.reports)
    await coordinator.until(lambda: len(coordinator.reports) > seen + 2)
    assert coordinator.state == "draining"
    coordinator.directive = lambda d: msgspec.structs.replace(d, boot_id="another")
    coordinator.epoch = 5
    await coordinator.go("draining")
    await eventually(lambda: "ignored" in host.log.read_text())
    assert all(r.in_service for r in coordinator.reports)
    coordinator.directive = lambda d: d
    await coordinator.go("draining")
    await coordinator.until(lambda: coordinator.state == "in-service" and host.reboots != [])


async def test_garbage_from_the_coordinator_is_survived(coordinator: FakeCoordinator, make_host: MakeHost) -> None:
    host = make_host(fresh_boot=10**9)
    garbage = [web.Response(text="hello"), web.Response(status=404, text="nothing here"), problem(409), problem(400)]
    coordinator.answer = lambda _: garbage.pop() if garbage else None
    await host.start()
    await coordinator.until(lambda: not garbage and coordinator.state == "in-service" and len(coordinator.reports) > 4)


async def test_no_coordinator_stays_out_and_break_glass(coordinator: FakeCoordinator, make_host: MakeHost) -> None:
    host = make_host(fresh_boot=10**9)
    port = int(coordinator.url.rpartition(":")[2])
    await coordinator.stop()
    host.hook("enable.d", "10", "echo enabled by hook")
    await host.start()
    await eventually(lambda: host.state().get("waiting_for") == "a coordinator that answers")
    assert not host.state()["in_service"]
    await eventually(lambda: "stays out of service and keeps asking" in host.log.read_text())
    code, output = await host.command("status", "--json")
    assert code == 1
    assert json.loads(output)["in_service"] is False
    assert (await host.command("enable", "--local"))[0] == 2
    assert (await host.command("enable", "--local", "--reason", "  "))[0] == 2
    assert (await host.command("enable", "--reason", "because"))[0] == 2
    code, output = await host.command("enable", "--local", "--reason", "all gone, ticket 7")
    assert code == 0, output
    assert "enabled by hook" in output
    again = await FakeCoordinator().start(port)
    try:
        await again.until(lambda: any(r.by_hand for r in again.reports))
        told = again.reports[-1]
        assert told.by_hand == "all gone, ticket 7"
        assert told.in_service
        await again.until(lambda: again.state == "in-service")
        await again.go("draining")
        await again.until(lambda: again.state == "in-service" and host.reboots != [])
        assert again.reports[-1].by_hand == ""
    finally:
        await again.stop()


async def test_answers_that_come_too_early_are_not_hammered(coordinator: FakeCoordinator, make_host: MakeHost) -> None:
    host = make_host()
    calm = Answer(index=0, epoch=1, state="in-service")
    coordinator.answer = lambda _: web.Response(body=msgspec.json.encode(calm))
    await host.start()
    await coordinator.until(lambda: len(coordinator.reports) >= 2)
    with pytest.raises(TimeoutError):
        await coordinator.until(lambda: len(coordinator.reports) > 12, timeout=1.5)


async def test_full_disk_asks_for_no_permit(coordinator: FakeCoordinator, make_host: MakeHost) -> None:
    host = make_host()
    first = host.boot_id
    full = host.folder / "state" / ".journal.json.new"
    host.hook("drain.d", "10", f"mkdir {full}")
    await host.start()
    await coordinator.until(lambda: coordinator.state == "in-service")
    await coordinator.go("draining")
    await coordinator.until(lambda: coordinator.state == "drained")
    await eventually(lambda: "no permit is asked for" in host.state().get("doing", ""))
    assert "cannot be written" in host.state()["problem"]
    assert coordinator.permits == []
    assert host.reboots == []
    full.rmdir()
    await coordinator.until(lambda: coordinator.states[-1] == "in-service" and len(coordinator.states) > 2)
    assert host.reboots == [first]


async def test_unplanned_boot_of_a_running_agent(coordinator: FakeCoordinator, make_host: MakeHost) -> None:
    host = make_host()
    await host.start()
    await coordinator.until(lambda: coordinator.state == "in-service")
    host.new_boot_id()
    await coordinator.until(lambda: coordinator.states[-2:] == ["enabling", "in-service"])
    assert coordinator.states == ["in-service", "verifying", "enabling", "in-service"]

"""Ways to reboot: what each needs, what it runs, and how a reboot is proven that keeps the kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from rebootd.agent import userspace
from rebootd.agent.host import Host
from rebootd.agent.methods import command_of, obstacle
from rebootd.agent.settings import AgentSettings, validate
from rebootd.core.errors import InvalidInput
from rebootd.core.methods import METHODS
from tests.agent.fake import FakeCoordinator, FakeHost, eventually

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    MakeHost = Callable[..., FakeHost]

ENV = {"PATH": "/usr/bin:/bin"}


def systemctl(folder: Path, text: str) -> dict[str, str]:
    tool = folder / "systemctl"
    tool.write_text(f"#!/bin/sh\n{text}\n")
    tool.chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


async def test_obstacles(tmp_path: Path) -> None:
    loaded = tmp_path / "kexec_loaded"
    settings = AgentSettings(kexec_loaded_file=str(loaded))
    assert await obstacle(settings, "reboot", ENV) == ""
    assert "No such file" in await obstacle(settings, "kexec", ENV)
    loaded.write_text("0\n")
    assert "no kernel is loaded" in await obstacle(settings, "kexec", ENV)
    loaded.write_text("1\n")
    assert await obstacle(settings, "kexec", ENV) == ""
    assert "no command" in await obstacle(settings, "custom", ENV)
    assert await obstacle(AgentSettings(custom_command=("x",)), "custom", ENV) == ""
    assert "not known here" in await obstacle(settings, "hibernate", ENV)
    assert "needs systemd 254, this host has 252" in await obstacle(
        settings, "soft-reboot", systemctl(tmp_path, "echo 'systemd 252 (252.38-1)'")
    )
    assert await obstacle(settings, "soft-reboot", systemctl(tmp_path, "echo 'systemd 254 (254)'; echo +PAM")) == ""
    assert "names no version" in await obstacle(settings, "soft-reboot", systemctl(tmp_path, "echo hello"))
    assert "exit code 3" in await obstacle(settings, "soft-reboot", systemctl(tmp_path, "exit 3"))
    assert [bool(command_of(settings, m)) for m in METHODS] == [True, True, True, False]
    with pytest.raises(InvalidInput, match="custom_command"):
        validate({"reboot_method": "custom"})
    with pytest.raises(InvalidInput, match="reboot_method"):
        validate({"reboot_method": "hard"})


async def test_a_userspace_is_counted(tmp_path: Path) -> None:
    memory = tmp_path / "userspace.json"
    say = tmp_path / "says"

    async def look(text: str, boot_id: str = "k1") -> tuple[int, str]:
        say.write_text(text)
        found = await userspace.look(("cat", str(say)), boot_id, memory, ENV)
        return found.count, found.invocation

    # systemd 254 and 255: only the invocation tells.
    assert await look("InvocationID=a\n") == (0, "a")
    assert await look("InvocationID=a\n") == (0, "a")
    assert await look("InvocationID=b\n") == (1, "b")
    assert await look("") == (1, "b"), "without an answer what is remembered stands"
    assert await look("InvocationID=\n") == (1, "b")
    # Later ones count themselves; a count never falls within one kernel.
    assert await look("SoftRebootsCount=2\nInvocationID=c\n") == (2, "c")
    assert await look("SoftRebootsCount=x\nInvocationID=c\n") == (2, "c")
    assert await look("SoftRebootsCount=0\nInvocationID=c\n") == (2, "c")
    # The count is right where the folder was lost, and is begun anew with another kernel.
    memory.unlink()
    assert await look("SoftRebootsCount=2\nInvocationID=c\n") == (2, "c")
    assert await look("SoftRebootsCount=0\nInvocationID=d\n", "k2") == (0, "d")
    memory.write_text("{")
    assert await look("InvocationID=d\n", "k2") == (0, "d")
    assert (await userspace.look(("/nonexistent",), "k3", memory, ENV)).count == 0
    assert (userspace.reported("k", 0), userspace.reported("k", 3)) == ("k", "k+3")


async def test_the_boot_id_of_a_host_carries_the_count(tmp_path: Path) -> None:
    (tmp_path / "boot_id").write_text("k1\n")
    settings = AgentSettings(
        boot_id_file=str(tmp_path / "boot_id"),
        run_dir=str(tmp_path),
        userspace_command=("echo", "SoftRebootsCount=1"),
    )
    host = Host(settings)
    assert (host.boot_id(), host.soft_booted()) == ("k1", False)
    await host.look(ENV)
    assert (host.boot_id(), host.soft_booted(), host.service_mark()) == ("k1+1", True, "k1\n")
    (tmp_path / "boot_id").write_text("k2\n")
    assert host.boot_id() == "k2", "another kernel, as after the restore of a virtual machine"


async def test_soft_reboot(coordinator: FakeCoordinator, make_host: MakeHost) -> None:
    host = make_host(reboot_method="soft-reboot")
    host.tool("systemctl", "echo 'systemd 257 (257.5)'")
    count = host.folder / "count"
    count.write_text("InvocationID=a\nSoftRebootsCount=0\n")
    host.values["userspace_command"] = ["cat", str(count)]
    # The real one ends every process; here the test ends the agent.
    host.values["soft_reboot_command"] = ["sh", "-c", f"echo $REBOOTD_METHOD > {host.folder}/soft"]
    first = host.boot_id
    await host.start()
    await coordinator.until(lambda: coordinator.state == "in-service")
    assert coordinator.boot_id == first
    await coordinator.go("draining")
    await eventually((host.folder / "soft").exists)
    await host.end()
    count.write_text("InvocationID=b\nSoftRebootsCount=1\n")
    await host.start()
    await coordinator.until(lambda: coordinator.states[-1] == "in-service" and coordinator.boot_id != first)
    assert coordinator.boot_id == f"{first}+1"
    assert host.reboots == []
    assert coordinator.states.count("rebooting") == 1
    assert coordinator.reports[-1].last_shutdown == "permitted"


async def test_a_directive_names_the_method(coordinator: FakeCoordinator, make_host: MakeHost) -> None:
    host = make_host()
    done = host.folder / "custom"
    host.values["custom_command"] = [
        "sh",
        "-c",
        f"echo $REBOOTD_METHOD > {done}; exec {host.values['reboot_command'][0]}",
    ]
    coordinator.directive = lambda d: msgspec.structs.replace(d, method="custom")
    await host.start()
    await coordinator.until(lambda: coordinator.state == "in-service")
    await coordinator.go("draining")
    await coordinator.until(lambda: coordinator.states[-1] == "in-service" and len(coordinator.states) > 2)
    assert done.read_text() == "custom\n"
    assert len(host.reboots) == 1


async def test_a_method_that_is_not_possible_asks_for_no_permit(
    coordinator: FakeCoordinator, make_host: MakeHost
) -> None:
    host = make_host(reboot_method="kexec")
    (host.folder / "loaded").write_text("0\n")
    host.values["kexec_loaded_file"] = str(host.folder / "loaded")
    await host.start()
    await coordinator.until(lambda: coordinator.state == "in-service")
    await coordinator.go("draining")
    await coordinator.until(lambda: coordinator.states[-1] == "in-service" and len(coordinator.states) > 2)
    failed = next(r.result for r in coordinator.reports if r.result and r.result.kind == "reboot")
    assert not failed.ok
    assert "no kernel is loaded" in failed.detail
    assert (coordinator.permits, host.reboots) == ([], [])
    # A hook may load it just before.
    host.values["kexec_command"] = host.values["reboot_command"]
    host.hook("pre-reboot.d", "10-load", f"echo 1 > {host.folder}/loaded")
    await host.end()
    await host.start()
    await coordinator.go("draining")
    await coordinator.until(lambda: coordinator.states[-1] == "in-service" and len(host.reboots) == 1)

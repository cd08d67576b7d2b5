"""Which userspace this is, when the kernel stays: how a soft-reboot is told from none.

A soft-reboot keeps the kernel and with it the kernel's boot_id. What changes is counted, and the count becomes part of
the boot_id that the agent reports: ``<boot_id>+<n>`` after the n-th soft-reboot of a kernel. Two sources are asked, and
the greater count is taken:

- systemd's own property ``SoftRebootsCount``, where it has one;
- the invocation id of ``sysinit.target``: it is drawn anew when a userspace starts, and by nothing else. The last one
  seen is remembered in the run folder, which outlives a soft-reboot and no real one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import structlog

from rebootd.agent.hooks import run_program
from rebootd.agent.statefile import write_atomically
from rebootd.core.codec import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

QUESTION = (
    *("/bin/sh", "-c"),
    "systemctl show --property=SoftRebootsCount; systemctl show --property=InvocationID sysinit.target",
)
TIMEOUT = 10.0
_log = structlog.get_logger("rebootd.agent.userspace")


class Userspace(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered: the kernel's ``boot_id``, which start of the userspace, and the soft-reboots so far."""

    boot_id: str = ""
    invocation: str = ""
    count: int = 0


async def look(command: tuple[str, ...], boot_id: str, memory: Path, environ: Mapping[str, str]) -> Userspace:
    """Asks, compares with what is remembered at ``memory``, and remembers. Never raises.

    Without any answer (no systemd) what is remembered of this kernel stands.
    """
    remembered = _read(memory)
    if remembered.boot_id != boot_id:
        remembered = Userspace(boot_id=boot_id)
    outcome = await run_program(list(command), TIMEOUT, {**environ, "LC_ALL": "C"})
    told = dict(line.partition("=")[::2] for line in outcome.output.splitlines()) if outcome.code == 0 else {}
    invocation = told.get("InvocationID", "") or remembered.invocation
    count = remembered.count
    if remembered.invocation and invocation != remembered.invocation:
        count += 1
    text = told.get("SoftRebootsCount", "")
    if text.isascii() and text.isdigit():
        count = max(count, int(text))
    found = Userspace(boot_id=boot_id, invocation=invocation, count=count)
    if found != remembered:
        try:
            write_atomically(memory, msgspec.json.encode(found))
        except OSError as error:
            _log.warning("the userspace's id cannot be remembered", error=str(error))
    return found


def reported(boot_id: str, count: int) -> str:
    """The boot_id that the agent reports."""
    return f"{boot_id}+{count}" if count else boot_id


def _read(memory: Path) -> Userspace:
    try:
        return read_json(memory.read_bytes(), Userspace)
    except (OSError, msgspec.MsgspecError):
        return Userspace()

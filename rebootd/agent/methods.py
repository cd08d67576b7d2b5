"""The ways to reboot a host: which command each runs, and what must be true before."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from rebootd.agent.hooks import run_program
from rebootd.core.methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rebootd.agent.settings import AgentSettings

SOFT_REBOOT_SINCE = 254
"""The first systemd that can reboot the userspace alone."""
TOOL_TIMEOUT = 10.0
_VERSION = re.compile(r"^systemd (\d+)", re.MULTILINE)


def command_of(settings: AgentSettings, method: str) -> tuple[str, ...]:
    """The command of a method, empty for one that this host has none for."""
    commands = {
        "reboot": settings.reboot_command,
        "kexec": settings.kexec_command,
        "soft-reboot": settings.soft_reboot_command,
        "custom": settings.custom_command,
    }
    return commands.get(method, ())


async def obstacle(settings: AgentSettings, method: str, environ: Mapping[str, str]) -> str:
    """Why the host cannot reboot by that method now, or ``""``.

    Another method is never taken instead: whoever chose this one may have had to.
    """
    if method not in METHODS:
        return f"reboot method {method[:40]!r} is not known here ({', '.join(METHODS)} are)"
    if not command_of(settings, method):
        return f"reboot method {method} has no command here (custom_command)"
    if method == "kexec":
        return _kexec(settings.kexec_loaded_file)
    if method == "soft-reboot":
        return await _soft_reboot(environ)
    return ""


def _kexec(path: str) -> str:
    try:
        loaded = Path(path).read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        return f"kexec is not possible: {path}: {error.strerror}"
    # `systemctl kexec` without a kernel would boot through the firmware, or load whatever it finds.
    return "" if loaded == "1" else "no kernel is loaded for kexec (a hook in pre-reboot.d can load one)"


async def _soft_reboot(environ: Mapping[str, str]) -> str:
    outcome = await run_program(["systemctl", "--version"], TOOL_TIMEOUT, environ)
    found = _VERSION.search(outcome.output)
    if outcome.problem or found is None:
        return f"soft-reboot is not possible: systemctl --version {outcome.problem or 'names no version'}"
    if int(found[1]) < SOFT_REBOOT_SINCE:
        return f"soft-reboot needs systemd {SOFT_REBOOT_SINCE}, this host has {found[1]}"
    return ""

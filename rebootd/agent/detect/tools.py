"""Sources that are programs of the distribution: each is asked, and its answer judged.

A tool that is missing, hangs, or answers what was never seen is *unknown*. The answers of each tool are recorded in
``tests/agent/recorded``.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import msgspec

from rebootd.agent.detect.finding import Finding
from rebootd.agent.hooks import run_program
from rebootd.core.codec import read_json
from rebootd.core.wire import Tri

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rebootd.agent.hooks import Outcome

JSON_KEPT = 1 << 18
"""Bytes kept of a status in JSON: a host with many layered packages tells them all."""
ZYPPER_REBOOT_NEEDED = 102


async def from_command(command: Sequence[str], timeout: float, environ: Mapping[str, str]) -> Finding:
    """The configured command: exit code 0 is no, 1 is yes, anything else and a timeout is unknown."""
    outcome = await run_program(list(command), timeout, environ)
    words = outcome.output.splitlines()[-1][:200] if outcome.output else ""
    if outcome.code == 0:
        return Finding(Tri.NO)
    if outcome.code == 1:
        return Finding(Tri.YES, (words or f"{command[0]} says so",))
    return Finding(Tri.UNKNOWN, (f"{command[0]}: {outcome.problem}" + (f": {words}" if words else ""),))


def needs_restarting(outcome: Outcome) -> Finding:
    """``needs-restarting -r``: 0 no; 1 yes, with its sentence only: dnf without the plugin ends so too."""
    lines = outcome.output.splitlines()
    if outcome.code == 0:
        return Finding(Tri.NO)
    if outcome.code == 1 and any(line.startswith("Reboot is required") for line in lines):
        packages = [line.strip().removeprefix("*").split("->")[0].strip() for line in lines if line.startswith("  *")]
        if not packages:
            # yum-utils (RHEL 7) writes "kernel -> 3.10.0-1160.el7" without a star.
            packages = [line.split("->")[0].strip() for line in lines if " -> " in line]
        return Finding(Tri.YES, tuple(packages) or ("needs-restarting says so",))
    return _unknown("needs-restarting", outcome)


def zypper(outcome: Outcome) -> Finding:
    """``zypper needs-rebooting``: exit code 0 no, 102 yes."""
    if outcome.code == 0:
        return Finding(Tri.NO)
    if outcome.code == ZYPPER_REBOOT_NEEDED:
        return Finding(Tri.YES, ("zypper needs-rebooting says so",))
    return _unknown("zypper", outcome)


def rpm_ostree(outcome: Outcome) -> Finding:
    """``rpm-ostree status --json``: yes when another deployment than the booted one is staged or comes first."""
    status = _json(outcome)
    deployments = status.get("deployments") if status is not None else None
    if not isinstance(deployments, list) or not all(isinstance(d, dict) for d in deployments):
        return _unknown("rpm-ostree", outcome)
    # The list is in the order in which the boot loader prefers them; a staged one becomes the first at shutdown.
    waiting = [d for d in deployments if d.get("staged") is True] or deployments[:1]
    if not any(d.get("booted") is True for d in deployments):
        return Finding(Tri.UNKNOWN, ("rpm-ostree: no deployment is the booted one",))
    if waiting[0].get("booted") is True:
        return Finding(Tri.NO)
    word = waiting[0].get("version") or str(waiting[0].get("checksum", ""))[:12]
    return Finding(Tri.YES, (f"deployment {word} waits for a boot",))


def bootc(outcome: Outcome) -> Finding:
    """``bootc status --json``: yes when an image is staged or a rollback is queued, no when the booted one stays."""
    host = _json(outcome)
    status = host.get("status") if host is not None else None
    if not isinstance(status, dict) or not isinstance(status.get("booted"), dict):
        return _unknown("bootc", outcome)
    if isinstance(status.get("staged"), dict):
        return Finding(Tri.YES, (f"image {_image(status['staged'])} is staged",))
    if status.get("rollbackQueued") is True:
        return Finding(Tri.YES, ("a rollback is queued",))
    return Finding(Tri.NO)


def update_engine(outcome: Outcome) -> Finding:
    """``update_engine_client -status`` (Flatcar): yes when an update waits for its reboot, no when there is none."""
    words = dict(line.partition("=")[::2] for line in outcome.output.splitlines() if "=" in line)
    operation = words.get("CURRENT_OP", "")
    if outcome.code or not operation.startswith("UPDATE_STATUS_"):
        return _unknown("update_engine_client", outcome)
    if operation == "UPDATE_STATUS_UPDATED_NEED_REBOOT":
        return Finding(Tri.YES, (f"version {words.get('NEW_VERSION', '?')} waits for a boot",))
    return Finding(Tri.NO)


Tool = tuple[tuple[tuple[str, ...], ...], "Callable[[Outcome], Finding]"]
TOOLS: dict[str, Tool] = {
    "needs-restarting": ((("dnf", "needs-restarting", "-r"), ("needs-restarting", "-r")), needs_restarting),
    "zypper": ((("zypper", "--non-interactive", "needs-rebooting"),), zypper),
    "rpm-ostree": ((("rpm-ostree", "status", "--json"),), rpm_ostree),
    "bootc": ((("bootc", "status", "--json"),), bootc),
    "update-engine": ((("update_engine_client", "-status"),), update_engine),
}
"""By source: the commands that can answer (the first whose program is there is asked), and who judges the answer."""


async def from_tool(source: str, timeout: float, environ: Mapping[str, str]) -> Finding:
    """Asks one of ``TOOLS``; ``timeout`` in seconds."""
    commands, judge = TOOLS[source]
    for command in commands:
        if shutil.which(command[0], path=environ.get("PATH")):
            # The judges know the untranslated answers.
            spoken = {**environ, "LC_ALL": "C", "LANG": "C"}
            return judge(await run_program(list(command), timeout, spoken, keep=JSON_KEPT))
    return Finding(Tri.UNKNOWN, (f"{' and '.join(c[0] for c in commands)} not found",))


def _json(outcome: Outcome) -> dict[str, Any] | None:
    if outcome.code != 0:
        return None
    text = outcome.output
    # Warnings on standard error may stand around it.
    try:
        return read_json(text[text.index("{") : text.rindex("}") + 1], dict[str, Any])
    except (ValueError, msgspec.MsgspecError):
        return None


def _image(entry: dict[str, Any]) -> str:
    image: Any = entry.get("image")
    if not isinstance(image, dict):
        return "?"
    reference = image.get("image")
    name = reference.get("image", "?") if isinstance(reference, dict) else "?"
    return f"{name} {image.get('version') or ''}".strip()


def _unknown(tool: str, outcome: Outcome) -> Finding:
    words = outcome.output.splitlines()[-1][:200] if outcome.output else ""
    said = outcome.problem or "an answer that is not understood"
    return Finding(Tri.UNKNOWN, (f"{tool}: {said}" + (f": {words}" if words else ""),))

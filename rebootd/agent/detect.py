"""Whether the host needs a reboot: yes, no or unknown, from several sources.

The rule: *yes* if any configured source says yes; *no* only if at least one source is configured and all of them say
no; *unknown* otherwise. Unknown never counts as yes, and one unknown source is enough to spoil a no.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from rebootd.agent.hooks import run_program
from rebootd.core.wire import Tri

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rebootd.agent.settings import AgentSettings

REASONS_KEPT = 20
_LEFTOVER = re.compile(r"\.(old|bak|dpkg-\w+|rpm\w+)$|rescue|kdump|memtest")
_PARTS = re.compile(r"\d+|[A-Za-z]+")
_EARLIER = {"rc", "pre", "alpha", "beta"}


class Finding(msgspec.Struct, frozen=True):
    """What one source says, and why; ``reasons`` are sentences or package names."""

    required: Tri
    reasons: tuple[str, ...] = ()


def combine(findings: Iterable[Finding]) -> Finding:
    """The rule of this module."""
    all_of = list(findings)
    says = {f.required for f in all_of}
    verdict = Tri.YES if Tri.YES in says else Tri.NO if says == {Tri.NO} else Tri.UNKNOWN
    reasons = dict.fromkeys(r for f in all_of if f.required is verdict for r in f.reasons)
    return Finding(verdict, tuple(reasons)[:REASONS_KEPT])


def from_file(path: Path) -> Finding:
    """Debian's flag file: there means yes, with the packages of ``<path>.pkgs``; certainly not there means no."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return Finding(Tri.NO)
    except OSError as error:
        return Finding(Tri.UNKNOWN, (f"{path}: {error.strerror}",))
    try:
        packages = Path(f"{path}.pkgs").read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        packages = []
    return Finding(Tri.YES, tuple(sorted(set(packages))) or (str(path),))


def version_key(release: str) -> tuple[tuple[int, int, str], ...]:
    """Orders kernel releases: numbers as numbers, a number after a letter group, ``rc`` before the release itself."""
    parts: list[tuple[int, int, str]] = []
    for part in _PARTS.findall(release):
        if part.isdigit():
            parts.append((3, int(part), ""))
        else:
            parts.append((0 if part.lower() in _EARLIER else 2, 0, part.lower()))
    return (*parts, (1, 0, ""))


def flavour(release: str) -> tuple[str, ...]:
    """What kind of kernel a release is (``rt-amd64``, ``generic``, ``+debug``): only like is compared with like."""
    base, _, extra = release.partition("+")
    words = tuple(re.sub(r"\d+", "", word) for word in base.split("-")[1:] if word[:1].isalpha() and word[:2] != "rc")
    return (*words, f"+{extra}") if extra else words


def installed(folders: Sequence[Path]) -> list[str]:
    """Releases of installed kernels in the first folder that has any: ``vmlinuz-<release>`` or ``<release>/kernel``.

    Folders under ``/lib/modules`` without ``kernel`` are what a removed package leaves behind.
    """
    for folder in folders:
        try:
            names = sorted(folder.iterdir())
        except OSError:
            continue
        found = [path.name.partition("-")[2] for path in names if path.name.startswith(("vmlinuz-", "vmlinux-"))]
        found += [path.name for path in names if path.name[:1].isdigit() and (path / "kernel").is_dir()]
        found = [release for release in found if release[:1].isdigit() and not _LEFTOVER.search(release)]
        if found:
            return found
    return []


def from_kernel(running: str, folders: Sequence[Path]) -> Finding:
    """Yes when a newer kernel of the running one's flavour is installed; unknown when none of its flavour is."""
    alike = [release for release in installed(folders) if flavour(release) == flavour(running)]
    if not alike:
        return Finding(Tri.UNKNOWN, (f"no installed kernel like {running} found",))
    newest = max(alike, key=version_key)
    if version_key(newest) > version_key(running):
        return Finding(Tri.YES, (f"kernel {newest} is installed, {running} runs",))
    return Finding(Tri.NO)


async def from_command(command: Sequence[str], timeout: float, environ: Mapping[str, str]) -> Finding:
    """The configured command: exit code 0 is no, 1 is yes, anything else and a timeout is unknown."""
    outcome = await run_program(list(command), timeout, environ)
    words = outcome.output.splitlines()[-1][:200] if outcome.output else ""
    if outcome.code == 0:
        return Finding(Tri.NO)
    if outcome.code == 1:
        return Finding(Tri.YES, (words or f"{command[0]} says so",))
    return Finding(Tri.UNKNOWN, (f"{command[0]}: {outcome.problem}" + (f": {words}" if words else ""),))


async def detect(settings: AgentSettings, running: str, environ: Mapping[str, str]) -> Finding:
    """What the configured sources say together."""
    findings: list[Finding] = []
    if "file" in settings.detect:
        findings.append(from_file(Path(settings.reboot_required_file)))
    if "kernel" in settings.detect:
        findings.append(from_kernel(running, [Path(folder) for folder in settings.kernel_dirs]))
    if "command" in settings.detect:
        findings.append(await from_command(settings.detect_command, settings.detect_timeout, environ))
    return combine(findings)

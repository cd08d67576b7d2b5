"""Sources that are files: Debian's flag, and which kernels are installed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from rebootd.agent.detect.finding import Finding
from rebootd.core.wire import Tri

if TYPE_CHECKING:
    from collections.abc import Sequence

_LEFTOVER = re.compile(r"\.(old|bak|dpkg-\w+|rpm\w+)$|rescue|kdump|memtest")
_PARTS = re.compile(r"\d+|[A-Za-z]+")
_EARLIER = {"rc", "pre", "alpha", "beta"}


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

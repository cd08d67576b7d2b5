"""A cgroup per host, in every hierarchy that the machine has (v1 controllers, the unified one, or both)."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PREFIX = "rebootd-box-"


def hierarchies() -> list[Path]:
    """The root of each mounted hierarchy."""
    if (ROOT / "cgroup.procs").exists():
        return [ROOT]
    return sorted(path for path in ROOT.iterdir() if path.is_dir() and (path / "cgroup.procs").exists())


def make(box: str, host: str) -> list[Path]:
    """The host's cgroups, made if need be: a process that writes 0 to each ``cgroup.procs`` is in them."""
    made = []
    for hierarchy in hierarchies():
        for folder in (hierarchy / box, hierarchy / box / host):
            folder.mkdir(exist_ok=True)
            for inherited in ("cpuset.cpus", "cpuset.mems"):
                # A new v1 cpuset is empty, and takes no process until it has processors and memory.
                if (folder / inherited).exists() and hierarchy.name == "cpuset":
                    (folder / inherited).write_text((folder.parent / inherited).read_text())
        made.append(hierarchy / box / host)
    return made


def remove(box: str) -> list[Path]:
    """Removes the cgroups of a box, which has ended; returns those that are still in use."""
    left = []
    for hierarchy in hierarchies():
        top = hierarchy / box
        if not top.is_dir():
            continue
        for folder in sorted(top.rglob("*"), key=lambda path: -len(path.parts)):
            if folder.is_dir():
                with contextlib.suppress(OSError):
                    folder.rmdir()
        with contextlib.suppress(OSError):
            top.rmdir()
        if top.exists():
            left.append(top)
    return left


def sweep(older: float = 3600.0) -> None:
    """Removes what boxes left that were killed before they could clean up. Cgroups in use cannot be removed."""
    for hierarchy in hierarchies():
        for left in hierarchy.glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > older:
                    remove(left.name)


def processes(box: str) -> list[int]:
    """Who is in the cgroups of a box, as seen from the caller's PID namespace."""
    found = set()
    for hierarchy in hierarchies():
        for listed in (hierarchy / box).rglob("cgroup.procs"):
            with contextlib.suppress(OSError):
                found |= {int(word) for word in listed.read_text().split()}
    return sorted(found)

"""The Debian root file system that all hosts share, made once and kept in the project's cache.

It comes from the machine's own apt sources, so no mirror is named here. ``python -m tests.e2e.box rootfs`` makes it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from rebootd.consul.binary import UnavailableError, default_cache, locate
from tests.e2e.box import cgroups

PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "udev", "kmod", "libnss-systemd", "netbase", "procps"),
    *("iproute2", "iputils-ping", "python3", "ca-certificates", "curl", "haproxy"),
)
TOOLS = ("systemd-nspawn", "mmdebstrap", "unshare", "nsenter", "ip", "mount", "apt-get")
_PATIENCE = 600.0
"""Seconds that making it may take; a minute is usual."""
_PROBE = """mount -t tmpfs probe /run; cd /run; mkdir lower upper work root
mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay root; ip link add probe type bridge"""
_LEAN = ("--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*")


class NoBoxError(Exception):
    """The box cannot be built here; the message says what is missing."""


def missing() -> str:
    """What this machine lacks for the box, or ``""``."""
    lacks = [] if os.geteuid() == 0 else ["root"]
    lacks += [tool for tool in TOOLS if shutil.which(tool) is None]
    if not Path("/proc/sys/fs/overlayfs").exists() and "overlay" not in Path("/proc/filesystems").read_text():
        lacks.append("overlayfs")
    try:
        locate()
    except UnavailableError as error:
        lacks.append(str(error))
    if not lacks:
        refused = _refused()
        lacks += [f"more rights than this machine gives ({refused})"] if refused else []
    return "the box needs " + ", ".join(lacks) if lacks else ""


def _refused() -> str:
    """What root may not do here, as in most containers; ``""`` if all that the box does is allowed."""
    if not any(os.access(group, os.W_OK) for group in cgroups.hierarchies()):
        return "no cgroup can be written"
    command = [
        "unshare",
        "--mount",
        "--net",
        "--pid",
        "--propagation",
        "private",
        "--fork",
        "--mount-proc",
        "sh",
        "-ec",
    ]
    done = subprocess.run([*command, _PROBE], capture_output=True, text=True, timeout=20, check=False)
    return " ".join(done.stderr.split()) if done.returncode else ""


def python() -> tuple[int, int]:
    """The version of the hosts' Python: ``(3, 11)`` on Debian 12."""
    major, minor = (make() / "usr/bin/python3").readlink().name.removeprefix("python").split(".")
    return int(major), int(minor)


def cached() -> Path | None:
    """The root file system, if it was made before."""
    tree = _place()
    return tree if (tree / "usr/lib/systemd/systemd").exists() else None


def make() -> Path:
    """The root file system; made if need be, which takes a minute. Raises :class:`NoBoxError`."""
    place = _place()
    place.parent.mkdir(parents=True, exist_ok=True)
    with (place.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if cached() is None:
            _make(place)
    return place


def _place() -> Path:
    wanted = hashlib.sha256(repr((PACKAGES, _LEAN, _suite())).encode()).hexdigest()[:12]
    return default_cache() / "box" / f"rootfs-{wanted}"


def _make(place: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="making-", dir=place.parent) as scratch:
        listed = Path(scratch) / "sources.list"
        listed.write_text("".join(f"{line}\n" for line in _sources()), encoding="utf-8")
        # Beside its final place, so that it appears whole or not at all.
        tree = Path(scratch) / "tree"
        command = ["mmdebstrap", "--variant=minbase", "--mode=root", f"--include={','.join(PACKAGES)}", *_LEAN]
        done = subprocess.run(
            ["nice", "-n", "10", *command, _suite(), str(tree), str(listed)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
            check=False,
        )
        if done.returncode != 0:
            raise NoBoxError("mmdebstrap: " + " / ".join(done.stderr.strip().splitlines()[-3:]))
        tree.rename(place)


def _suite() -> str:
    for line in Path("/etc/os-release").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition("=")
        if name == "VERSION_CODENAME":
            return value.strip('"')
    return "unknown"


def _sources() -> list[str]:
    """The machine's own Debian sources of its suite, as lines of a sources.list."""
    form = "deb $(SITE) $(RELEASE) $(COMPONENT)|$(LABEL)|$(ORIGIN)"
    told = subprocess.run(
        ["apt-get", "indextargets", "--format", form, "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=False,
    )
    rows = [line.split("|") for line in told.stdout.splitlines()]
    lines = sorted({row[0] for row in rows if row[-1] == "Debian"})
    if not lines:
        raise NoBoxError("apt has no Debian sources to make a root file system from")
    return lines

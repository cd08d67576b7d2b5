"""Which sources fit the distribution (``detect: auto``), as told by os-release(5)."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

OS_RELEASE = ("/etc/os-release", "/usr/lib/os-release")
OSTREE_BOOTED = Path("/run/ostree-booted")
"""Made by the boot of an image; the tools alone prove nothing, since people build images with them elsewhere."""


def os_release(paths: tuple[str, ...] = OS_RELEASE) -> dict[str, str]:
    """The words of the first of the files that can be read; none when there is none."""
    for path in paths:
        try:
            lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        found: dict[str, str] = {}
        for line in lines:
            name, separator, value = line.strip().partition("=")
            if separator and not name.startswith("#"):
                try:
                    found[name] = " ".join(shlex.split(value))
                except ValueError:
                    continue
        return found
    return {}


def sources(words: dict[str, str], *, image: bool, has: Callable[[str], object] = shutil.which) -> tuple[str, ...]:
    """The sources for a system with these words in its os-release; ``image``: it was booted from an ostree image.

    Image-based systems come first, since they call themselves Fedora or RHEL too. A system that is not known here is
    judged by its kernels alone.
    """
    family = {words.get("ID", ""), *words.get("ID_LIKE", "").split()}
    if image:
        return ("rpm-ostree",) if has("rpm-ostree") else ("bootc",)
    if "flatcar" in family:
        return ("update-engine",)
    if family & {"fedora", "rhel", "centos"}:
        return ("needs-restarting",)
    if family & {"suse", "opensuse", "sles"}:
        return ("zypper",)
    if family & {"debian", "ubuntu"}:
        return ("file", "kernel")
    return ("kernel",)

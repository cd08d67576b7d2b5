"""Finding a Consul program, for the demo and the tests; a real fleet brings its own.

Looked for in this order: ``$CONSUL_BIN``, ``PATH``, the project cache, and Debian's package (``SUITE``, the last suite
of Debian that has one), fetched with the machine's own apt mirror, its signatures checked, and unpacked into the cache
without root. ``python -m rebootd.consul.binary`` prints the path, or the reason why there is none (exit code 1).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Iterator

SUITE = "bullseye"
_PATIENCE = 180.0
"""Seconds that one apt command may take."""

log = structlog.get_logger(__name__)


class UnavailableError(Exception):
    """No Consul program can be had; the message tells why."""


def default_cache() -> Path:
    """``$XDG_CACHE_HOME/rebootd``, or ``~/.cache/rebootd``."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "rebootd"


def find_consul(cache: Path | None = None) -> Path | None:
    """A Consul program, or None; then the log tells why (:func:`locate` raises it instead).

    ``cache`` is the folder that a fetched one is kept in. Blocks for some seconds when it has to fetch.
    """
    try:
        return locate(cache)
    except UnavailableError as error:
        log.warning("no Consul program", reason=str(error))
        return None


def locate(cache: Path | None = None) -> Path:
    """As :func:`find_consul`, but raises :class:`UnavailableError` with the reason."""
    named = os.environ.get("CONSUL_BIN")
    if named:
        if os.access(named, os.X_OK) and Path(named).is_file():
            return Path(named).absolute()
        raise UnavailableError(f"CONSUL_BIN names {named}, which is not an executable file")
    on_path = shutil.which("consul")
    if on_path:
        return Path(on_path).absolute()
    folder = cache if cache is not None else default_cache()
    kept = folder / "consul" / "usr" / "bin" / "consul"
    if kept.is_file():
        return kept.absolute()
    try:
        with _locked(folder):
            if not kept.is_file():
                _fetch(folder)
    except OSError as error:
        raise UnavailableError(f"the cache {folder} cannot be used: {error}") from error
    if not kept.is_file():
        raise UnavailableError("the package of Consul holds no usr/bin/consul")
    return kept.absolute()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "consul.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _fetch(folder: Path) -> None:
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise UnavailableError(f"no consul on PATH, and no {tool} to fetch Debian's package with")
    site = _mirror()
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=folder) as scratch:
        work = Path(scratch)
        for name in ("lists/partial", "cache/archives/partial", "parts", "out"):
            (work / name).mkdir(parents=True)
        (work / "status").touch()
        (work / "sources.list").write_text(f"deb {site} {SUITE} main\n", encoding="utf-8")
        options = {
            "Dir::Etc::sourcelist": work / "sources.list",
            "Dir::Etc::sourceparts": work / "parts",
            "Dir::State::Lists": work / "lists",
            "Dir::State::status": work / "status",
            "Dir::Cache": work / "cache",
            "Debug::NoLocking": 1,
            "APT::Sandbox::User": "",
            "APT::Update::Error-Mode": "any",
        }
        apt = ["apt-get", "-q", *(part for name, value in options.items() for part in ("-o", f"{name}={value}"))]
        _run([*apt, "update"], work / "out")
        _run([*apt, "download", "consul"], work / "out")
        packages = sorted((work / "out").glob("consul_*.deb"))
        if not packages:
            raise UnavailableError(f"apt downloaded no package of Consul from {site} {SUITE}")
        _run(["dpkg-deb", "-x", str(packages[-1]), str(work / "tree")], work)
        target = folder / "consul"
        shutil.rmtree(target, ignore_errors=True)
        # Whole or not at all: others see the folder only when it is complete.
        (work / "tree").rename(target)


def _mirror() -> str:
    """The site that most of the machine's own package lists come from."""
    listed = _run(["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"], Path.cwd())
    sites = Counter(line.strip() for line in listed.splitlines() if line.strip())
    if not sites:
        raise UnavailableError("no consul on PATH, and apt has no sources to fetch Debian's package from")
    return sites.most_common(1)[0][0]


def _run(command: list[str], folder: Path) -> str:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=_PATIENCE, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"{command[0]} took longer than {_PATIENCE:g} s") from error
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise UnavailableError(f"{command[0]} {command[-1]}: {said[-1] if said else done.returncode}")
    return done.stdout


def main() -> int:
    """Prints the path of a Consul program; exit code 1 with the reason when there is none."""
    try:
        path = locate()
    except UnavailableError as error:
        print(f"no Consul program: {error}", file=sys.stderr)
        return 1
    print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

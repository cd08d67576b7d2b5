"""Finding programs of others, for the demo and the tests; a real fleet brings its own.

Each is looked for in this order: its environment variable (``$CONSUL_BIN``), ``PATH``, the project cache, and Debian's
package, fetched with the machine's own apt mirror, its signatures checked, and unpacked into the cache without root.
Consul's package comes from ``SUITE``, the last suite of Debian that has one; others from the machine's own suites.
``python -m rebootd.consul.binary`` prints the path of Consul, or the reason why there is none (exit code 1).
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
from typing import TYPE_CHECKING, NamedTuple

import structlog

if TYPE_CHECKING:
    from collections.abc import Iterator

SUITE = "bullseye"
_PATIENCE = 180.0
"""Seconds that one apt command may take."""

log = structlog.get_logger(__name__)


class Program(NamedTuple):
    """A program, the environment variable that may name it, and Debian's package of it.

    ``suite`` ``""`` is the suites that the machine has its own packages from.
    """

    name: str
    variable: str
    package: str
    suite: str = ""


CONSUL = Program("consul", "CONSUL_BIN", "consul", SUITE)
PROMETHEUS = Program("prometheus", "PROMETHEUS_BIN", "prometheus")
ALERTMANAGER = Program("prometheus-alertmanager", "ALERTMANAGER_BIN", "prometheus-alertmanager")


class UnavailableError(Exception):
    """The program cannot be had; the message tells why."""


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


def locate(cache: Path | None = None, program: Program = CONSUL) -> Path:
    """As :func:`find_consul`, for any program, but raises :class:`UnavailableError` with the reason."""
    named = os.environ.get(program.variable)
    if named:
        if os.access(named, os.X_OK) and Path(named).is_file():
            return Path(named).absolute()
        raise UnavailableError(f"{program.variable} names {named}, which is not an executable file")
    on_path = shutil.which(program.name)
    if on_path:
        return Path(on_path).absolute()
    folder = cache if cache is not None else default_cache()
    kept = folder / program.package / "usr" / "bin" / program.name
    if kept.is_file():
        return kept.absolute()
    try:
        with _locked(folder, program):
            if not kept.is_file():
                _fetch(folder, program)
    except OSError as error:
        raise UnavailableError(f"the cache {folder} cannot be used: {error}") from error
    if not kept.is_file():
        raise UnavailableError(f"the package of {program.name} holds no usr/bin/{program.name}")
    return kept.absolute()


@contextmanager
def _locked(folder: Path, program: Program) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{program.package}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _fetch(folder: Path, program: Program) -> None:
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise UnavailableError(f"no {program.name} on PATH, and no {tool} to fetch Debian's package with")
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=folder) as scratch:
        work = Path(scratch)
        (work / "out").mkdir()
        apt = _apt_of_suite(work, program) if program.suite else ["apt-get", "-q", "-o", "APT::Sandbox::User="]
        _run([*apt, "download", program.package], work / "out")
        packages = sorted((work / "out").glob(f"{program.package}_*.deb"))
        if not packages:
            raise UnavailableError(f"apt downloaded no package of {program.name}")
        _run(["dpkg-deb", "-x", str(packages[-1]), str(work / "tree")], work)
        target = folder / program.package
        shutil.rmtree(target, ignore_errors=True)
        # Whole or not at all: others see the folder only when it is complete.
        (work / "tree").rename(target)


def _apt_of_suite(work: Path, program: Program) -> list[str]:
    """An apt-get that knows nothing but the program's suite, with its lists read."""
    site = _mirror(program)
    for name in ("lists/partial", "cache/archives/partial", "parts"):
        (work / name).mkdir(parents=True)
    (work / "status").touch()
    (work / "sources.list").write_text(f"deb {site} {program.suite} main\n", encoding="utf-8")
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
    return apt


def _mirror(program: Program) -> str:
    """The site that most of the machine's own package lists come from."""
    listed = _run(["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"], Path.cwd())
    sites = Counter(line.strip() for line in listed.splitlines() if line.strip())
    if not sites:
        raise UnavailableError(f"no {program.name} on PATH, and apt has no sources to fetch Debian's package from")
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

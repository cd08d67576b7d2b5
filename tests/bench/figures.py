"""Figures, how they are shown, and the page that keeps them."""

from __future__ import annotations

import math
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import msgspec
from rich.console import Console
from rich.table import Table

from rebootd.consul.binary import locate

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
BEGIN = "<!-- figures: begin (written by `make bench`) -->"
END = "<!-- figures: end -->"


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table. ``met`` None: the figure is stated, it has no limit."""

    what: str
    value: str
    beside: str = ""
    limit: str = ""
    met: bool | None = None

    @property
    def verdict(self) -> str:
        """``pass``, ``MISS`` or ``stated``."""
        return "stated" if self.met is None else "pass" if self.met else "MISS"


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` (0 to 1) of ``values`` lie: the nearest rank, so it is always one of them."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def ms(seconds: float) -> str:
    """Seconds as milliseconds for people."""
    return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"


def mb(size: float) -> str:
    """Bytes as megabytes for people."""
    return f"{size / 1e6:.0f} MB"


def show(figures: Iterable[Figure]) -> None:
    """Prints the table."""
    table = Table("figure", "measured", "beside", "limit", "")
    for f in figures:
        colour = {"pass": "green", "MISS": "red bold", "stated": "dim"}[f.verdict]
        table.add_row(f.what, f.value, f.beside, f.limit, f"[{colour}]{f.verdict}[/]")
    Console(width=None if os.isatty(1) else 170).print(table)


def write(figures: Sequence[Figure], load: float) -> None:
    """Replaces the generated part of the page. ``load`` is the machine's load average before the bench began."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not rest or not after:
        raise ValueError(f"{PAGE.name} has lost its marks {BEGIN} and {END}")
    rows = ["| figure | measured | beside | limit | |", "|---|---|---|---|---|"]
    rows += [f"| {f.what} | {f.value} | {f.beside} | {f.limit} | {f.verdict} |" for f in figures]
    PAGE.write_text("\n".join([before + BEGIN, "", machine(load), "", *rows, "", END + after]), encoding="utf-8")


def machine(load: float) -> str:
    """The machine and the day, in a few sentences."""
    version = subprocess.run([str(locate()), "version"], capture_output=True, text=True, check=True, timeout=20).stdout
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (
        f"Taken on {datetime.now(UTC):%Y-%m-%d} with {len(os.sched_getaffinity(0))} cores of {_processor()} "
        f"and {memory / 1e9:.0f} GB of memory, {platform.system()} {platform.release().partition('-')[0]}, "
        f"Python {platform.python_version()}, aiohttp {aiohttp.__version__}, {version.splitlines()[0]}. "
        "The simulated machines, the daemons and Consul's servers share these cores. "
        f"The load average before the bench began was {load:.1f}."
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())

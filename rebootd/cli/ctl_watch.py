"""What ``rebootctl cycle watch`` draws: live bars on a terminal, lines elsewhere."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import click
import msgspec

from rebootd.api.shapes import CycleShow
from rebootd.cli.ctl_common import STYLES, clean, console, text
from rebootd.cli.ctl_cycle import progress_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from rich.console import RenderableType
    from rich.live import Live

    from rebootd.core.counts import Counts

_shows = msgspec.json.Decoder(CycleShow)


class Output(Protocol):
    """Where progress goes."""

    def show(self, raw: bytes) -> str:
        """Shows an answer; returns the cycle's state."""
        ...

    def lost(self, said: str) -> None:
        """Says that nobody answers at present."""
        ...


class Lines:
    """One line for each change, as text or JSON."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._last: object = None
        self._silent = False

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        return None

    def show(self, raw: bytes) -> str:
        """Prints a line if anything changed since the last one."""
        s = _shows.decode(raw)
        changed = (s.cycle, s.counts, s.racks, s.machines, s.failed)
        if changed != self._last:
            click.echo(raw.decode() if self._as_json else progress_line(s))
            self._last = changed
        self._silent = False
        return s.cycle.state.value

    def lost(self, said: str) -> None:
        """Says so once for each time that the leader is lost."""
        if not self._silent:
            click.echo(f"rebootctl: {clean(said)}", err=True)
        self._silent = True


class Screen:
    """Live bars by rack."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._last: CycleShow | None = None

    def show(self, raw: bytes) -> str:
        """Redraws."""
        self._last = _shows.decode(raw)
        self._live.update(draw(self._last, self._live.console.height), refresh=True)
        return self._last.cycle.state.value

    def lost(self, said: str) -> None:
        """Redraws what was last known, and says that it is old."""
        from rich.console import Group

        known = [draw(self._last, self._live.console.height - 1)] if self._last else []
        self._live.update(Group(*known, text(said, "bold yellow")), refresh=True)


@contextmanager
def screen() -> Iterator[Screen]:
    """Live bars on the terminal; what was last drawn stays."""
    from rich.live import Live

    with Live(console=console(), auto_refresh=False, transient=False, vertical_overflow="crop") as live:
        yield Screen(live)


def draw(s: CycleShow, height: int) -> RenderableType:
    """The whole picture in at most ``height`` lines: racks at work first, then those still to go."""
    from rich.console import Group
    from rich.table import Table

    grid = Table.grid(padding=(0, 2, 0, 0))
    ordered = sorted(s.racks.items(), key=lambda item: (not item[1].out, _finished(item[1]), item[0]))
    room = max(3, height - 8)
    for rack, counts in ordered[:room]:
        grid.add_row(text(rack or "?", "bold" if counts.out else ""), _bar(counts), _said(counts))
    lines: list[RenderableType] = [text(progress_line(s), STYLES.get(s.cycle.state.value, "")), grid]
    if len(ordered) > room:
        left = sum(1 for _, counts in ordered[room:] if not _finished(counts))
        lines.append(text(f"... and {len(ordered) - room} more racks, {left} of them not finished"))
    lines += [text(f"{r.machines} wait: {r.blocker.what}", "dim", s.now) for r in s.blockers[:3]]
    return Group(*lines)


def _finished(c: Counts) -> bool:
    return not (c.out or c.waiting)


def _bar(c: Counts) -> RenderableType:
    from rich.progress_bar import ProgressBar

    style = "red" if c.failed else "green"
    return ProgressBar(
        total=max(1, c.selected),
        completed=c.selected - c.out - c.waiting,
        width=40,
        complete_style=style,
        finished_style=style,
    )


def _said(c: Counts) -> RenderableType:
    parts = [f"{c.rebooted}/{c.selected}"]
    parts += [f"{n} {word}" for n, word in ((c.out, "out"), (c.failed, "failed"), (c.skipped, "skipped")) if n]
    return text(", ".join(parts), "red" if c.failed else "")

"""What the demo shows: racks and machines moving on a terminal, or one plain line per transition elsewhere."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rebootd.core.model import State

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rebootd.cli.demo_events import Tally
    from rebootd.core.model import Event

STYLES = {
    "": "dim",
    State.IN_SERVICE: "green",
    State.DRAINING: "yellow",
    State.DRAINED: "bold yellow",
    State.REBOOTING: "bold white on red",
    State.VERIFYING: "cyan",
    State.ENABLING: "bold cyan",
    State.HELD: "magenta",
    State.QUARANTINED: "bold red",
}
WIDE = 240
"""Columns of output that goes to a file or pipe: nothing is folded there."""
FEW = 5
"""Machines of a rack that are shown with their state in words; more are shown as one mark each."""
NOTES = 4


def make_console() -> Console:
    """Standard output."""
    made = Console(highlight=False)
    return made if made.is_terminal or "COLUMNS" in os.environ else Console(highlight=False, width=WIDE)


class Screen:
    """Shows a tally. ``leader`` and ``phase`` are shown above it; :meth:`note` tells of what is no transition."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or make_console()
        self._live: Live | None = None
        self._tally: Tally | None = None
        self._notes: list[Text] = []
        self._began = time.monotonic()
        self.leader = ""
        self.phase = ""

    def begin(self, tally: Tally) -> None:
        """Begins to show the fleet, on a terminal live."""
        self._tally = tally
        if self._console.is_terminal:
            self._live = Live(self._picture(), console=self._console, auto_refresh=False, transient=False)
            self._live.start()

    def refresh(self) -> None:
        """Draws the present picture."""
        if self._live is not None:
            self._live.update(self._picture(), refresh=True)

    def end(self) -> None:
        """Draws the last picture and leaves it standing."""
        if self._live is not None:
            self._live.update(self._picture(), refresh=True)
            self._live.stop()
            self._live = None

    def note(self, text: str, style: str = "bold") -> None:
        """Something that is no event of the fleet, such as that the leader was killed."""
        stamped = f"{time.strftime('%H:%M:%S')} {text}"
        if self._live is None:
            self.say(stamped, style)
        else:
            self._notes = [*self._notes, Text(stamped, style)][-NOTES:]
            self.refresh()

    def event(self, event: Event) -> None:
        """One event of the fleet; drawn with the next picture, or told as a line."""
        if self._live is None:
            self.say(described(event))

    def say(self, text: str, style: str = "") -> None:
        """A line of its own."""
        self._console.print(Text(text, style), soft_wrap=True)

    def show(self, renderable: RenderableType) -> None:
        """Anything else, below everything."""
        self._console.print(renderable)

    def _picture(self) -> RenderableType:
        tally = self._tally
        if tally is None:
            return Text("")
        total, done = len(tally.states), len(tally.rebooted)
        head = Table.grid(padding=(0, 2))
        seconds = time.monotonic() - self._began
        head.add_row(
            Text("rebootd demo", "bold"),
            Text(f"{seconds:3.0f} s"),
            ProgressBar(total=total, completed=done, width=24),
            Text(f"{done}/{total} rebooted"),
        )
        facts = Text.assemble(("leader ", "dim"), self.leader or "none", ("   epoch ", "dim"), str(tally.epoch))
        facts.append(f"   {self.phase}", "italic")
        racks = Table.grid(padding=(0, 2))
        for rack, names in tally.racks.items():
            racks.add_row(Text(rack, "bold"), *_cells(tally, names))
        events = [Text(described(event), _style(event), no_wrap=True, overflow="ellipsis") for event in tally.recent]
        return Group(head, facts, Text(), racks, Text(), *events, *self._notes)


def _cells(tally: Tally, names: list[str]) -> list[Text]:
    if len(names) > FEW:
        return [Text("■", STYLES.get(tally.states[name], "")) for name in names]
    cells = []
    for name in names:
        state = tally.states[name]
        mark = "✓" if name in tally.rebooted else "·"
        cells.append(Text(f"{mark} {state or 'starting':<11}", STYLES.get(state, "")))
    return cells


def _style(event: Event) -> str:
    return STYLES.get(event.to, "dim") if event.kind == "transition" else "dim"


def described(event: Event) -> str:
    """``06:45:25 r1 r1-m2 in-service -> draining (taken out for kernel-6.12.9)``."""
    at = time.strftime("%H:%M:%S", time.localtime(event.time))
    if event.kind != "transition":
        return f"{at} {event.kind} {event.machine} {event.cause} {event.detail}".rstrip()
    return f"{at} {event.rack} {event.machine} {event.frm or '(new)'} -> {event.to} ({event.cause})"

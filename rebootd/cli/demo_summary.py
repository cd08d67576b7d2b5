"""What came of a demo: the figures, and whether it went as it must."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec
from rich.table import Table
from rich.text import Text

from rebootd.core.model import State

if TYPE_CHECKING:
    from rich.console import RenderableType


class Failover(msgspec.Struct, kw_only=True):
    """What the kill of the leader cost. Seconds from SIGKILL to the next leader's first fenced ``commit`` (its epoch)
    and to the first machine that ``moved`` under it; None while it has not happened. ``at`` is the time of the kill.
    """

    killed: str = ""
    at: float = 0.0
    epoch: int = 0
    commit: float | None = None
    moved: float | None = None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one run. ``boots`` are counted by the supervisor, ``states`` told by the leader at the end,
    ``most_racks`` and ``most_out`` taken from the events; ``kill`` says whether the leader was to be killed.
    """

    machines: tuple[str, ...]
    states: dict[str, str]
    boots: dict[str, int]
    crashes: int
    rebooted: int
    failed: int
    most_racks: int
    most_out: int
    failover: Failover
    kill: bool
    seconds: float
    problem: str = ""

    @property
    def problems(self) -> list[str]:
        """Why it did not go as it must; empty if it did."""
        found = [self.problem] if self.problem else []
        for name in self.machines:
            if self.boots.get(name, 0) != 1:
                found.append(f"{name} was rebooted {self.boots.get(name, 0)} times")
            if self.states.get(name) != State.IN_SERVICE:
                found.append(f"{name} is {self.states.get(name, 'unknown')}")
        if self.most_racks > 1:
            found.append(f"{self.most_racks} racks were open at once")
        if self.kill and self.failover.commit is None:
            found.append("no leader followed the one that was killed" if self.failover.killed else "nobody was killed")
        return found

    def table(self) -> RenderableType:
        """The summary."""
        boots = Counter(self.boots.get(name, 0) for name in self.machines)
        each = ", ".join(f"{times} x {count} machines" for times, count in sorted(boots.items()))
        once = f"1 each ({boots[1]} of {len(self.machines)})"
        rows = [
            ("machines rebooted", f"{self.rebooted} of {len(self.machines)}"),
            ("failed", str(self.failed)),
            ("reboots per machine", once if set(boots) == {1} else each),
            ("most racks open at once", str(self.most_racks)),
            ("most machines out at once", str(self.most_out)),
            ("failover time", self._failover()),
            ("took", f"{self.seconds:.0f} s"),
        ]
        if self.crashes:
            rows.insert(3, ("agents that ended unasked", str(self.crashes)))
        table = Table.grid(padding=(0, 3))
        for name, value in rows:
            table.add_row(Text(name, "dim"), Text(value, "bold"))
        problems = self.problems
        for problem in problems[:12]:
            table.add_row(Text("problem", "bold red"), Text(problem, "red"))
        verdict = "went wrong" if problems else "every machine rebooted exactly once and is in service"
        table.add_row(Text("verdict", "dim"), Text(verdict, "bold red" if problems else "bold green"))
        return table

    def _failover(self) -> str:
        over = self.failover
        if not over.killed:
            return "nobody was killed"
        if over.commit is None:
            return f"{over.killed} was killed, and nobody followed"
        moved = f", {over.moved:.2f} s to the first machine that moved" if over.moved is not None else ""
        return f"{over.commit:.2f} s from SIGKILL to the next leader's first commit{moved}"

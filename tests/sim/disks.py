"""Simulated disks: one file that survives whatever happens to processes."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.sim.loop import ProcessDied

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.sim.machines import Machine


class SimDisk:
    """Implements :class:`rebootd.agent.journal_file.Disk`; survives whatever happens to processes."""

    path = Path("/var/lib/rebootd/journal.json")

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.data: bytes | None = None
        self.full = 0
        self.writes = 0
        self.cut = ""
        """``before`` or ``after``: the next write is where the agent is killed."""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process writes at a time anyway."""
        yield

    def read(self) -> bytes:
        """What is on disk."""
        if self.data is None:
            raise FileNotFoundError
        return self.data

    def replace(self, data: bytes) -> None:
        """All or nothing, as rename is."""
        process = self._machine.process
        if process is not None:
            process.here()
        counts = self._machine.world.checks.counts
        if self.full:
            counts["hit disk-full"] += 1
            raise OSError(errno.ENOSPC, "no space left on device")
        cut, self.cut = self.cut, ""
        counts["hit cut-write"] += bool(cut)
        if cut == "before" and process is not None:
            process.kill()
            raise ProcessDied
        self.data = data
        self.writes += 1
        self._machine.journaled()
        if cut and process is not None:
            process.kill()
            raise ProcessDied

    def stamp(self) -> tuple[int, int, int] | None:
        """Counts writes."""
        return (1, self.writes, 1) if self.data is not None else None

    def set_aside(self) -> Path:
        """The damaged file is gone."""
        self.data = None
        return Path("/var/lib/rebootd/journal.json.corrupt")

"""Changes that were refused at the door, in the audit log: who was turned away, from what, and why.

Whoever may show a certificate may ask as often as the network allows, and must not fill the disk with it: each identity
has so many lines in a window of time, and what is left out is counted and told in one line at the window's end.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from rebootd.coordinator.audit import tell
from rebootd.core.audit import of_refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebootd.coordinator.audit_file import AuditFile
    from rebootd.core.audit import Asked

LINES = 10
"""Lines of one identity in a window."""
WINDOW = 600.0
"""Seconds of a window, which begins with the identity's first refusal."""
IDENTITIES = 64
"""Identities with a window of their own at a time; all others share one."""
OTHERS = ("", "")


class _Window:
    def __init__(self) -> None:
        self.lines = 0
        self.left_out = 0
        self.last: Asked | None = None


class Refusals:
    """One per daemon, also where it does not lead. ``file`` gives its audit file, if it has one by now."""

    def __init__(self, file: Callable[[], AuditFile | None], wall: Callable[[], float]) -> None:
        self._file = file
        self._wall = wall
        self._windows: dict[tuple[str, str], _Window] = {}

    def refused(self, asked: Asked, why: str) -> None:
        """Somebody who proved to be somebody asked for a change that he may not make."""
        who = (asked.caller.kind, asked.caller.identity)
        if who not in self._windows and len(self._windows) >= IDENTITIES:
            who = OTHERS
        window = self._windows.get(who)
        if window is None:
            window = self._windows[who] = _Window()
            asyncio.get_running_loop().call_later(WINDOW, self._end, who)
        if window.lines < LINES:
            window.lines += 1
            self._write(asked, why)
        else:
            window.left_out += 1
            window.last = asked

    def _end(self, who: tuple[str, str]) -> None:
        window = self._windows.pop(who)
        if window.last is not None:
            whose = "of many identities" if who == OTHERS else f"of {who[0]} {who[1]}"
            why = f"{window.left_out} more refusals {whose} were left out; this was the last of them"
            self._write(window.last, why)

    def _write(self, asked: Asked, why: str) -> None:
        file = self._file()
        line = of_refusal(asked, why, self._wall())
        if file is not None:
            line = msgspec.structs.replace(line, leader=file.daemon)
            file.later(line)
        tell(line, "")

"""Handshakes take turns, some milliseconds in each turn of the loop, so that a storm of them stops nobody else.

A handshake costs the loop about a millisecond, and after a leader's death ten thousand are wanted at once. What has
begun goes first: a handshake under way holds all that TLS needs, one that waits does not. Of those that wait, agents
and everybody else take turns, each by age: an operator or a scraper does not wait behind ten thousand agents, and
agents do not wait for ever, whoever else comes. Agents tell in their first words that they are some (``PATIENT``).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from rebootd.tls.listener import RECORD

if TYPE_CHECKING:
    from collections.abc import Callable

BUDGET = 0.005
"""Seconds of handshakes in one turn of the loop; the one that is under way then is ended."""


class Turns:
    """Belongs to one listener. Steps are called later, on the loop; one that is not wanted any more does nothing.

    ``buffer`` is what all its connections are read into, one after the other: whoever reads takes it out at once.
    """

    def __init__(self) -> None:
        self.buffer = bytearray(RECORD)
        self.view = memoryview(self.buffer)
        self._loop = asyncio.get_running_loop()
        self._begun: deque[Callable[[], None]] = deque()
        self._patient: deque[Callable[[], None]] = deque()
        self._others: deque[Callable[[], None]] = deque()
        self._patience = False
        self._going = False

    def begin(self, step: Callable[[], None], *, patient: bool = False) -> None:
        """The first step of a handshake."""
        (self._patient if patient else self._others).append(step)
        self._go()

    def go_on(self, step: Callable[[], None]) -> None:
        """A further one."""
        self._begun.append(step)
        self._go()

    @property
    def waiting(self) -> int:
        """How many handshakes have not begun."""
        return len(self._patient) + len(self._others)

    def _go(self) -> None:
        if not self._going:
            self._going = True
            self._loop.call_soon(self._run)

    def _run(self) -> None:
        end = self._loop.time() + BUDGET
        self._going = False
        while self._begun or self.waiting:
            self._next()()
            if self._loop.time() >= end:
                break
        if self._begun or self.waiting:
            self._go()

    def _next(self) -> Callable[[], None]:
        if self._begun:
            return self._begun.popleft()
        self._patience = bool(self._patient) and not (self._patience and self._others)
        return self._patient.popleft() if self._patience else self._others.popleft()

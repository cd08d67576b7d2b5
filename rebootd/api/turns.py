"""Handshakes take turns, some milliseconds in each turn of the loop, so that a storm of them stops nobody else.

A handshake costs the loop about a millisecond, and after a leader's death ten thousand are wanted at once. Agents and
everybody else take turns, each by age: an operator or a scraper does not wait behind ten thousand agents, and agents do
not wait for ever, whoever else comes. Agents tell in their first words that they are some (``PATIENT``). What has begun
goes before what has not: a handshake under way holds all that TLS needs, one that waits does not.
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


class _Line:
    def __init__(self) -> None:
        self.begun: deque[Callable[[], None]] = deque()
        self.new: deque[Callable[[], None]] = deque()

    def __bool__(self) -> bool:
        return bool(self.begun or self.new)

    def next(self) -> Callable[[], None]:
        return (self.begun or self.new).popleft()


class Turns:
    """Belongs to one listener. Steps are called later, on the loop; one that is not wanted any more does nothing.

    ``buffer`` is what all its connections are read into, one after the other: whoever reads takes it out at once.
    """

    def __init__(self) -> None:
        self.buffer = bytearray(RECORD)
        self.view = memoryview(self.buffer)
        self._loop = asyncio.get_running_loop()
        self._patient = _Line()
        self._others = _Line()
        self._last = self._others
        self._going = False

    def begin(self, step: Callable[[], None], *, patient: bool) -> None:
        """The first step of a handshake."""
        (self._patient if patient else self._others).new.append(step)
        self._go()

    def go_on(self, step: Callable[[], None], *, patient: bool) -> None:
        """A further one."""
        (self._patient if patient else self._others).begun.append(step)
        self._go()

    @property
    def waiting(self) -> int:
        """How many handshakes have not begun."""
        return len(self._patient.new) + len(self._others.new)

    def _go(self) -> None:
        if not self._going:
            self._going = True
            self._loop.call_soon(self._run)

    def _run(self) -> None:
        end = self._loop.time() + BUDGET
        self._going = False
        while self._patient or self._others:
            self._next()()
            if self._loop.time() >= end:
                break
        if self._patient or self._others:
            self._go()

    def _next(self) -> Callable[[], None]:
        due = self._patient if self._last is self._others else self._others
        if due:
            self._last = due
        return self._last.next()

"""Handshakes take turns, some milliseconds in each turn of the loop, so that a storm of them stops nobody else.

A handshake costs the loop about a millisecond, and after a leader's death ten thousand are wanted at once. What has
begun goes first: a handshake under way holds five times the memory of one that waits. Of those that wait, the oldest
and the newest take turns: an operator who comes late in the storm does not wait for all who came before, and nobody
waits for ever.
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
        self._new: deque[Callable[[], None]] = deque()
        self._newest = False
        self._going = False

    def begin(self, step: Callable[[], None]) -> None:
        """The first step of a handshake."""
        self._new.append(step)
        self._go()

    def go_on(self, step: Callable[[], None]) -> None:
        """A further one."""
        self._begun.append(step)
        self._go()

    def _go(self) -> None:
        if not self._going:
            self._going = True
            self._loop.call_soon(self._run)

    def _run(self) -> None:
        end = self._loop.time() + BUDGET
        self._going = False
        while self._begun or self._new:
            self._next()()
            if self._loop.time() >= end:
                break
        if self._begun or self._new:
            self._go()

    def _next(self) -> Callable[[], None]:
        if self._begun:
            return self._begun.popleft()
        self._newest = not self._newest
        return self._new.pop() if self._newest else self._new.popleft()

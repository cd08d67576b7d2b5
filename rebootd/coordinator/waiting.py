"""Agents whose requests are open, and the requests that wait to be judged by a tick."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container, Coroutine


class Waiting:
    """Parks requests by machine name; a newer request of the same machine lets the older one go."""

    def __init__(self) -> None:
        self._parked: dict[str, asyncio.Future[None]] = {}
        self._next: dict[str, asyncio.Future[None]] = {}
        self._due: dict[str, asyncio.Future[None]] = {}

    def __len__(self) -> int:
        return len(self._parked)

    def park(self, name: str, seconds: float) -> Coroutine[object, object, None]:
        """Returns when the machine is woken, or after ``seconds``."""
        return _wait(self._parked, name, seconds)

    def next_tick(self, name: str, seconds: float) -> Coroutine[object, object, None]:
        """Returns when a tick that began after now has judged the machine and committed, or after ``seconds``."""
        return _wait(self._next, name, seconds)

    def begin_tick(self) -> None:
        """The requests that came until now will be answered by this tick."""
        self._due, self._next = self._next, {}

    def judged(self, busy: Container[str]) -> None:
        """The tick has decided; machines that are not ``busy`` have no commit to wait for."""
        for name, future in self._due.items():
            if name not in busy:
                _finish(future)

    def end_tick(self, left: Container[str] = ()) -> None:
        """The tick has ended, its commits with it; machines that are ``left`` wait for the next."""
        for name, future in self._due.items():
            if name in left:
                self._next.setdefault(name, future)
            else:
                _finish(future)
        self._due = {}

    def wake(self, name: str) -> None:
        """The machine's record has changed."""
        for where in (self._parked, self._due):
            future = where.get(name)
            if future is not None:
                _finish(future)

    def wake_all(self) -> None:
        """The leader ends: everybody is let go."""
        for future in [*self._parked.values(), *self._next.values(), *self._due.values()]:
            _finish(future)


async def _wait(where: dict[str, asyncio.Future[None]], name: str, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    older = where.get(name)
    if older is not None:
        _finish(older)
    future = where[name] = loop.create_future()
    timer = loop.call_later(seconds, _finish, future)
    try:
        await future
    finally:
        timer.cancel()
        if where.get(name) is future:
            del where[name]


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)

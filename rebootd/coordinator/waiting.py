"""Agents whose requests are open, and the requests that wait for the end of a tick."""

from __future__ import annotations

import asyncio


class Waiting:
    """Parks requests by machine name; a newer request of the same machine lets the older one go."""

    def __init__(self) -> None:
        self._parked: dict[str, asyncio.Future[None]] = {}
        self._tick: list[asyncio.Future[None]] = []

    def __len__(self) -> int:
        return len(self._parked)

    async def park(self, name: str, seconds: float) -> None:
        """Returns when the machine is woken, or after ``seconds``."""
        loop = asyncio.get_running_loop()
        older = self._parked.get(name)
        if older is not None and not older.done():
            older.set_result(None)
        future = self._parked[name] = loop.create_future()
        timer = loop.call_later(seconds, _finish, future)
        try:
            await future
        finally:
            timer.cancel()
            if self._parked.get(name) is future:
                del self._parked[name]

    async def next_tick(self, seconds: float) -> None:
        """Returns when a tick that began after now has ended, or after ``seconds``."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._tick.append(future)
        timer = loop.call_later(seconds, _finish, future)
        try:
            await future
        finally:
            timer.cancel()

    def begin_tick(self) -> list[asyncio.Future[None]]:
        """The requests that this tick will answer."""
        due, self._tick = self._tick, []
        return due

    @staticmethod
    def end_tick(due: list[asyncio.Future[None]]) -> None:
        """The tick has ended, its commits with it."""
        for future in due:
            _finish(future)

    def wake(self, name: str) -> None:
        """The machine's record has changed."""
        future = self._parked.get(name)
        if future is not None:
            _finish(future)

    def wake_all(self) -> None:
        """The leader ends: everybody is let go."""
        for future in [*self._parked.values(), *self._tick]:
            _finish(future)


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)

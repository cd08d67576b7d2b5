"""Whether traffic has left this host: connections from elsewhere on its ports, as the kernel lists them.

Connections that last a millisecond are seen by luck only, so the time that a load balancer is given to notice the out
mark must be one in which it can: while nobody can read the mark in Consul, no time passes here.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
LOOK = 0.1
"""Seconds between two looks."""
ASK = 0.5
"""Seconds between two questions whether the mark can be read, and the longest that one of them may take."""
_CLOSED = frozenset({"06", "07", "0A"})
"""TIME_WAIT, CLOSE, LISTEN: every other state may still carry a request or its answer."""


class Traffic:
    """Waits until traffic has left. ``ports`` none: a fixed time of ``quiet`` seconds, without looking.

    ``quiet``: for so many seconds no connection must be seen, which is at least what a load balancer takes to notice
    the out mark. ``patience``: seconds after which it is given up. Connections of network namespaces other than the
    agent's are not seen.
    """

    def __init__(
        self, ports: Iterable[int], quiet: float, patience: float, look: Callable[[frozenset[int]], int] | None = None
    ) -> None:
        self._ports = frozenset(ports)
        self._quiet = quiet
        self._patience = patience
        self._look = look if look is not None else connections

    async def gone(self, shown: Callable[[], Awaitable[bool]]) -> str:
        """Returns ``""`` when it has left, or what is still there. ``shown``: whether others can read the mark now."""
        if not self._ports and not self._quiet:
            return ""
        sight = _Sight(shown)
        asking = asyncio.create_task(sight.keep())
        try:
            return await self._wait(sight)
        finally:
            asking.cancel()

    async def _wait(self, sight: _Sight) -> str:
        loop = asyncio.get_running_loop()
        start = last = loop.time()
        while True:
            try:
                left = self._look(self._ports) if self._ports else 0
            except OSError as error:
                return f"connections cannot be counted: {error}"
            if left or not sight.clear(loop.time()):
                last = loop.time()
            if loop.time() - last >= self._quiet:
                return ""
            if loop.time() - start >= self._patience + self._quiet:
                ports = ", ".join(map(str, sorted(self._ports)))
                why = f"{left} connections on {ports}" if left else "the out mark cannot be read in Consul"
                return f"traffic has not left within {self._patience:g} s: {why}"
            await asyncio.sleep(LOOK)


class _Sight:
    """Asks again and again whether the mark can be read."""

    def __init__(self, shown: Callable[[], Awaitable[bool]]) -> None:
        self._shown = shown
        self._seen = asyncio.get_running_loop().time()

    def clear(self, now: float) -> bool:
        """Whether it could be read a moment ago."""
        return now - self._seen <= 2 * ASK

    async def keep(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            asked = loop.time()
            try:
                async with asyncio.timeout(ASK):
                    if await self._shown():
                        self._seen = asked
            except TimeoutError:
                continue
            await asyncio.sleep(ASK)


def connections(ports: frozenset[int], tables: Iterable[Path] = TABLES) -> int:
    """How many connections from other hosts these ports have now. Raises ``OSError``.

    ``tables`` are in the format of ``/proc/net/tcp``; a missing one (no IPv6) has none.
    """
    found = 0
    for table in tables:
        try:
            rows = table.read_text(encoding="ascii").splitlines()[1:]
        except FileNotFoundError:
            continue
        for row in rows:
            _, local, remote, state = row.split(None, 4)[:4]
            if int(local.rpartition(":")[2], 16) in ports and state not in _CLOSED and not _loopback(remote):
                found += 1
    return found


def _loopback(remote: str) -> bool:
    """Health checks of the host's own Consul agent are no traffic."""
    address = remote.partition(":")[0]
    # Each word of 32 bits is in host order: 127.0.0.1 is 0100007F, ::ffff:127.0.0.1 ends so.
    if len(address) == 8 or address[:24] == "0000000000000000FFFF0000":
        return address.endswith("7F")
    return address == "00000000000000000000000001000000"

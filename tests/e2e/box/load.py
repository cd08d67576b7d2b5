"""An open-loop load generator: it sends at its rate whether answers come or not, so that nothing waits out a failure.

``python -m tests.e2e.box.load URL RATE SECONDS``: runs until SIGTERM or for SECONDS, and prints a line at the first
answer and one of JSON at the end, a :class:`Tally`. Every tenth request is a slow one. Each has a connection of its
own, and none is tried twice.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from urllib.parse import urlsplit

import msgspec

SLOW_EVERY = 10
PATIENCE = 10.0
"""Seconds after which an answer that did not come counts as lost."""
WORST = 50


class Lost(msgspec.Struct, frozen=True):
    """A request that failed: when it was sent (seconds since 1970), its path, and how it ended."""

    at: float
    path: str
    how: str


class Tally(msgspec.Struct, kw_only=True):
    """What was sent and what came of it. ``late``: the most that sending lagged behind its schedule, in seconds.

    ``by_host`` are the times (seconds since 1970) when the requests were sent that a host answered.
    """

    sent: int = 0
    slow: int = 0
    lost: int = 0
    seconds: float = 0.0
    late: float = 0.0
    slowest: float = 0.0
    by_host: dict[str, list[float]] = {}
    first_lost: list[Lost] = []

    def __str__(self) -> str:
        shares = ", ".join(f"{name} {len(times)}" for name, times in sorted(self.by_host.items()))
        worst = "".join(f"\n  {lost.at:.3f} {lost.path} {lost.how}" for lost in self.first_lost)
        return (
            f"{self.sent} sent in {self.seconds:.1f} s, {self.slow} slow, {self.lost} lost; "
            f"slowest {self.slowest:.2f} s, sending late by at most {self.late:.2f} s; {shares}{worst}"
        )


class Load:
    """Requests to ``url`` at ``rate`` a second."""

    def __init__(self, url: str, rate: float) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._rate = rate
        self._under_way: set[asyncio.Task[None]] = set()
        self.tally = Tally()

    async def run(self, seconds: float, stop: asyncio.Event) -> Tally:
        """Sends until the time is over or ``stop`` is set, then waits for the last answers."""
        loop, tally = asyncio.get_running_loop(), self.tally
        start = loop.time()
        while not stop.is_set() and loop.time() - start < seconds:
            due = start + tally.sent / self._rate
            now = loop.time()
            if now < due:
                await asyncio.sleep(due - now)
                continue
            tally.late = max(tally.late, now - due)
            path = "/slow" if tally.sent % SLOW_EVERY == 0 else "/fast"
            tally.sent += 1
            tally.slow += path == "/slow"
            task = asyncio.create_task(self._one(path))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
        tally.seconds = loop.time() - start
        if self._under_way:
            await asyncio.wait(self._under_way)
        return tally

    async def _one(self, path: str) -> None:
        at, start = time.time(), time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE):
                how, body = await self._ask(path)
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            how, body = type(error).__name__, b""
        self.tally.slowest = max(self.tally.slowest, time.monotonic() - start)
        if how == "200":
            if not self.tally.by_host:
                print("answered", flush=True)
            self.tally.by_host.setdefault(body.decode("utf-8", "replace"), []).append(round(at, 3))
            return
        self.tally.lost += 1
        if len(self.tally.first_lost) < WORST:
            self.tally.first_lost.append(Lost(at, path, how))

    async def _ask(self, path: str) -> tuple[str, bytes]:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n".encode())
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            return head.split(b" ")[1].decode(), body
        except IndexError:
            return "no answer", b""
        finally:
            writer.close()


async def main() -> None:
    """Runs with the words of the command line."""
    url, rate, seconds = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    tally = await Load(url, rate).run(seconds, stop)
    print(msgspec.json.encode(tally).decode(), flush=True)


if __name__ == "__main__":
    asyncio.run(main())

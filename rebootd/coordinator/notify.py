"""Tells chat, mail and webhooks what has happened, through apprise. Nothing ever waits for a receiver.

The leader's daemon follows its own events, as any other follower does: one that does not keep up is cut off. Each
receiver has a queue and a worker of its own, so that a dead one holds up no other. Where more happens than
:data:`BURST` messages may tell, what waits is told in one. An event whose leader dies in the same moment may not be
told: this is a courtesy, alerts are the alarm (docs/monitoring.md).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

import structlog
from tenacity import AsyncRetrying, RetryError, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from rebootd.core.errors import InvalidInput, NotLeader, Unreachable
from rebootd.core.notices import gathered, notice

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from rebootd.coordinator.desk import Office
    from rebootd.coordinator.metrics import Metrics
    from rebootd.core.notices import Notice

log = structlog.get_logger(__name__)

BURST = 5
"""Messages that one receiver gets in a row."""
EVERY = 60.0
"""Seconds after which it may get one more."""
TRIES = 5
LONGEST = 60.0
"""Seconds between two tries, at most."""
PATIENCE = 30.0
"""Seconds that one try may take."""
QUEUE = 200
LOOK = 0.2
BACK = 200
"""Events that are looked back at when leadership begins: those that it began with."""


class Receiver(Protocol):
    """Somebody to tell. ``name`` is fit for a log: it holds no secret."""

    name: str

    async def send(self, title: str, body: str) -> None:
        """One try. Raises ``Unreachable``."""
        ...


class _Apprise:
    def __init__(self, plugin: Any) -> None:
        self._plugin = plugin
        self.name = str(plugin.url(privacy=True)).split("?", maxsplit=1)[0][:200]

    async def send(self, title: str, body: str) -> None:
        if not await self._plugin.async_notify(title=title, body=body):
            raise Unreachable(f"{self.name} did not take it")


def receivers(path: Path) -> dict[str, Receiver]:
    """Who is named in the file, one URL of apprise's a line (``#`` begins a comment), by URL. The URLs are secrets.

    Raises ``InvalidInput``, which names lines and no URL.
    """
    try:
        import apprise  # noqa: PLC0415  # an extra: few fleets have it
    except ImportError:
        raise InvalidInput("notify-urls", str(path), "the extra: pip install 'rebootd[notify]'") from None
    # It logs by itself, and a URL may be in what it says.
    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput("notify-urls", str(path), f"a readable file ({error})") from None
    found: dict[str, Receiver] = {}
    for number, line in enumerate(lines, 1):
        url = line.strip()
        if not url or url.startswith("#"):
            continue
        plugin = apprise.Apprise.instantiate(url)
        if plugin is None:
            raise InvalidInput("notify-urls", f"{path}:{number}", "a URL that apprise knows (its page 'Supported')")
        found[url] = _Apprise(plugin)
    return found


class Telling:
    """One receiver's queue and worker."""

    def __init__(self, receiver: Receiver, metrics: Metrics) -> None:
        self._receiver = receiver
        self._metrics = metrics
        self._queue: deque[Notice] = deque()
        self._news = asyncio.Event()
        self._sent: deque[float] = deque(maxlen=BURST)

    def put(self, what: Notice) -> None:
        """Queues it; the oldest is dropped where too much waits."""
        if len(self._queue) >= QUEUE:
            self._queue.popleft()
            self._metrics.notifications.labels("dropped").inc()
        self._queue.append(what)
        self._news.set()

    async def run(self) -> None:
        """Until cancelled."""
        clock = asyncio.get_running_loop().time
        while True:
            await self._news.wait()
            if len(self._sent) == BURST:
                await asyncio.sleep(max(0.0, self._sent[0] + EVERY - clock()))
            waiting = list(self._queue)
            self._queue.clear()
            self._news.clear()
            if waiting:
                self._sent.append(clock())
                await self._tell(gathered(waiting), len(waiting))

    async def _tell(self, what: Notice, count: int) -> None:
        retrying = AsyncRetrying(
            retry=retry_if_exception_type((Unreachable, TimeoutError)),
            stop=stop_after_attempt(TRIES),
            wait=wait_random_exponential(multiplier=1.0, max=LONGEST),
        )
        try:
            async for attempt in retrying:
                with attempt:
                    async with asyncio.timeout(PATIENCE):
                        await self._receiver.send(f"rebootd: {what.title}", what.body)
        except RetryError as error:
            self._metrics.notifications.labels("failed").inc(count)
            last = error.last_attempt.exception()
            log.warning("notification-failed", receiver=self._receiver.name, what=what.title, error=str(last))
        else:
            self._metrics.notifications.labels("sent").inc(count)


class Notifications:
    """Belongs to a daemon, and works while that leads. The file of URLs is read again when it changes.

    Raises ``InvalidInput`` when it cannot be used at the start; later on, the receivers known stay.
    """

    def __init__(self, path: Path, kinds: Collection[str], metrics: Metrics) -> None:
        self._path = path
        self._kinds = frozenset(kinds)
        self._metrics = metrics
        self._seq = 0
        self._form = self._look()
        self._known = receivers(path)
        self._telling: dict[str, tuple[Telling, asyncio.Task[None]]] = {}

    async def run(self, office: Office) -> None:
        """Until cancelled."""
        try:
            while True:
                desk = office.desk()
                if desk is not None:
                    await self._follow(desk.follow, desk.epoch)
                await asyncio.sleep(LOOK)
        finally:
            for _, task in self._telling.values():
                task.cancel()

    async def _follow(self, follow: Callable[[int], Any], epoch: int) -> None:
        try:
            async for event in follow(BACK):
                # Of its own leadership alone, and each once: being cut off and coming back is no news.
                fresh = event.epoch == epoch and event.seq > self._seq
                self._seq = max(self._seq, event.seq)
                what = notice(event) if fresh else None
                if what is not None and what.kind in self._kinds:
                    self._refresh()
                    for telling, _ in self._telling.values():
                        telling.put(what)
        except NotLeader:
            pass

    def _refresh(self) -> None:
        form = self._look()
        if form != self._form:
            self._form = form
            try:
                self._known = receivers(self._path)
            except InvalidInput as error:
                log.warning("notify-urls-unusable", error=str(error))
        for url in self._telling.keys() - self._known.keys():
            self._telling.pop(url)[1].cancel()
        for url in self._known.keys() - self._telling.keys():
            telling = Telling(self._known[url], self._metrics)
            self._telling[url] = telling, asyncio.create_task(telling.run())

    def _look(self) -> tuple[int, int, int] | None:
        try:
            seen = self._path.stat()
        except OSError:
            return None
        return seen.st_ino, seen.st_mtime_ns, seen.st_size

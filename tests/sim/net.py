"""The network between agents and daemons: late, lost, repeated and refused messages; the real API logic at its end."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from rebootd.api import fleetlock, machines, table
from rebootd.api.app import _front
from rebootd.api.door import DOOR, Door
from rebootd.api.guard import Guard

if TYPE_CHECKING:
    import asyncio
    import random
    from collections.abc import Callable

    from rebootd.agent.client import Reply
    from rebootd.coordinator.desk import Office
    from tests.sim.loop import Process, SimLoop

CONNECT_TIMEOUT = 2.0
LOCK_ROUTES = {route.path: route.handler for route in fleetlock.ROUTES}


class Box:
    """A physical host: what is down with it, and what cannot reach it."""

    def __init__(self, name: str, rack: str) -> None:
        self.name = name
        self.rack = rack
        self.up = True
        self.offset = 0.0
        """Seconds by which its wall clock is wrong."""
        self.cut_agents = 0
        """More than 0: agents and daemons across this box do not reach each other."""
        self.cut_store = 0
        """More than 0: nothing on this box reaches Consul's servers."""

    @property
    def on_network(self) -> bool:
        """Whether messages between agents and daemons pass."""
        return self.up and not self.cut_agents


class Trouble:
    """How messages fare at present. Shares are probabilities, times seconds."""

    def __init__(self) -> None:
        self.lose = 0.0
        self.repeat = 0.0
        self.slow = 0.0
        self.slow_by = 0.0


class _Content:
    @staticmethod
    def is_eof() -> bool:
        return True


_CONTENT = _Content()


class _Match(dict[str, str]):
    """Which route a path has, and the parts of the path."""

    http_exception = None

    def __init__(self, handler: Any, path: str) -> None:
        # FleetLock's paths have no name in them.
        super().__init__({} if path in LOCK_ROUTES else {"name": path.split("/")[3]})
        self.handler = handler


class Request:
    """What the routes of the API look at, of an aiohttp request."""

    __slots__ = ("app", "body", "content_length", "headers", "host", "match_info", "method", "notes", "path")

    content = _CONTENT
    query: dict[str, str] = {}  # noqa: RUF012  nothing is ever written to it
    transport = None
    remote = "127.0.0.1"

    def __init__(
        self, app: dict[Any, Any], path: str, body: bytes, headers: dict[str, str], host: str, handler: Any
    ) -> None:
        self.app = app
        self.path = path
        self.body = body
        self.content_length = len(body)
        self.headers = headers
        self.host = host
        self.method = "POST"
        self.match_info = _Match(handler, path)
        self.notes: dict[Any, Any] = {}

    def get(self, key: Any, default: Any = None) -> Any:
        """What was noted on the request."""
        return self.notes.get(key, default)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.notes[key] = value

    @property
    def path_qs(self) -> str:
        """The path; our requests have no query."""
        return self.path

    async def read(self) -> bytes:
        """The body."""
        return self.body


class Api:
    """The machine routes of one daemon: the real door, handlers and error answers."""

    def __init__(self, office: Office) -> None:
        door = Door(office, table.ROUTES, Guard())
        self._app: dict[Any, Any] = {DOOR: door}
        self._front: Any = _front(door)

    async def handle(self, path: str, body: bytes, headers: dict[str, str], host: str) -> Reply:
        """One request through middleware and route."""
        handler = LOCK_ROUTES.get(path) or (machines._permit if path.endswith("/permit") else machines._report)
        response = await self._front(Request(self._app, path, body, headers, host, handler), handler)
        return response.status, {k.title(): v for k, v in response.headers.items()}, bytes(response.body or b"")


class Station:
    """A daemon as the network sees it. ``api`` None: nobody listens at its port."""

    def __init__(self, url: str, box: Box) -> None:
        self.url = url
        self.box = box
        self.process: Process | None = None
        self.api: Api | None = None
        self.open: dict[int, _Call] = {}

    def died(self) -> None:
        """The process ended: connections are reset if its host still can say so."""
        self.api = None
        calls, self.open = list(self.open.values()), {}
        for call in calls:
            if self.box.on_network:
                call.net.loop.after(call.net.latency(), call.fail, ConnectionResetError("connection reset by peer"))


class Net:
    """All stations, and the way to them. ``heard`` is told of what arrives: (kind, box, station, path, bytes)."""

    def __init__(self, loop: SimLoop, rng: random.Random, latency: float) -> None:
        self.loop = loop
        self.rng = rng
        self.trouble = Trouble()
        self.stations: dict[str, Station] = {}
        self.messages = 0
        self.hits: dict[str, int] = defaultdict(int)
        """How often each trouble took effect."""
        self.on_request: Callable[[Box, Station, str, bytes], None] = lambda *_: None
        self.on_reply: Callable[[Box, Station, str, bytes, Reply], None] = lambda *_: None
        self.on_delivery: Callable[[Box, str, Reply], None] = lambda *_: None
        self.delay: Callable[[str, Reply], float] = lambda *_: 0.0
        self._latency = latency
        self._number = 0

    def latency(self) -> float:
        """Seconds that one message takes now."""
        base = self._latency * (0.5 + self.rng.random())
        if self.trouble.slow and self.rng.random() < self.trouble.slow:
            base += self.rng.random() * self.trouble.slow_by
            self.hits["hit slow"] += 1
        return base

    def lost(self) -> bool:
        """Whether the next message is lost."""
        if not self.trouble.lose or self.rng.random() >= self.trouble.lose:
            return False
        self.hits["hit lossy"] += 1
        return True

    def number(self) -> int:
        """A new call's number."""
        self._number += 1
        return self._number


class _Call:
    """One request on its way, at the daemon, or on its way back."""

    __slots__ = ("answer", "body", "box", "headers", "net", "number", "path", "station")

    def __init__(
        self, net: Net, box: Box, station: Station, path: str, body: bytes, headers: dict[str, str], answer: Any
    ) -> None:
        self.net = net
        self.box = box
        self.station = station
        self.path = path
        self.body = body
        self.headers = headers
        self.answer = answer
        self.number = net.number()

    def arrive(self) -> None:
        """At the daemon's host."""
        station, net = self.station, self.net
        if not (self.box.on_network and station.box.on_network):
            return
        process, api = station.process, station.api
        if process is None or api is None or not process.alive:
            net.loop.after(net.latency(), self.fail, ConnectionRefusedError("connection refused"))
            return
        net.messages += 1
        station.open[self.number] = self
        process.spawn(self._serve(station, api))

    async def _serve(self, station: Station, api: Api) -> None:
        # Told when the process takes it, which a stopped one does only when it goes on.
        self.net.on_request(self.box, station, self.path, self.body)
        reply = await api.handle(self.path, self.body, self.headers, "h")
        if station.open.pop(self.number, None) is None:
            return
        net = self.net
        net.on_reply(self.box, station, self.path, self.body, reply)
        if net.lost():
            return
        net.loop.after(net.latency() + net.delay(self.path, reply), self.deliver, reply)

    def deliver(self, reply: Reply) -> None:
        """Back at the agent's host."""
        if self.box.on_network and self.station.box.on_network and not self.answer.done():
            self.net.messages += 1
            self.net.on_delivery(self.box, self.path, reply)
            self.answer.set_result(reply)

    def fail(self, error: OSError) -> None:
        """The agent's kernel tells of an error."""
        self.station.open.pop(self.number, None)
        if not self.answer.done():
            self.answer.set_exception(error)


class SimLine:
    """The agent's side: implements :class:`rebootd.agent.client.Line`."""

    def __init__(self, net: Net, box: Box) -> None:
        self._net = net
        self._box = box

    async def post(self, url: str, body: bytes, headers: dict[str, str], timeout: float) -> Reply:
        """One request."""
        net, loop = self._net, self._net.loop
        end = url.index("/", url.index("//") + 2)
        base, path = url[:end], url[end:]
        station = net.stations.get(base)
        answer: asyncio.Future[Reply] = loop.create_future()
        reachable = station is not None and self._box.on_network and station.box.on_network
        if station is not None and reachable:
            call = _Call(net, self._box, station, path, body, headers, answer)
            if not net.lost():
                loop.after(net.latency(), call.arrive)
            if net.trouble.repeat and net.rng.random() < net.trouble.repeat:
                net.hits["hit repeats"] += 1
                echo = _Call(net, self._box, station, path, body, headers, _unheard(loop))
                loop.after(net.latency() + net.rng.random() * 20, echo.arrive)
        elif station is not None and self._box.up and station.box.up:
            net.hits["hit partition"] += 1
        timer = loop.call_later(timeout if reachable else min(timeout, CONNECT_TIMEOUT), _expire, answer)
        try:
            return await answer
        finally:
            timer.cancel()

    async def close(self) -> None:
        """Nothing to end."""


def _unheard(loop: SimLoop) -> asyncio.Future[Reply]:
    """Nobody waits for this answer."""
    nobody: asyncio.Future[Reply] = loop.create_future()
    nobody.cancel()
    return nobody


def _expire(answer: asyncio.Future[Reply]) -> None:
    if not answer.done():
        answer.set_exception(TimeoutError("no answer in time"))

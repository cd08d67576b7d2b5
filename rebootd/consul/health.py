"""A health endpoint that tells a busy event loop from a hung one.

It answers from a thread of its own, so that a long tick or a contended interpreter lock does not
look like death to Consul; only an event loop that has not ticked for ``hung_after`` seconds does.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

log = structlog.get_logger(__name__)

PATH: Final = "/health"
TICK: Final = 0.25
"""Seconds between two ticks of :meth:`HealthThread.run`."""


class _Server(ThreadingHTTPServer):
    """One short-lived thread per request: a peer that connects and says nothing holds up nobody."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], age: Callable[[], float], hung_after: float) -> None:
        self.age = age
        self.hung_after = hung_after
        super().__init__(address, _Handler)

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 - socketserver's signature
        """A peer that went away is not worth a stack trace on standard error."""
        log.debug("health-peer-failed", peer=str(client_address), error=str(sys.exc_info()[1]))


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 5.0

    def do_GET(self) -> None:
        """200 while the loop ticks, 503 when it is hung, 404 for any other path."""
        if self.path.partition("?")[0] != PATH:
            self._answer(HTTPStatus.NOT_FOUND, "not found\n")
            return
        age = self.server.age()
        if age > self.server.hung_after:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, f"event loop has not ticked for {age:.1f} s\n")
        else:
            self._answer(HTTPStatus.OK, f"event loop ticked {age:.2f} s ago\n")

    def _answer(self, status: HTTPStatus, text: str) -> None:
        body = text.encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is http.server's
        """One request each second is no news."""


class HealthThread:
    """Serves ``GET /health`` on ``host``:``port`` (0: a free port) from a thread of its own.

    ``hung_after`` is how many seconds the event loop may go without a tick. ``clock`` is read from
    both threads and must not go back. Raises ``OSError`` when the address cannot be bound.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        hung_after: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._last = clock()
        self._server = _Server((host, port), self.age, hung_after)
        self._thread = threading.Thread(target=self._serve, name="health", daemon=True)

    def _serve(self) -> None:
        # The poll bounds how long stop() takes, not how fast a request is answered.
        self._server.serve_forever(poll_interval=0.1)

    @property
    def port(self) -> int:
        """The port that is bound."""
        return int(self._server.server_address[1])

    def url(self, address: str) -> str:
        """What Consul has to ask when ``address`` is how it reaches this host."""
        host = f"[{address}]" if ":" in address else address
        return f"http://{host}:{self.port}{PATH}"

    def age(self) -> float:
        """Seconds since the last tick."""
        return self._clock() - self._last

    def tick(self) -> None:
        """The event loop lives."""
        self._last = self._clock()

    async def run(self) -> None:
        """Ticks each 0.25 s until it is cancelled."""
        while True:
            self.tick()
            await asyncio.sleep(TICK)

    def start(self) -> None:
        """Begins to answer; counts as a tick."""
        self.tick()
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread and frees the port. It is no error if it was never started."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> HealthThread:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

"""An operator who asks on and on meanwhile: on a new connection each time, and on one that is kept."""

from __future__ import annotations

import http.client
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl

EVERY = 0.2
PATIENCE = 60.0


class Operator:
    """A context manager; ``new`` and ``kept`` are the seconds that each ``GET /v1/status`` took. It raises at its end
    what went wrong.
    """

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self.new: list[float] = []
        self.kept: list[float] = []
        self._port = port
        self._context = context
        self._end = threading.Event()
        self._wrong: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Operator:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(PATIENCE)
        if self._wrong is not None:
            raise self._wrong

    def _run(self) -> None:
        try:
            kept = self._open()
            _ask(kept)
            while not self._end.wait(EVERY):
                began = time.monotonic()
                _ask(kept)
                self.kept.append(time.monotonic() - began)
                began = time.monotonic()
                fresh = self._open()
                _ask(fresh)
                self.new.append(time.monotonic() - began)
                fresh.close()
            kept.close()
        except Exception as error:  # noqa: BLE001  # told to the bench, which raises it
            self._wrong = error

    def _open(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("127.0.0.1", self._port, timeout=PATIENCE, context=self._context)


def _ask(connection: http.client.HTTPSConnection) -> None:
    connection.request("GET", "/v1/status")
    answer = connection.getresponse()
    answer.read()
    if answer.status != 200:
        raise RuntimeError(f"GET /v1/status was answered {answer.status}")

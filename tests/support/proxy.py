"""A TCP proxy that can take answers away: what a broken network does between a client and a real server."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Proxy:
    """Forwards to ``port`` on loopback. ``lose_answers`` closes the client's connection when an answer comes."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.lose_answers = False
        self.requests = 0
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection."""
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target)
        task = asyncio.create_task(self._answers(up_reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        while part := await reader.read(65536):
            self.requests += part.startswith((b"GET ", b"PUT ", b"POST ", b"DELETE "))
            up_writer.write(part)
        up_writer.close()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while part := await reader.read(65536):
            if self.lose_answers:
                break
            writer.write(part)
        writer.close()


@asynccontextmanager
async def proxy(port: int) -> AsyncIterator[Proxy]:
    """A running :class:`Proxy` in front of ``port``; its own is ``.port``."""
    made = Proxy(port)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()

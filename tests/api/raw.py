"""HTTP as a caller writes it who means no good: bytes, one by one if need be."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Caller:
    """One connection. ``gone`` waits for its end from the other side."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        """Bytes, as they are."""
        self.writer.write(data)

    async def status(self, seconds: float = 5.0) -> int:
        """The status of the next answer, whose body is left unread; 0 when the connection ends instead."""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(seconds):
                line = await self.reader.readline()
                return int(line.split()[1]) if line else 0
        return 0

    async def rest(self, seconds: float = 5.0) -> bytes:
        """Everything until the connection ends."""
        data = b""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(seconds):
                while chunk := await self.reader.read(65536):
                    data += chunk
        return data

    async def gone(self, seconds: float = 5.0) -> bool:
        """Whether the connection ends within so many seconds, whatever comes before."""
        try:
            await self.rest(seconds)
        except TimeoutError:
            return False
        return True


@asynccontextmanager
async def call(port: int, window: int = 0) -> AsyncIterator[Caller]:
    """A connection to loopback; ``window`` is how much it takes in unread (bytes; 0: as usual)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, **({"limit": window} if window else {}))
    try:
        yield Caller(reader, writer)
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

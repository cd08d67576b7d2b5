"""A minimal HTTP/1.1 client on a raw socket, so that the server is measured and not its client."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from rebootd.tls.identity import SERVER_NAME

if TYPE_CHECKING:
    import ssl

HEADERS = (
    b"Host: 127.0.0.1:8473\r\nContent-Type: application/json\r\nAccept: */*\r\nAccept-Encoding: gzip, deflate\r\n"
    b"User-Agent: Python/3.11 aiohttp/3.14.5\r\n"
)
"""What the agent's own client sends: headers cost the server time and memory."""


class Reply(NamedTuple):
    """An answer: status, the ``Location`` it names (or ``""``), and the body."""

    status: int
    location: str
    body: bytes


class Connection(asyncio.Protocol):
    """One keep-alive connection; one request at a time. ``lost`` is set once the connection has ended."""

    def __init__(self) -> None:
        self.lost = False
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._reply: asyncio.Future[Reply] | None = None
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def open(cls, host: str, port: int, source: str = "", context: ssl.SSLContext | None = None) -> Connection:
        """Connects, over TLS with a ``context``; ``source`` is the address to come from, since one address has only so
        many ports.
        """
        loop = asyncio.get_running_loop()
        local = (source, 0) if source else None
        name = SERVER_NAME if context is not None else None
        _, made = await loop.create_connection(cls, host, port, local_addr=local, ssl=context, server_hostname=name)
        return made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(ConnectionResetError(str(exc or "the server closed the connection")))

    def post(self, path: bytes, body: bytes) -> asyncio.Future[Reply]:
        """Sends a request; the future is its answer, or ConnectionResetError."""
        self._reply = reply = self._loop.create_future()
        if self.lost or self._transport is None:
            reply.set_exception(ConnectionResetError("the connection has ended"))
            return reply
        self._transport.write(b"POST %b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n%b" % (path, HEADERS, len(body), body))
        return reply

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            self._buffer = buffer
            return
        at = buffer.find(b"Content-Length: ")
        length = int(buffer[at + 16 : buffer.index(b"\r\n", at)]) if 0 <= at < end else 0
        if len(buffer) < end + 4 + length:
            self._buffer = buffer
            return
        self._buffer = b""
        location = ""
        at = buffer.find(b"Location: ")
        if 0 <= at < end:
            location = buffer[at + 10 : buffer.index(b"\r\n", at)].decode()
        if self._reply is not None and not self._reply.done():
            self._reply.set_result(Reply(int(buffer[9:12]), location, buffer[end + 4 : end + 4 + length]))

    def close(self) -> None:
        """Ends the connection at once."""
        if self._transport is not None:
            self._transport.abort()

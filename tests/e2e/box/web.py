"""A small web service for the hosts. It says its host's name; ``/slow`` takes 300 ms. It knows no graceful end.

It runs on the hosts with Debian's Python alone, as a file of its own.
"""

from __future__ import annotations

import asyncio
import socket

PORT = 8080
SLOW = 0.3
NAME = socket.gethostname().encode()
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nContent-Type: text/plain\r\n\r\n%s" % (len(NAME), NAME)


async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers the requests of one connection."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET /slow"):
                await asyncio.sleep(SLOW)
            writer.write(ANSWER)
            await writer.drain()
    except (asyncio.IncompleteReadError, OSError):
        pass
    finally:
        writer.close()


async def main() -> None:
    """Serves until it is killed."""
    server = await asyncio.start_server(serve_one, "0.0.0.0", PORT, backlog=512)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())

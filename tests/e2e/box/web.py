"""A small web service for the hosts. It says its host's name; ``/slow`` takes 300 ms. It knows no graceful end.

``/count`` grows with each request of others than its own host, and once more when a slow one ends. It runs on the
hosts with Debian's Python alone, as a file of its own.
"""

from __future__ import annotations

import asyncio
import socket

PORT = 8080
SLOW = 0.3
NAME = socket.gethostname().encode()
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nContent-Type: text/plain\r\n\r\n%s"
_asked = [0]


async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers the requests of one connection."""
    elsewhere = writer.get_extra_info("peername")[0] != "127.0.0.1"
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            _asked[0] += elsewhere
            if head.startswith(b"GET /slow"):
                await asyncio.sleep(SLOW)
                # Counted at its end too, so that the count has not come to rest while one is under way.
                _asked[0] += elsewhere
            body = b"%d" % _asked[0] if head.startswith(b"GET /count") else NAME
            writer.write(_ANSWER % (len(body), body))
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

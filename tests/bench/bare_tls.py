"""What a daemon's handshakes are compared with: a listener of the same library that shakes hands and does no more.

``python -m tests.bench.bare_tls PORT CA CERT KEY`` serves on loopback until it is ended.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from asyncio import sslproto

from rebootd.tls.listener import RECORD
from tests.bench.bare import BACKLOG


async def _serve(port: int, ca: str, cert: str, key: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(ca)
    context.load_cert_chain(cert, key)
    sslproto.SSLProtocol.max_size = RECORD
    loop = asyncio.get_running_loop()
    await loop.create_server(asyncio.Protocol, "127.0.0.1", port, ssl=context, backlog=BACKLOG)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), *sys.argv[2:5]))

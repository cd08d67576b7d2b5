"""Connections that have not shaken hands yet: counted like all others, and known by their address.

asyncio tells an application of a TLS connection when its handshake is done. Until then it would hold a descriptor for
``HANDSHAKE_TIME`` and count nowhere, and of a handshake that fails nobody would know whose it was.
"""

from __future__ import annotations

import asyncio
from asyncio import sslproto
from typing import TYPE_CHECKING, Any

from rebootd.api.connections import address_of
from rebootd.tls.listener import HANDSHAKE_TIME, PEER

if TYPE_CHECKING:
    import ssl

    from rebootd.api.connections import Gate


class Handshake(sslproto.SSLProtocol):
    """TLS on one connection, from its first byte to its last; ``protocol`` is what speaks within."""

    def __init__(self, protocol: asyncio.Protocol, context: ssl.SSLContext, gate: Gate) -> None:
        super().__init__(
            asyncio.get_running_loop(),
            protocol,
            context,
            None,  # type: ignore[arg-type]  # asyncio itself takes None: nobody waits for the handshake
            server_side=True,
            ssl_handshake_timeout=HANDSHAKE_TIME,  # type: ignore[arg-type]  # parts of a second are taken too
        )
        self._gate = gate
        self._address: str | None = None

    def connection_made(self, transport: Any) -> None:
        """Counts it before anything is read, or ends it."""
        address = address_of(transport)
        if not self._gate.enter(address):
            transport.abort()
            return
        self._address = address
        super().connection_made(transport)

    def buffer_updated(self, nbytes: int) -> None:
        """What is refused within is refused to this address."""
        known = PEER.set(self._address or "")
        try:
            super().buffer_updated(nbytes)
        finally:
            PEER.reset(known)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Counts it out."""
        if self._address is None:
            return
        self._gate.leave(self._address)
        self._address = None
        super().connection_lost(exc)

"""Connections that have not shaken hands yet: counted like all others, known by their address, and served in turns.

asyncio tells an application of a TLS connection when its handshake is done. Until then it would hold a descriptor for
``HANDSHAKE_TIME`` and count nowhere, and of a handshake that fails nobody would know whose it was. It would also hold
all that TLS needs from the moment it was accepted, whether a word is said or not.
"""

from __future__ import annotations

import asyncio
from asyncio import sslproto
from typing import TYPE_CHECKING, Any

from rebootd.api.connections import address_of
from rebootd.tls.identity import PATIENT, SHOWN, shown
from rebootd.tls.listener import BROKEN_OFF, HANDSHAKE_TIME, LEFT, PEER, RECORD, SILENT, SLOW, Observed

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from rebootd.api.connections import Gate
    from rebootd.api.turns import Turns

HELLO = 16 * 1024
"""Bytes that a caller may send before its turn; the rest stays with the kernel."""


class Arrival(asyncio.BufferedProtocol):
    """A connection before its turn. It gives way to a :class:`Handshake` once its caller has begun to speak."""

    def __init__(self, make: Callable[[], asyncio.Protocol], context: ssl.SSLContext, gate: Gate, turns: Turns) -> None:
        self._make = make
        self._context = context
        self._gate = gate
        self._turns = turns
        self._said = b""
        self._patient = False
        self._address = ""
        self._transport: asyncio.Transport | None = None
        self._patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Counts it before anything is read, or ends it."""
        self._address = address_of(transport)
        if not self._gate.enter(self._address):
            transport.abort()
            return
        self._transport = transport
        self._patience = asyncio.get_running_loop().call_later(HANDSHAKE_TIME, self._expire)

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002  # asyncio's name
        """Where its words go for a moment."""
        return self._turns.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """The first words ask for a turn."""
        if self._transport is None:
            return
        if not self._said:
            self._stop_waiting()
            # Looked for, not parsed: whoever says so without meaning it waits longer, and that is all.
            self._patient = PATIENT.encode() in self._turns.buffer[:nbytes]
            self._turns.begin(self._shake, patient=self._patient)
        self._said += self._turns.buffer[:nbytes]
        if len(self._said) >= HELLO:
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's name
        """Counts it out; whoever left before its turn costs nothing more."""
        if self._transport is None:
            return
        self._transport = None
        self._gate.leave(self._address)
        if self._patience is not None:
            self._stop_waiting()
            self._tell(LEFT)
        elif self._said:
            self._tell(BROKEN_OFF)

    def _expire(self) -> None:
        self._patience = None
        if self._transport is not None:
            self._tell(SILENT)
            self._transport.abort()

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _shake(self) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._transport = None
        handshake = Handshake(self._make(), self._context, self._gate, self._turns, self._address)
        handshake.patient = self._patient
        transport.set_protocol(handshake)
        handshake.connection_made(transport)
        handshake.hear(self._said)
        if not transport.is_reading():
            transport.resume_reading()

    def _tell(self, why: str) -> None:
        tell(self._context, why, self._address)


class Handshake(sslproto.SSLProtocol):
    """TLS on one connection, from its first turn to its last byte; ``protocol`` is what speaks within."""

    max_size = RECORD
    # asyncio's own, the same from Python 3.11 to 3.14.
    _incoming: ssl.MemoryBIO
    _sslobj: ssl.SSLObject
    _state: Any

    def __init__(
        self,
        protocol: asyncio.Protocol,
        context: ssl.SSLContext,
        gate: Gate,
        turns: Turns,
        address: str,
    ) -> None:
        super().__init__(
            asyncio.get_running_loop(),
            protocol,
            context,
            None,  # type: ignore[arg-type]  # asyncio itself takes None: nobody waits for the handshake
            server_side=True,
            ssl_handshake_timeout=HANDSHAKE_TIME,  # type: ignore[arg-type]  # parts of a second are taken too
        )
        # What is read is decrypted at once: a buffer of its own would be 4 kB for each agent that waits.
        self._ssl_buffer = turns.buffer
        self._ssl_buffer_view = turns.view
        self._context = context
        self._gate = gate
        self._turns = turns
        self._address: str | None = address
        self._asked = True
        self.patient = False

    def connection_made(self, transport: Any) -> None:
        """Begins; nothing can be done before the first words are heard."""
        super().connection_made(transport)
        self._asked = False

    def hear(self, said: bytes) -> None:
        """What the caller has said before its turn."""
        self._incoming.write(said)
        self._step()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Counts it out."""
        if self._address is None:
            return
        address, self._address = self._address, None
        self._gate.leave(address)
        told = isinstance(self._sslobj, Observed) and self._sslobj.failed
        if "ssl_object" not in self._extra and not told:
            tell(self._context, SLOW if isinstance(exc, ConnectionAbortedError) else BROKEN_OFF, address)
        super().connection_lost(exc)

    def _do_handshake(self) -> None:
        """Asks for a turn instead of doing it now."""
        if not self._asked:
            self._asked = True
            self._turns.go_on(self._step, patient=self.patient)

    def _step(self) -> None:
        self._asked = False
        if self._state is not sslproto.SSLProtocolState.DO_HANDSHAKE:
            return
        known = PEER.set(self._address or "")
        try:
            super()._do_handshake()  # type: ignore[misc]  # as above
        finally:
            PEER.reset(known)

    def _get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == SHOWN and "peercert" in self._extra:
            # Who it is takes a tenth of what the certificate takes, and nobody asks for more.
            self._extra[SHOWN] = shown(self._extra.pop("peercert"))
        return super()._get_extra_info(name, default)


def tell(context: ssl.SSLContext, why: str, address: str) -> None:
    """Tells whoever observes the context's handshakes of one that came to nothing."""
    observed = context.sslobject_class
    if issubclass(observed, Observed):
        known = PEER.set(address)
        try:
            observed.refused(why)
        finally:
            PEER.reset(known)

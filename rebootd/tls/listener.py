"""What a listener does with handshakes that fail: the other side is told why, and so are we."""

from __future__ import annotations

import ssl
from asyncio import sslproto
from contextvars import ContextVar
from typing import TYPE_CHECKING

from rebootd.tls.words import alert, verification

if TYPE_CHECKING:
    from collections.abc import Callable

RECORD = 4 * 1024
"""Bytes that a connection reads at a time, more than a report has. Each connection holds them as long as it lives:
asyncio's own 256 KiB would be 2.4 GB for ten thousand agents that wait.
"""
HANDSHAKE_TIME = 10.0
"""Seconds for a handshake; a client that dawdles holds a connection for no longer."""

NO_TLS = frozenset({"HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "WRONG_VERSION_NUMBER"})
"""What OpenSSL says when the other side does not speak TLS: it would not understand an alert."""

PEER: ContextVar[str] = ContextVar("peer", default="")
"""The address whose handshake goes on at this moment, ``""`` when it is not known."""


def observe(context: ssl.SSLContext, refused: Callable[[str], None]) -> None:
    """Calls ``refused`` with what was wrong with each handshake that fails; whose it was is :data:`PEER`."""

    class Observed(ssl.SSLObject):
        _failure: ssl.SSLError | None = None

        def do_handshake(self) -> None:
            if self._failure is not None:
                raise self._failure
            try:
                super().do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError as error:
                self._failure = error
                refused(_told(error))
                if error.reason in NO_TLS:
                    raise
                # On a failure asyncio closes without sending what OpenSSL has to say, and the other side would never
                # know why. When more is wanted, it sends first; the failure is raised at the next call.
                raise ssl.SSLWantReadError from error

    context.sslobject_class = Observed


def slim() -> None:
    """From now on the TLS connections of this process hold buffers of ``RECORD`` bytes."""
    sslproto.SSLProtocol.max_size = RECORD


def _told(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"a certificate was refused: {verification(error)}"
    if error.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "no certificate was shown"
    return alert(error)

"""What a listener does with handshakes that fail: the other side is told why, and so are we."""

from __future__ import annotations

import ssl
from contextvars import ContextVar
from typing import TYPE_CHECKING, ClassVar

from rebootd.tls.words import alert, verification

if TYPE_CHECKING:
    from collections.abc import Callable

RECORD = 4 * 1024
"""Bytes that a connection reads at a time, more than a report has."""
HANDSHAKE_TIME = 10.0
"""Seconds for a handshake; a client that dawdles holds a connection for no longer."""

NO_TLS = frozenset({"HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "WRONG_VERSION_NUMBER"})
"""What OpenSSL says when the other side does not speak TLS: it would not understand an alert."""

SILENT = "nothing was said in time"
SLOW = "the handshake was not done in time"
LEFT = "the other side left before a word was said"
BROKEN_OFF = "the other side left in the middle of the handshake"
"""What became of handshakes that neither side refused. ``LEFT`` is also what a check of the port alone looks like."""

PEER: ContextVar[str] = ContextVar("peer", default="")
"""The address whose handshake goes on at this moment, ``""`` when it is not known."""


class Observed(ssl.SSLObject):
    """One side of a connection whose failed handshake is told to the other side, and to ``refused`` of its class."""

    refused: ClassVar[Callable[[str], None]]
    _failure: ssl.SSLError | None = None

    @property
    def failed(self) -> bool:
        """Whether its handshake has failed, and that was told."""
        return self._failure is not None

    def do_handshake(self) -> None:
        """As the library's. Raises SSLError."""
        if self._failure is not None:
            raise self._failure
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            self._failure = error
            type(self).refused(_told(error))
            if error.reason in NO_TLS:
                raise
            # On a failure asyncio closes without sending what OpenSSL has to say, and the other side would never
            # know why. When more is wanted, it sends first; the failure is raised at the next call.
            raise ssl.SSLWantReadError from error


def observe(context: ssl.SSLContext, refused: Callable[[str], None]) -> None:
    """Calls ``refused`` with what was wrong with each handshake that fails; whose it was is :data:`PEER`."""
    context.sslobject_class = type("Observed", (Observed,), {"refused": staticmethod(refused)})


def _told(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"a certificate was refused: {verification(error)}"
    if error.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "no certificate was shown"
    return alert(error)

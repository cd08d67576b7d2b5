"""rebootctl's side of TLS: what it shows, whom it believes, and connections that follow."""

from __future__ import annotations

import http.client
from typing import TYPE_CHECKING

from rebootd.cli.ctl_client import BAD_INPUT, Trouble
from rebootd.core.errors import InvalidInput
from rebootd.tls.contexts import client_context
from rebootd.tls.identity import SERVER_NAME

if TYPE_CHECKING:
    import socket
    import ssl

    from rebootd.tls.files import Signature, TlsFiles


def tls_flag(name: str) -> str:
    """The flag of ``ca``, ``cert``, ``key`` or ``crl``."""
    return f"--tls-{name}"


class Wire:
    """Makes connections to daemons of one authority. Raises Trouble when its files cannot be used."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._seen: Signature = files.signature()
        self._context = self._load()

    def connection(self, host: str, port: int | None, timeout: float) -> http.client.HTTPConnection:
        """A connection that is not open yet."""
        found = self._files.signature()
        if found != self._seen:
            # Something that watches for days meets new certificates too.
            self._seen, self._context = found, self._load()
        return _Connection(host, port, timeout, self._context)

    def _load(self) -> ssl.SSLContext:
        try:
            return client_context(self._files, tls_flag)
        except InvalidInput as error:
            raise Trouble(str(error), BAD_INPUT) from None


class _Connection(http.client.HTTPConnection):
    """Speaks only to a daemon's certificate; its address and DNS name do not count."""

    def __init__(self, host: str, port: int | None, timeout: float, context: ssl.SSLContext) -> None:
        super().__init__(host, port, timeout=timeout)
        self._tls = context

    def connect(self) -> None:
        """Opens it. Raises OSError."""
        super().connect()
        plain: socket.socket = self.sock
        self.sock = self._tls.wrap_socket(plain, server_hostname=SERVER_NAME)

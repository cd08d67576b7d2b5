"""Contexts that follow their files: new ones are used from the next connection on, broken ones are not used at all."""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec
import structlog

from rebootd.core.errors import InvalidInput
from rebootd.tls.contexts import client_context, prove_client, prove_server, server_context

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebootd.tls.contexts import Field
    from rebootd.tls.files import Signature, TlsFiles

T = TypeVar("T")

LOOK_EVERY = 2.0
"""Seconds between two looks at the files."""
log = structlog.get_logger(__name__)


class Follower(Generic[T]):
    """What ``load`` made of the files when they last were good. ``problem`` says what is wrong with newer ones.

    The first load's InvalidInput is the caller's.
    """

    def __init__(self, files: TlsFiles, load: Callable[[], T]) -> None:
        self.files = files
        self._load = load
        self._loaded: Signature = files.signature()
        self._seen = self._tried = self._loaded
        self.value: T = load()
        self.problem = ""

    def look(self, *, at_once: bool = False) -> bool:
        """Whether there is a new value. Files that have just changed are given a moment to be complete, unless
        ``at_once``.
        """
        found = self.files.signature()
        newest = max(changed for changed, _, _ in found) / 1e9
        settled = found == self._seen or at_once or time.time() - newest > LOOK_EVERY
        self._seen = found
        if not settled or (found in (self._loaded, self._tried) and not at_once):
            return False
        self._tried = found
        try:
            value = self._load()
        except InvalidInput as error:
            self.problem = str(error)
            log.error("tls-files-not-taken", problem=self.problem, instead="the old ones stay in use")
            return False
        if self.files.signature() != found:
            # They changed while they were read: what was read may be half of each.
            self._tried = ()
            return False
        self._loaded, self.value, self.problem = found, value, ""
        log.info("tls-files-loaded", cert=self.files.cert, key=self.files.key, ca=self.files.ca, crl=self.files.crl)
        return True


class Renewed:
    """A client's context, made by ``load`` of ``files``. ``context()`` looks at them now and then by itself, so that
    nothing has to run beside it. The first load's InvalidInput is the caller's.
    """

    def __init__(
        self, files: TlsFiles, load: Callable[[], ssl.SSLContext], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._follower: Follower[ssl.SSLContext] = Follower(files, load)
        self._looked = clock()

    def context(self) -> ssl.SSLContext:
        """The context for a new connection."""
        if self._clock() - self._looked >= LOOK_EVERY:
            self._looked = self._clock()
            self._follower.look()
        return self._follower.value

    @property
    def problem(self) -> str:
        """Why newer files are not used, ``""`` when the present ones are the newest."""
        return self._follower.problem


class ClientTls(Renewed):
    """The context of an agent, which can wait for its handshake."""

    def __init__(self, files: TlsFiles, field: Field, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._field = field
        self._first = True
        super().__init__(files, lambda: self._load(files), clock=clock)
        self._first = False

    def _load(self, files: TlsFiles) -> ssl.SSLContext:
        context = client_context(files, self._field, patient=True)
        try:
            prove_client(files, self._field)
        except InvalidInput as error:
            if not self._first:
                raise
            # A host may boot with a false clock: it goes on trying, and daemons say what is wrong.
            log.error("tls-certificate-unfit", problem=str(error))
        return context


class ServerState(msgspec.Struct, frozen=True):
    """What a listener uses at present. Times are seconds since 1970, 0 when there is none."""

    context: ssl.SSLContext
    expires: float
    revoked: frozenset[int] = frozenset()
    crl_expires: float = 0.0


class ServerTls:
    """A listener's context. :meth:`run` follows the files; ``kick`` makes it look at once (SIGHUP).

    ``demand`` ends handshakes without a certificate. ``dress`` is called with every context before its first use.
    Raises InvalidInput when the files cannot be used, or clients would not take the certificate.
    """

    def __init__(
        self, files: TlsFiles, field: Field, *, demand: bool, dress: Callable[[ssl.SSLContext], None] | None = None
    ) -> None:
        self._field = field
        self._demand = demand
        self._dress = dress
        self._kicked = asyncio.Event()
        self._follower: Follower[ServerState] = Follower(files, lambda: self._load(files))

    @property
    def state(self) -> ServerState:
        """What is used at present."""
        return self._follower.value

    @property
    def problem(self) -> str:
        """Why newer files are not used, ``""`` when the present ones are the newest."""
        return self._follower.problem

    def kick(self) -> None:
        """Look now."""
        self._kicked.set()

    async def run(self, renew: Callable[[ssl.SSLContext], Any]) -> None:
        """Until cancelled: awaits ``renew`` with each new context."""
        while True:
            kicked = False
            try:
                async with asyncio.timeout(LOOK_EVERY):
                    kicked = await self._kicked.wait()
            except TimeoutError:
                pass
            self._kicked.clear()
            if self._follower.look(at_once=kicked):
                await renew(self.state.context)

    def _load(self, files: TlsFiles) -> ServerState:
        context = server_context(files, self._field, demand=self._demand)
        cert = prove_server(context, files, self._field)
        if self._dress is not None:
            self._dress(context)
        revoked, crl_expires = frozenset[int](), 0.0
        if files.crl:
            # Imported here: only this needs the library cryptography in a daemon.
            from rebootd.tls.revoked import read_revoked  # noqa: PLC0415

            revoked, crl_expires = read_revoked(Path(files.crl), self._field)
        return ServerState(context, _expires(cert), revoked, crl_expires)


def _expires(cert: dict[str, Any]) -> float:
    return float(ssl.cert_time_to_seconds(str(cert["notAfter"]))) if cert else 0.0

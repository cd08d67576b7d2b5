"""TLS contexts, each proved by a handshake in memory before anybody depends on it."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

from rebootd.core.errors import InvalidInput
from rebootd.tls.identity import PATIENT, SERVER_NAME
from rebootd.tls.words import verification

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebootd.tls.files import TlsFiles

    Field = Callable[[str], str]

ROUNDS = 10
"""Rounds after which a handshake in memory would never end."""


def server_context(files: TlsFiles, field: Field, *, demand: bool) -> ssl.SSLContext:
    """A listener's context: TLS 1.2 or later, asks for certificates and, with ``demand``, ends a handshake without one.

    Raises InvalidInput naming the file that cannot be used.
    """
    files.check(field)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED if demand else ssl.CERT_OPTIONAL
    # A resumed session is not verified again: one that was revoked meanwhile would come in.
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    _fill(context, files, field)
    return context


def client_context(files: TlsFiles, field: Field, *, patient: bool = False) -> ssl.SSLContext:
    """A client's context, for connections whose ``server_hostname`` is ``SERVER_NAME``; ``patient`` ones let others
    shake hands first. Raises InvalidInput.
    """
    files.check(field)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _fill(context, files, field)
    if patient:
        context.set_alpn_protocols([PATIENT, "http/1.1"])
    return context


def _fill(context: ssl.SSLContext, files: TlsFiles, field: Field) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cafile=files.ca)
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput(field("ca"), files.ca, f"a PEM file of certificates ({_short(error)})") from None
    if files.crl:
        try:
            context.load_verify_locations(cafile=files.crl)
        except (OSError, ssl.SSLError) as error:
            raise InvalidInput(field("crl"), files.crl, f"a PEM file of revocation lists ({_short(error)})") from None
        context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    if files.cert:
        _load_pair(context, files, field)


def _load_pair(context: ssl.SSLContext, files: TlsFiles, field: Field) -> None:
    def no_passphrase() -> str:
        # Without this OpenSSL would ask on the terminal, and wait.
        raise InvalidInput(field("key"), files.key, "a key without a passphrase")

    try:
        context.load_cert_chain(files.cert, files.key, password=no_passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise InvalidInput(field("key"), files.key, f"the key that belongs to {files.cert}") from None
        raise InvalidInput(field("cert"), files.cert, f"a PEM certificate and its key ({_short(error)})") from None
    except OSError as error:
        raise InvalidInput(field("cert"), files.cert, f"a pair that can be read ({error.strerror})") from None


def prove_server(context: ssl.SSLContext, files: TlsFiles, field: Field) -> dict[str, Any]:
    """The daemon's own certificate as its clients verify it. Raises InvalidInput when they would not take it."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(cafile=files.ca)
    if files.crl:
        client.load_verify_locations(cafile=files.crl)
        client.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    mode = context.verify_mode
    context.verify_mode = ssl.CERT_NONE
    try:
        _, near = _shake(context, client)
    except ssl.SSLCertVerificationError as error:
        raise _unfit(error, files, field) from None
    finally:
        context.verify_mode = mode
    return _cert(near)


def prove_client(files: TlsFiles, field: Field) -> dict[str, Any]:
    """A client's own certificate as daemons verify it, ``{}`` without one. Raises InvalidInput when they would not."""
    if not files.cert:
        return {}
    # The pair serves on both sides: only the verifying of the client's certificate matters here.
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.verify_mode = ssl.CERT_REQUIRED
    _fill(server, files, field)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    _load_pair(client, files, field)
    try:
        far, _ = _shake(server, client)
    except ssl.SSLCertVerificationError as error:
        raise _unfit(error, files, field) from None
    return _cert(far)


def _unfit(error: ssl.SSLCertVerificationError, files: TlsFiles, field: Field) -> InvalidInput:
    said = verification(error)
    if "revocation list" in said:
        return InvalidInput(field("crl"), files.crl, f"a list in force, of the authority in {files.ca}: {said}")
    return InvalidInput(field("cert"), files.cert, f"a certificate that {files.ca} vouches for: {said}")


def _cert(side: ssl.SSLObject) -> dict[str, Any]:
    return side.getpeercert() or {}


def _shake(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """A handshake in memory: both sides, done."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    far = server.wrap_bio(to_server, to_client, server_side=True)
    near = client.wrap_bio(to_client, to_server, server_hostname=SERVER_NAME)
    waiting = [near, far]
    for _ in range(ROUNDS):
        waiting = [side for side in waiting if not _shaken(side)]
    if waiting:
        raise ssl.SSLError("a handshake in memory that does not end")
    return far, near


def _shaken(side: ssl.SSLObject) -> bool:
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def _short(error: Exception) -> str:
    return str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error)

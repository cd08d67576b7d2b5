"""What a failed handshake means, in words that name what is wrong and never a secret."""

from __future__ import annotations

import ssl

_NAME, _ADDRESS = 62, 64
_VERIFY = {
    3: "no revocation list of its authority is at hand",
    7: "its signature is false",
    9: "it is not valid yet (or the clock here is wrong)",
    10: "it has expired (or the clock here is wrong)",
    11: "the revocation list is not valid yet",
    12: "the revocation list has expired",
    18: "it is self-signed",
    19: "its authority is not the one that is trusted here",
    20: "its authority is not the one that is trusted here",
    21: "its authority is not the one that is trusted here",
    23: "it is revoked",
    24: "it was signed by a certificate that is no authority's",
    26: "it is for another purpose (a client's where a daemon's is due, or the other way round)",
    _NAME: "it is no daemon's: it does not bear the name server.rebootd",
    _ADDRESS: "it is for another name or address than the one that was asked",
}
"""By OpenSSL's X509_V_ERR numbers (see its manual page X509_STORE_CTX_get_error)."""

_ALERTS = {
    "CERTIFICATE_REQUIRED": "the other side wants a certificate, and none was shown",
    "CERTIFICATE_EXPIRED": "the other side says that our certificate has expired",
    "CERTIFICATE_REVOKED": "the other side says that our certificate is revoked",
    "UNKNOWN_CA": "the other side does not know the authority of our certificate",
    "UNSUPPORTED_CERTIFICATE": "the other side says that our certificate is for another purpose",
    "BAD_CERTIFICATE": "the other side says that our certificate is not valid (not yet, or not at all)",
    "HANDSHAKE_FAILURE": "the other side broke the handshake off: most likely it wants a certificate",
    "PROTOCOL_VERSION": "the other side speaks no version of TLS that we do",
    "WRONG_VERSION_NUMBER": "the other side does not speak TLS here",
    "HTTP_REQUEST": "the other side speaks plain HTTP",
}


def why(error: BaseException) -> str:
    """What went wrong, or ``""`` when it was not TLS."""
    seen: BaseException | None = error
    while seen is not None:
        # aiohttp's errors are TLS errors too, and carry the one that tells more.
        inner = getattr(seen, "certificate_error", None) or getattr(seen, "os_error", None)
        if isinstance(inner, ssl.SSLError) and inner is not seen:
            seen = inner
            continue
        if isinstance(seen, ssl.SSLCertVerificationError):
            return f"the other side's certificate is not accepted: {verification(seen)}"
        if isinstance(seen, ssl.SSLError):
            return alert(seen)
        seen = inner if isinstance(inner, BaseException) else seen.__cause__ or seen.__context__
    return ""


def of_service(error: BaseException) -> str:
    """What went wrong with a service that is no daemon of ours (Consul, Nomad, what gates ask). Never ``""``."""
    return why(error).replace(_VERIFY[_NAME], _VERIFY[_ADDRESS]) or str(error) or type(error).__name__


def verification(error: ssl.SSLCertVerificationError) -> str:
    """Why a certificate was not accepted here: ``it has expired``."""
    said = str(getattr(error, "verify_message", "") or error)
    return _VERIFY.get(int(getattr(error, "verify_code", 0) or 0), said)


def alert(error: ssl.SSLError) -> str:
    """What the other side said, or what OpenSSL says."""
    reason = str(getattr(error, "reason", "") or "")
    for word, meaning in _ALERTS.items():
        if reason.endswith(word):
            return meaning
    return f"TLS failed: {reason.replace('_', ' ').lower() or error}"

"""The serial numbers of revocation lists, for connections that were open before their certificate was revoked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography import x509

from rebootd.core.errors import InvalidInput
from rebootd.tls.files import check_pem

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_BEGIN = b"-----BEGIN X509 CRL-----"


def read_revoked(path: Path, field: Callable[[str], str]) -> tuple[frozenset[int], float]:
    """The serial numbers in a file of revocation lists, and when the first of them runs out (seconds since 1970).

    Their signatures are the TLS library's business, which reads the same file. Raises InvalidInput.
    """
    content = check_pem(path, "X509 CRL", field("crl"))
    serials: set[int] = set()
    ends = float("inf")
    try:
        for part in content.split(_BEGIN)[1:]:
            read = x509.load_pem_x509_crl(_BEGIN + part)
            serials |= {entry.serial_number for entry in read}
            if read.next_update_utc is not None:
                ends = min(ends, read.next_update_utc.timestamp())
    except ValueError as error:
        raise InvalidInput(field("crl"), str(path), f"a PEM file of revocation lists ({error})") from None
    return frozenset(serials), ends

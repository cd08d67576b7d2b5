"""What ``rebootctl tls show`` says of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

from rebootd.cli.ctl_client import BAD_INPUT, Trouble
from rebootd.cli.ctl_common import clean
from rebootd.tls.authority import utc_now
from rebootd.tls.identity import SCHEME, serial_text

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

_PURPOSES = {ExtendedKeyUsageOID.SERVER_AUTH: "server", ExtendedKeyUsageOID.CLIENT_AUTH: "client"}


class Told(NamedTuple):
    """What there is to say of one file; ``good`` tells whether it is valid now."""

    file: str
    rows: dict[str, Any]
    good: bool

    def text(self) -> str:
        """As lines for people."""
        lines = [f"{self.file}:"]
        for label, said in self.rows.items():
            shown = ", ".join(said) or "none" if isinstance(said, list) else str(said)
            lines.append(f"  {label + ':':<13}{clean(shown)}")
        return "\n".join(lines)


def describe(path: Path, content: bytes) -> Told:
    """Of a certificate, revocation list or key. Raises Trouble for anything else."""
    try:
        if b"X509 CRL" in content:
            rows, good = _crl(x509.load_pem_x509_crl(content))
        elif b"PRIVATE KEY" in content:
            rows, good = {"kind": "a private key; its content is not shown"}, True
        else:
            rows, good = _certificate(x509.load_pem_x509_certificate(content))
    except ValueError:
        accepted = "a PEM certificate, key or revocation list"
        raise Trouble(f"{str(path)!r} is not accepted; expected {accepted}", BAD_INPUT) from None
    return Told(str(path), rows, good)


def _certificate(cert: x509.Certificate) -> tuple[dict[str, Any], bool]:
    names = _extension(cert, x509.SubjectAlternativeName)
    uris = names.get_values_for_type(x509.UniformResourceIdentifier) if names else []
    others = [*(names.get_values_for_type(x509.DNSName) if names else [])]
    others += [str(ip) for ip in (names.get_values_for_type(x509.IPAddress) if names else [])]
    basic = _extension(cert, x509.BasicConstraints)
    usage = _extension(cert, x509.ExtendedKeyUsage)
    line, good = _validity(cert.not_valid_before_utc, cert.not_valid_after_utc)
    return {
        "kind": "an authority" if basic is not None and basic.ca else "a certificate",
        "identity": [uri for uri in uris if uri.startswith(SCHEME)],
        "other names": others,
        "purpose": [_PURPOSES.get(one, one.dotted_string) for one in usage or ()],
        "subject": cert.subject.rfc4514_string(),
        "issuer": cert.issuer.rfc4514_string(),
        "serial": serial_text(cert.serial_number),
        "sha256": cert.fingerprint(hashes.SHA256()).hex(":"),
        "valid": line,
    }, good


def _crl(read: x509.CertificateRevocationList) -> tuple[dict[str, Any], bool]:
    line, good = _validity(read.last_update_utc, read.next_update_utc)
    revoked = [f"{serial_text(e.serial_number)} ({e.revocation_date_utc:%Y-%m-%d %H:%M} UTC)" for e in read]
    return {
        "kind": "a revocation list",
        "issuer": read.issuer.rfc4514_string(),
        "valid": line,
        "revoked": revoked,
    }, good


def _validity(since: datetime, until: datetime | None) -> tuple[str, bool]:
    now = utc_now()
    ends = f"{until:%Y-%m-%d %H:%M} UTC" if until else "no end"
    line = f"{since:%Y-%m-%d %H:%M} to {ends}"
    if now < since:
        return f"{line}: NOT YET", False
    if until is not None and now > until:
        return f"{line}: EXPIRED", False
    return line, True


def _extension(cert: x509.Certificate, kind: type[x509.ExtensionType]) -> Any:
    try:
        return cert.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None

"""The authority of a fleet: makes certificates and the revocation list, in the manner of ``consul tls``.

Keys are P-256: a handshake with them costs a fraction of one with RSA. The certificates keep to RFC 5280, so that
OpenSSL's strict mode takes them too. Every time is passed in; every function returns PEM and writes nothing.
"""

from __future__ import annotations

import ipaddress
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from rebootd.core.errors import InvalidInput, Refused
from rebootd.tls.identity import NAME, NAME_ACCEPTED, SCHEME, SERVER, SERVER_NAME

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_DAYS = 36500
EARLY = timedelta(minutes=5)
"""How long before its making a certificate is valid: clocks differ."""

_DNS = re.compile(r"(?:\*\.)?[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")


class Authority:
    """A certificate and the key that signs with it."""

    def __init__(self, cert: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.cert = cert
        self._key = key

    @classmethod
    def create(cls, name: str, days: int, now: datetime) -> Authority:
        """A new one, which signs only what is no authority itself."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _common_name(name))])
        builder = _begin(subject, subject, key.public_key(), _days(days), now)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(authority=True), critical=True)
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def load(cls, cert: bytes, key: bytes) -> Authority:
        """One that exists. Raises InvalidInput."""
        try:
            loaded = x509.load_pem_x509_certificate(cert)
        except ValueError:
            raise InvalidInput("ca", "", "the PEM certificate of the authority") from None
        try:
            private = serialization.load_pem_private_key(key, password=None)
        except (ValueError, TypeError):
            raise InvalidInput("ca-key", "", "the authority's PEM key, without a passphrase") from None
        if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != loaded.public_key():
            raise InvalidInput("ca-key", "", "the key that belongs to the authority's certificate")
        return cls(loaded, private)

    def issue(
        self, role: str, name: str, days: int, now: datetime, *, dns: Sequence[str] = (), ips: Sequence[str] = ()
    ) -> tuple[bytes, bytes]:
        """A certificate and its new key. Raises InvalidInput; Refused when the authority does not last as long."""
        if not NAME.fullmatch(name):
            raise InvalidInput("name", name, NAME_ACCEPTED)
        key = ec.generate_private_key(ec.SECP256R1())
        if now + timedelta(days=_days(days)) > self.cert.not_valid_after_utc:
            ends = self.cert.not_valid_after_utc.date()
            raise Refused(f"the authority itself ends on {ends}: ask for fewer --days, or make a new one")
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role),
                x509.NameAttribute(NameOID.COMMON_NAME, _common_name(name)),
            ]
        )
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if role == SERVER else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = _begin(subject, self.cert.subject, key.public_key(), days, now)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(authority=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
        )
        names = _names(role, name, dns, ips)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return pem(builder.sign(self._key, hashes.SHA256())), key_pem(key)

    def key_pem(self) -> bytes:
        """The authority's own key."""
        return key_pem(self._key)

    def revocations(self, old: bytes | None, serials: Sequence[int], now: datetime) -> bytes:
        """The list with ``serials`` added to what ``old`` has. Raises InvalidInput when ``old`` is no list of ours.

        It is good for as long as the authority: a list that runs out would shut everybody out.
        """
        number, revoked = 1, {}
        if old is not None:
            before = read_list(old, self.cert)
            number = before.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number + 1
            revoked = {entry.serial_number: entry.revocation_date_utc for entry in before}
        for serial in serials:
            revoked.setdefault(serial, now)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.cert.subject)
            .last_update(now - EARLY)
            .next_update(self.cert.not_valid_after_utc)
            .add_extension(x509.CRLNumber(number), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        for serial, since in sorted(revoked.items()):
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(since).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def made(self, cert: x509.Certificate) -> bool:
        """Whether this authority signed the certificate."""
        try:
            cert.verify_directly_issued_by(self.cert)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True


def read_list(content: bytes, authority: x509.Certificate) -> x509.CertificateRevocationList:
    """A revocation list that this authority signed. Raises InvalidInput."""
    accepted = "a PEM revocation list of this authority"
    try:
        read = x509.load_pem_x509_crl(content)
    except ValueError:
        raise InvalidInput("crl", "", accepted) from None
    key = authority.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not read.is_signature_valid(key):
        raise InvalidInput("crl", "", accepted)
    return read


def pem(cert: x509.Certificate) -> bytes:
    """A certificate as PEM."""
    return cert.public_bytes(serialization.Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A key as PEM, without a passphrase: the file's mode protects it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def utc_now() -> datetime:
    """Now, to the second: certificates know no finer time."""
    return datetime.now(UTC).replace(microsecond=0)


def _begin(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int, now: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLY)
        .not_valid_after(now + timedelta(days=_days(days)))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _names(role: str, name: str, dns: Sequence[str], ips: Sequence[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"{SCHEME}{role}/{name}")]
    if role == SERVER:
        names += [x509.DNSName(SERVER_NAME), x509.DNSName("localhost")]
        ips = ("127.0.0.1", "::1", *ips)
    for host in dns:
        if not _DNS.fullmatch(host):
            raise InvalidInput("dns", host, "a host name such as rebootd.example.com")
        if host.lower() == SERVER_NAME:
            raise InvalidInput("dns", host, "another name: daemons have it by themselves, and nobody else may")
        names.append(x509.DNSName(host))
    for address in ips:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(address)))
        except ValueError:
            raise InvalidInput("ip", address, "an IP address") from None
    return list(dict.fromkeys(names))


def _days(days: int) -> int:
    if not 0 < days <= MOST_DAYS:
        raise InvalidInput("days", days, f"days from 1 to {MOST_DAYS}")
    return days


def _common_name(name: str) -> str:
    # X.520 allows 64 characters; the whole name is in the URI.
    return name[:64]

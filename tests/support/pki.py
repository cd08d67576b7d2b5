"""An authority of its own for tests, made by the product's code, and certificates that are wrong on purpose."""

from __future__ import annotations

import itertools
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509

from rebootd.tls.authority import Authority, pem, utc_now
from rebootd.tls.files import TlsFiles

if TYPE_CHECKING:
    from datetime import datetime


def field(name: str) -> str:
    """How the tests call the settings."""
    return f"tls-{name}"


class Pki:
    """An authority in ``folder``. Files of certificates are numbered, so that two of one name can exist."""

    def __init__(self, folder: Path, name: str = "a fleet", days: int = 30) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.authority = Authority.create(name, days, utc_now() - timedelta(days=2))
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(pem(self.authority.cert))
        self.crl = folder / "crl.pem"
        self.crl.write_bytes(self.authority.revocations(None, (), utc_now()))
        self._numbers = itertools.count()

    def issue(self, role: str, name: str, *, days: int = 1, now: datetime | None = None, crl: bool = True) -> TlsFiles:
        """A certificate, as the files of one side. ``now`` is when it begins."""
        cert, key = self.authority.issue(role, name, days, now or utc_now())
        number = next(self._numbers)
        at, secret = self.folder / f"{role}-{number}.pem", self.folder / f"{role}-{number}-key.pem"
        at.write_bytes(cert)
        secret.touch(mode=0o600)
        secret.write_bytes(key)
        return TlsFiles(ca=str(self.ca), cert=str(at), key=str(secret), crl=str(self.crl) if crl else "")

    def server(self, name: str = "d1") -> TlsFiles:
        """A daemon's."""
        return self.issue("server", name)

    def expired(self, role: str, name: str) -> TlsFiles:
        """One that ended a day ago."""
        return self.issue(role, name, now=utc_now() - timedelta(days=2))

    def early(self, role: str, name: str) -> TlsFiles:
        """One that begins tomorrow."""
        return self.issue(role, name, now=utc_now() + timedelta(days=1))

    def revoke(self, files: TlsFiles) -> None:
        """Puts a certificate on the list."""
        serial = x509.load_pem_x509_certificate(Path(files.cert).read_bytes()).serial_number
        self.crl.write_bytes(self.authority.revocations(self.crl.read_bytes(), [serial], utc_now()))

"""The files of one side of TLS, and what may be wrong with them before anybody shakes hands."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from rebootd.core.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_FILE = 16 * 1024 * 1024
"""Bytes of any of the files; a revocation list of a large authority is the largest."""
Signature = tuple[tuple[int, int, int], ...]


class TlsFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Paths of PEM files, ``""`` for none.

    ``ca``: the authorities that are trusted, ``cert`` and ``key``: what is shown (the certificate first, then those
    between it and the authority), ``crl``: revocation lists, one of each authority.
    """

    ca: str = ""
    cert: str = ""
    key: str = ""
    crl: str = ""

    @property
    def on(self) -> bool:
        """Whether TLS is asked for at all."""
        return bool(self.ca or self.cert or self.key or self.crl)

    def signature(self) -> Signature:
        """What changes when a file is replaced, written, or given another mode."""
        return tuple(_signature(path) for path in (self.ca, self.cert, self.key, self.crl))

    def check(self, field: Callable[[str], str]) -> None:
        """Raises InvalidInput for a file that is missing, empty, no PEM, or a key that others can read.

        ``field`` makes the name of a setting of ``ca``, ``cert``, ``key`` or ``crl``.
        """
        if not self.ca:
            raise InvalidInput(field("ca"), "", "the certificates of the authorities that are trusted")
        if bool(self.cert) != bool(self.key):
            given, missing = ("cert", "key") if self.cert else ("key", "cert")
            raise InvalidInput(field(missing), "", f"a file, since {field(given)} is given")
        for name, kind in (("ca", "CERTIFICATE"), ("cert", "CERTIFICATE"), ("key", "PRIVATE KEY"), ("crl", "X509 CRL")):
            path = str(getattr(self, name))
            if path:
                check_pem(Path(path), kind, field(name), private=name == "key")


def check_pem(path: Path, kind: str, field: str, *, private: bool = False) -> bytes:
    """What is in a PEM file. Raises InvalidInput; nothing of the content is in its message."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE:
            raise InvalidInput(field, str(path), f"a regular file of at most {MAX_FILE} bytes")
        if private and status.st_mode & (stat.S_IROTH | stat.S_IWOTH):
            mode = stat.S_IMODE(status.st_mode)
            raise InvalidInput(field, f"{path} (mode {mode:04o})", "a key that others cannot read: chmod 600")
        content = path.read_bytes()
    except OSError as error:
        raise InvalidInput(field, str(path), f"a file that can be read ({error.strerror})") from None
    if not content.strip():
        raise InvalidInput(field, str(path), f"a PEM file with a {kind}; it is empty")
    if kind.encode() + b"-----" not in content:
        raise InvalidInput(field, str(path), f"a PEM file with a {kind}")
    return content


def _signature(path: str) -> tuple[int, int, int]:
    if not path:
        return (0, 0, 0)
    try:
        status = Path(path).stat()
    except OSError:
        return (0, 0, -1)
    return (status.st_ctime_ns, status.st_ino, status.st_size)

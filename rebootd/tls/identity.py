"""Who a certificate names: exactly one URI ``rebootd://ROLE/NAME`` among its alternative names.

What is read here has been verified by the TLS library against the authority; only the name is left to judge.
"""

from __future__ import annotations

import re
import ssl
from typing import TYPE_CHECKING, Any

import msgspec

from rebootd.core.caller import PEOPLE
from rebootd.core.errors import Unauthorized

if TYPE_CHECKING:
    from collections.abc import Mapping

SERVER_NAME = "server.rebootd"
"""The DNS name that every daemon's certificate bears and no other: what clients verify instead of an address."""
SCHEME = "rebootd://"
MACHINE, SERVER = "machine", "server"
ROLES = (MACHINE, *PEOPLE, SERVER)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")
NAME_ACCEPTED = "letters, digits, '.', '_', '@' and '-', at most 128, beginning with a letter or digit"
PATIENT = "rebootd-agent"
"""What agents name as their protocol (ALPN) in the first words of a handshake: whoever does can wait for his turn."""
SHOWN = "rebootd.identity"
"""The extra information of a connection that tells whom its certificate names: what :func:`shown` made of it."""
ACCEPTED = f"exactly one URI {SCHEME}ROLE/NAME, with a ROLE of {', '.join(ROLES)}"


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What a certificate says. ``serial`` is its number, ``since`` and ``expires`` are seconds since 1970."""

    role: str
    name: str
    serial: int
    since: float
    expires: float

    @property
    def uri(self) -> str:
        """The name as it stands in the certificate."""
        return f"{SCHEME}{self.role}/{self.name}"


def identity_of(cert: Mapping[str, Any]) -> Identity:
    """Whom a verified certificate names, from what ``getpeercert()`` gives. Raises Unauthorized for nobody."""
    uris = [str(value) for kind, value in cert.get("subjectAltName", ()) if kind == "URI"]
    ours = [uri for uri in uris if uri.startswith(SCHEME)]
    number = serial_text(int(str(cert.get("serialNumber", "0")), 16))
    if len(ours) != 1:
        names = ", ".join(uri[:200] for uri in ours) or "no such name"
        raise Unauthorized(f"certificate {number} names nobody here: it has {names}; expected {ACCEPTED}")
    role, _, name = ours[0].removeprefix(SCHEME).partition("/")
    if role not in ROLES:
        raise Unauthorized(f"certificate {number} has the unknown role {role[:40]!r} ({ours[0][:200]})")
    if not NAME.fullmatch(name):
        raise Unauthorized(f"certificate {number} has a name that is none ({ours[0][:200]}); expected {NAME_ACCEPTED}")
    return Identity(
        role=role,
        name=name,
        serial=int(str(cert.get("serialNumber", "0")), 16),
        since=ssl.cert_time_to_seconds(str(cert["notBefore"])),
        expires=ssl.cert_time_to_seconds(str(cert["notAfter"])),
    )


def shown(cert: Mapping[str, Any] | None) -> Identity | Unauthorized | None:
    """Whom a connection's certificate names, why that is nobody, or None when it showed none."""
    if not cert:
        return None
    try:
        return identity_of(cert)
    except Unauthorized as error:
        return Unauthorized(str(error))


def serial_text(serial: int) -> str:
    """A serial number as people compare it: hexadecimal, two digits a byte."""
    text = f"{serial:x}"
    return text if len(text) % 2 == 0 else f"0{text}"

"""Who asks: a certificate, the shared token, a Consul token, or nobody. What they may is the door's business.

The order is fixed: whoever shows a certificate is whom it names, and no token makes more or less of it. Tokens count
only beside no certificate. Where nothing at all is asked for (a daemon on loopback), everybody may everything.
"""

from __future__ import annotations

import hmac
import time
from typing import TYPE_CHECKING

from rebootd.api.callers import NOBODY, remember
from rebootd.core.caller import Caller, Role
from rebootd.core.errors import Unauthorized
from rebootd.tls.identity import MACHINE, SERVER, SHOWN, Identity, serial_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import web

    from rebootd.api.people import ConsulPeople

CONSUL_TOKEN = "X-Consul-Token"  # noqa: S105  the name of a header


class Guard:
    """One per daemon. ``token`` "" and ``people`` None ask for no such token.

    ``tls`` tells that callers come over TLS, ``revoked`` gives the serial numbers that are revoked at present.
    """

    def __init__(
        self,
        *,
        token: str = "",
        people: ConsulPeople | None = None,
        tls: bool = False,
        revoked: Callable[[], frozenset[int]] = frozenset,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.tls = tls
        self._bearer = b"Bearer " + token.encode() if token else b""
        self._people = people
        self._revoked = revoked
        self._wall = wall
        self._open = not (self._bearer or people or tls)

    @property
    def wanted(self) -> str:
        """What a caller has to show."""
        ways = [
            *(["a certificate of this fleet's authority"] if self.tls else []),
            *(["the shared token (Authorization: Bearer <token>)"] if self._bearer else []),
            *([f"a Consul token ({CONSUL_TOKEN})"] if self._people else []),
        ]
        return " or ".join(ways)

    async def caller(self, request: web.Request) -> Caller:
        """Who asks, NOBODY when nothing was shown. Raises Unauthorized for what proves nobody, StoreError when Consul
        cannot say whose token it is.
        """
        transport = request.transport
        address = request.remote or ""
        if self.tls:
            who = transport.get_extra_info(SHOWN) if transport is not None else None
            if isinstance(who, Unauthorized):
                raise Unauthorized(str(who))
            if isinstance(who, Identity):
                return self._certified(request, who, address)
        if self._bearer and "Authorization" in request.headers:
            scheme, _, shown = request.headers["Authorization"].partition(" ")
            given = f"{scheme.title()} {shown}".encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(given, self._bearer):
                raise Unauthorized("the token is not this daemon's (Authorization: Bearer <token>)")
            return Caller(identity="token", kind="token", role=Role.ADMIN, address=address)
        if self._people is not None and CONSUL_TOKEN in request.headers:
            person = await self._people.find(request.headers[CONSUL_TOKEN])
            return Caller(identity=person.identity, kind="person", role=person.role, address=address)
        if self._open:
            return Caller(identity="loopback", kind="loopback", role=Role.ADMIN, address=address)
        return NOBODY

    def _certified(self, request: web.Request, who: Identity, address: str) -> Caller:
        # What it may no more is its own all the same: the audit log tells who tried.
        kind = "machine" if who.role == MACHINE else "person"
        shown = who.uri if who.role == SERVER else who.name
        remember(request, Caller(identity=shown, kind=kind, role="", address=address))
        # The handshake looked at this too, but the connection may be older than the list, or than the end.
        if who.serial in self._revoked():
            raise Unauthorized(f"certificate {serial_text(who.serial)} of {who.uri} is revoked")
        if who.expires < self._wall():
            raise Unauthorized(f"certificate {serial_text(who.serial)} of {who.uri} has expired")
        if who.role == SERVER:
            raise Unauthorized(f"{who.uri} is a daemon: it may not ask for anything")
        return Caller(identity=who.name, kind=kind, role=who.role, address=address)

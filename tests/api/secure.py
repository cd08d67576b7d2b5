"""The API over mutual TLS on a real port, for tests."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec

from rebootd.api.app import make_app
from rebootd.api.connections import DEFAULT_LIMITS, Limits
from rebootd.api.guard import Guard
from rebootd.api.listen import Serving, serve
from rebootd.tls.contexts import client_context
from rebootd.tls.files import TlsFiles
from rebootd.tls.follow import ServerTls
from rebootd.tls.identity import SERVER_NAME
from rebootd.tls.listener import observe
from tests.api.fake_desk import FakeDesk, FakeOffice, fleet
from tests.support.pki import Pki, field

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable

    from rebootd.api.people import ConsulPeople
    from rebootd.core.audit import Asked


class Secure:
    """A daemon's API behind certificates. ``refused`` are the handshakes that failed, in the daemon's words."""

    def __init__(self, serving: Serving, office: FakeOffice, tls: ServerTls, refused: list[str]) -> None:
        self.url = serving.url
        self.serving = serving
        self.office = office
        self.tls = tls
        self.refused = refused

    async def ask(
        self, files: TlsFiles | ssl.SSLContext, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[int, Any]:
        """One request on a connection of its own. Raises what aiohttp raises when it is not let in."""
        context = client_context(files, field) if isinstance(files, TlsFiles) else files
        data = body if isinstance(body, bytes) or body is None else msgspec.json.encode(body)
        async with (
            aiohttp.ClientSession() as client,
            client.request(
                method,
                self.url + path,
                data=data,
                headers=headers,
                allow_redirects=False,
                ssl=context,
                server_hostname=SERVER_NAME,
            ) as response,
        ):
            text = await response.read()
            return response.status, msgspec.json.decode(text) if text[:1] in {b"{", b"["} else text


@asynccontextmanager
async def secured(
    pki: Pki,
    *,
    files: TlsFiles | None = None,
    token: str = "",
    people: ConsulPeople | None = None,
    office: FakeOffice | None = None,
    turned_away: Callable[[Asked, str], None] | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> AsyncIterator[Secure]:
    """A daemon with a certificate of ``pki``, which follows its files."""
    refused: list[str] = []
    tls = ServerTls(
        files or pki.server(), field, demand=not (token or people), dress=lambda c: observe(c, refused.append)
    )
    guard = Guard(token=token, people=people, tls=True, revoked=lambda: tls.state.revoked)
    office = office or FakeOffice(FakeDesk(fleet()))
    app = make_app(office, metrics=lambda: b"rebootd_up 1\n", guard=guard, refused=turned_away)
    serving = await serve(app, "127.0.0.1", 0, limits, context=tls.state.context)
    following = asyncio.create_task(tls.run(serving.renew))
    try:
        yield Secure(serving, office, tls, refused)
    finally:
        following.cancel()
        await asyncio.wait({following})
        await serving.close()

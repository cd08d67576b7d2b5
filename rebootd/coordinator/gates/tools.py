"""What every reader of a gate needs: one shared HTTP session, Consul, and JSON that is what it should be."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec

from rebootd.core.errors import InvalidInput, RebootdError, Unreachable
from rebootd.tls.files import TlsFiles, check_pem
from rebootd.tls.follow import Renewed
from rebootd.tls.words import of_service

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rebootd.consul.client import Consul

T = TypeVar("T")

MOST = 16 * 1024 * 1024
"""Bytes of an answer that are read at most."""
CONNECTIONS = 16


class NotAllowed(Unreachable):
    """Whoever was asked said 403: our token does not go that far."""


class Tools:
    """Belongs to one daemon. ``addresses`` maps addresses of Consul's catalog to names of nodes; ``tokens`` is a folder
    with a file ``HOST:PORT`` for each address that wants a token. ``tls`` is what ``https`` addresses are spoken to
    with: whose authority is trusted (``""``: the system's), and what is shown; new files are taken as they come.

    Every method raises ``Unreachable`` with a sentence that says what could not be had; files that cannot be used are
    InvalidInput at once.
    """

    def __init__(self, consul: Consul | None, tokens: Path | None = None, tls: TlsFiles | None = None) -> None:
        files = tls or TlsFiles()
        self._tls = Renewed(files, lambda: gate_context(files)) if files.on else None
        self.consul = consul
        self._tokens = tokens
        self.addresses: Mapping[str, str] = {}
        self._session: aiohttp.ClientSession | None = None

    async def consul_json(self, path: str, kind: type[T], *params: tuple[str, str], also: Sequence[int] = ()) -> T:
        """Consul's answer; ``also`` are statuses beside 200 whose body is an answer too."""
        body, _ = await self.consul_get(path, params, also=also)
        return decoded(body, kind, path)

    async def consul_get(
        self,
        path: str,
        params: Sequence[tuple[str, str]],
        *,
        also: Sequence[int] = (),
    ) -> tuple[bytes, Mapping[str, str]]:
        """Body and headers of Consul's answer. A blocking query takes as long as its ``wait`` says."""
        if self.consul is None:
            raise Unreachable("this daemon has no Consul to ask")
        try:
            response = await self.consul.http.request("GET", path, list(params))
        except RebootdError as error:
            raise Unreachable(str(error)) from error
        if response.status != 200 and response.status not in also:
            raise Unreachable(f"Consul answers {path} with {response.status}: {response.text[:200]}")
        return response.body, response.headers

    async def http_json(
        self,
        url: str,
        kind: type[T],
        params: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        *,
        also: Sequence[int] = (),
    ) -> T:
        """The answer of another service. Redirects are not followed: a login page is no reading."""
        try:
            async with self._open().get(
                url,
                params=list(params),
                headers=dict(headers or {}),
                allow_redirects=False,
                ssl=self._wire(),
            ) as response:
                body = await response.content.read(MOST + 1)
                while len(body) <= MOST and (more := await response.content.read(MOST + 1 - len(body))):
                    body += more
        except (aiohttp.ClientError, ValueError) as error:
            raise Unreachable(f"{url}: {of_service(error)}") from error
        if len(body) > MOST:
            raise Unreachable(f"{url}: the answer is larger than {MOST} bytes")
        if response.status != 200 and response.status not in also:
            said = body[:200].decode("utf-8", "replace").strip()
            raise (NotAllowed if response.status == 403 else Unreachable)(f"{url}: {response.status} {said}")
        return decoded(body, kind, url)

    async def send(self, method: str, url: str, body: object, headers: Mapping[str, str]) -> None:
        """Asks another service to do something, once. Raises ``Unreachable`` when it does not say that it did."""
        try:
            async with self._open().request(
                method, url, json=body, headers=dict(headers), allow_redirects=False, ssl=self._wire()
            ) as response:
                said = (await response.content.read(200)).decode("utf-8", "replace").strip()
        except (aiohttp.ClientError, ValueError) as error:
            raise Unreachable(f"{url}: {of_service(error)}") from error
        if response.status not in {200, 204}:
            raise Unreachable(f"{url}: {response.status} {said}")

    def _wire(self) -> ssl.SSLContext | bool:
        return self._tls.context() if self._tls is not None else True

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS), cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._session

    def token(self, address: str) -> str:
        """The token for the host and port of ``address``, ``""`` without one; read anew so that it can be changed.

        It is found by where it goes, and not named by the policy: whoever may change the policy could else have any
        file of the leader's host sent to any address.
        """
        if self._tokens is None:
            return ""
        url = urlsplit(address)
        path = self._tokens / f"{url.hostname}:{url.port or {'http': 80, 'https': 443}[url.scheme]}"
        try:
            text = path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError) as error:
            raise Unreachable(f"the token {path} cannot be read: {getattr(error, 'strerror', error)}") from error
        if not text or not text.isprintable():
            raise Unreachable(f"{path} holds no token")
        return text

    def bearer(self, address: str) -> dict[str, str]:
        """The header that shows that token."""
        found = self.token(address)
        return {"Authorization": f"Bearer {found}"} if found else {}

    async def close(self) -> None:
        """Ends every connection but Consul's, which is not ours."""
        if self._session is not None:
            await self._session.close()


def gate_context(files: TlsFiles) -> ssl.SSLContext:
    """What services beside Consul are spoken to with over https. Raises InvalidInput for files that cannot be used."""
    for name, kind in (("ca", "CERTIFICATE"), ("cert", "CERTIFICATE"), ("key", "PRIVATE KEY")):
        path = str(getattr(files, name))
        if path:
            check_pem(Path(path), kind, f"gate-{name}", private=name == "key")
    if bool(files.cert) != bool(files.key):
        given, missing = ("cert", "key") if files.cert else ("key", "cert")
        raise InvalidInput(f"gate-{missing}", "", f"a file, since gate-{given} is given")
    try:
        context = ssl.create_default_context(cafile=files.ca or None)
        if files.cert:
            context.load_cert_chain(files.cert, files.key, password="")
    except (OSError, ssl.SSLError) as error:
        accepted = f"PEM files that can be used: {getattr(error, 'reason', None) or error}"
        raise InvalidInput("gate-cert" if files.cert else "gate-ca", files.cert or files.ca, accepted) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def decoded(body: bytes, kind: type[T], where: str) -> T:
    """The body as ``kind``."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Unreachable(f"{where}: the answer cannot be read: {error}") from error

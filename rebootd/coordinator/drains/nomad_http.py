"""Nomad's HTTP API as far as it is spoken here: where it is, its token and certificates, and its answers as errors.

Sources: Nomad's pages "HTTP API" and "Commands: environment variables".
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec
from yarl import URL

from rebootd.core.errors import Denied, InvalidInput, NotFound, OutcomeUnknown, Refused, Unreachable
from rebootd.tls.files import TlsFiles
from rebootd.tls.follow import Renewed
from rebootd.tls.words import of_service

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")

MOST = 64 * 1024 * 1024
"""Bytes of an answer that are read at most."""
CONNECTIONS = 8
_ENVIRONMENT = {
    "address": "NOMAD_ADDR",
    "token": "NOMAD_TOKEN",
    "token_file": "NOMAD_TOKEN_FILE",
    "region": "NOMAD_REGION",
    "ca_file": "NOMAD_CACERT",
    "cert_file": "NOMAD_CLIENT_CERT",
    "key_file": "NOMAD_CLIENT_KEY",
    "server_name": "NOMAD_TLS_SERVER_NAME",
}
"""Nomad's own names, and ``NOMAD_TOKEN_FILE``, which is ours."""


class NomadSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach a Nomad agent. ``address`` is a URL: ``http``, ``https``, or ``unix:///path`` (the Task API).

    Files are paths, ``""`` means not given. A ``token_file`` wins over ``token`` and is read for every request, so that
    a rotated token needs no restart. ``timeout`` is for one request, in seconds. Raises :class:`InvalidInput`.
    """

    address: str
    token: str = ""
    token_file: str = ""
    region: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    server_name: str = ""
    verify: bool = True
    timeout: float = 10.0

    def __post_init__(self) -> None:
        accepted = "an address such as http://127.0.0.1:4646, https://host:4646 or unix:///path/to/api.sock"
        try:
            url = urlsplit(self.address)
            fits = url.hostname is not None and (url.port or 1) > 0 if url.scheme != "unix" else bool(url.path)
        except ValueError:
            raise InvalidInput("nomad", self.address, accepted) from None
        if url.scheme not in {"http", "https", "unix"} or not fits or url.query or url.fragment or url.username:
            raise InvalidInput("nomad", self.address, accepted)
        if self.key_file and not self.cert_file:
            raise InvalidInput("nomad.key_file", self.key_file, "a cert_file beside it")

    @classmethod
    def from_env(cls, environ: Mapping[str, str], **explicit: str | None) -> NomadSettings | None:
        """The settings of ``environ``, each overridden by its explicit value if not None; None without an address."""
        given: dict[str, Any] = {name: value for name, value in explicit.items() if value is not None}
        if given.get("token_file"):
            given.setdefault("token", "")
        values: dict[str, Any] = {
            name: environ[variable] for name, variable in _ENVIRONMENT.items() if environ.get(variable)
        }
        values |= given
        if not values.get("address"):
            return None
        skip = environ.get("NOMAD_SKIP_VERIFY", "").strip().lower()
        return cls(**values, verify=skip not in {"1", "t", "true"})

    def read_token(self) -> str:
        """The token to send, or ``""``. Raises ``Unreachable`` for a file that cannot be read."""
        if not self.token_file:
            return self.token
        try:
            return Path(self.token_file).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Unreachable(f"Nomad's token {self.token_file} cannot be read: {error}") from error

    def tls(self) -> ssl.SSLContext:
        """What an ``https`` address is spoken to with. Raises InvalidInput for files that cannot be used."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
            if self.cert_file:
                context.load_cert_chain(self.cert_file, self.key_file or None)
        except (OSError, ssl.SSLError) as error:
            raise InvalidInput("nomad", self.ca_file or self.cert_file, f"readable certificates ({error})") from error
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


class NomadHttp:
    """One session to one Nomad agent, made when it is first needed."""

    def __init__(self, settings: NomadSettings) -> None:
        self._settings = settings
        files = TlsFiles(ca=settings.ca_file, cert=settings.cert_file, key=settings.key_file)
        secure = urlsplit(settings.address).scheme == "https"
        self._tls = Renewed(files, settings.tls) if secure else None
        url = urlsplit(settings.address)
        self._socket = url.path if url.scheme == "unix" else ""
        self._base = "http://nomad" if self._socket else settings.address.rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    async def get(
        self, path: str, kind: type[T], params: Mapping[str, str] | None = None
    ) -> tuple[T, Mapping[str, str]]:
        """The answer and its headers. Raises NotFound, Denied, Refused, and Unreachable for all that is no answer."""
        try:
            status, body, headers = await self._call("GET", path, params, None)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise Unreachable(f"{self._settings.address}: {of_service(error)}") from error
        _judge(status, body, path, Unreachable)
        try:
            return msgspec.json.decode(body, type=kind), headers
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Unreachable(f"{path}: the answer cannot be read: {error}") from error

    async def put(self, path: str, body: Mapping[str, Any]) -> None:
        """Sends an order, once. Raises Denied, Refused and NotFound (nothing was done), or OutcomeUnknown."""
        try:
            status, said, _ = await self._call("PUT", path, None, msgspec.json.encode(body))
        except aiohttp.ClientConnectorError as error:
            raise Unreachable(f"{self._settings.address}: {of_service(error)}") from error
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise OutcomeUnknown(f"{self._settings.address}: {of_service(error)}") from error
        _judge(status, said, path, OutcomeUnknown)

    async def _call(
        self, method: str, path: str, params: Mapping[str, str] | None, body: bytes | None
    ) -> tuple[int, bytes, Mapping[str, str]]:
        settings = self._settings
        query = dict(params or {}) | ({"region": settings.region} if settings.region else {})
        text = "&".join(f"{quote(k, safe='')}={quote(v, safe='')}" for k, v in query.items())
        token = settings.read_token()
        # A redirect would carry the token to wherever it points.
        async with self._open().request(
            method,
            URL(f"{self._base}{path}{f'?{text}' if text else ''}", encoded=True),
            data=body,
            headers={"X-Nomad-Token": token} if token else {},
            server_hostname=settings.server_name or None,
            # New files make a new context, and thereby new connections; the old ones end when they are idle.
            ssl=self._tls.context() if self._tls is not None else True,
            allow_redirects=False,
        ) as response:
            said = await response.content.read(MOST + 1)
            while len(said) <= MOST and (more := await response.content.read(MOST + 1 - len(said))):
                said += more
            if len(said) > MOST:
                raise ValueError(f"{path}: the answer is larger than {MOST} bytes")
            return response.status, said, response.headers

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            connector: aiohttp.BaseConnector
            if self._socket:
                connector = aiohttp.UnixConnector(self._socket, limit=CONNECTIONS)
            else:
                connector = aiohttp.TCPConnector(limit=CONNECTIONS)
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=self._settings.timeout, connect=3.0),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    async def close(self) -> None:
        """Ends every connection."""
        if self._session is not None:
            await self._session.close()


def _judge(status: int, body: bytes, path: str, unknown: type[Unreachable | OutcomeUnknown]) -> None:
    """Raises what a status other than 200 means; a server error says nothing about what was done."""
    if status == 200:
        return
    said = f"Nomad answers {path} with {status}: {body[:200].decode('utf-8', 'replace').strip()}"
    if status == 403:
        raise Denied(said)
    if status == 404:
        raise NotFound(said)
    # "can not set node's scheduling eligibility ... while it is draining" comes as 500: whatever it is, look again.
    raise Refused(said) if 400 <= status < 500 and status != 429 else unknown(said)

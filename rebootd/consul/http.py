"""HTTP to a Consul agent, and what a failure means.

- no answer to a read, to a session call or to a call that only concerns the local agent is ``Unreachable``;
- a write that may have been sent and got no answer, or a 5xx (also then it may land), is ``OutcomeUnknown``; one whose
  connection could not even be opened is ``Unreachable``, since nothing was sent;
- 403 is ``Denied``, 413 is ``TooLarge``, other refusals are ``Refused``; 404 is an empty answer, or ``NotFound`` where
  the endpoint says that it must not be.

Timeouts: each call takes ``timeout`` seconds if given, else those of the surrounding ``with within(seconds):``, else
``DEFAULT_TIMEOUT``; a blocking query is given Consul's own wait, its jitter of a sixteenth, and a margin on top.

Py-consul is not needed here: the agent, which runs on every host, asks its Consul in this way alone.
"""

from __future__ import annotations

import re
import ssl
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import quote, urlencode

import aiohttp
from yarl import URL

from rebootd.consul.token import Token
from rebootd.core.errors import Denied, InvalidInput, OutcomeUnknown, Refused, StoreError, TooLarge, Unreachable
from rebootd.tls.files import TlsFiles
from rebootd.tls.follow import Renewed
from rebootd.tls.words import of_service

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rebootd.consul.settings import ConsulSettings

    Params = Sequence[tuple[str, Any]] | None

DEFAULT_TIMEOUT = 5.0
CONNECTIONS = 48
"""Pooled connections; Consul allows 200 per client address by default, shared by every process of a host."""
WAIT_MARGIN = 3.0
DEFAULT_WAIT = 300.0
"""What Consul waits when a blocking query names no wait."""

_timeout: ContextVar[float | None] = ContextVar("rebootd_consul_timeout", default=None)
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class Response(NamedTuple):
    """An answer: status, headers (case-insensitive) and the whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as text, for messages."""
        return self.body.decode("utf-8", "replace").strip()


class _LostError(Exception):
    """The connection ended after the request may have been sent (never leaves this module)."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Gives the calls started inside at most ``seconds`` each; for py-consul's endpoints, which take no timeout."""
    token = _timeout.set(seconds)
    try:
        yield
    finally:
        _timeout.reset(token)


async def _send_once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    # aiohttp resends a PUT by itself when a pooled connection breaks: a CAS that had landed would come back as a
    # conflict. An exception that it does not know ends its retry loop.
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _LostError(str(error) or type(error).__name__) from error


def seconds(duration: object) -> float:
    """Seconds of one of Consul's durations (``"10s"``, ``"1m30s"``); 0 when it is not one."""
    parts = re.findall(r"([0-9]+(?:\.[0-9]*)?)(ms|s|m|h)", str(duration))
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def milliseconds(duration: float) -> str:
    """Seconds as one of Consul's durations, exact to the millisecond."""
    return f"{round(duration * 1000)}ms"


def is_write(method: str, path: str) -> bool:
    """Whether a lost answer leaves an outcome that somebody must settle."""
    return method != "GET" and not path.startswith(("/v1/session/", "/v1/agent/"))


def failure(method: str, path: str, response: Response) -> Exception | None:
    """The error that an answer stands for, or None when it is a success or a plain 404."""
    status, what = response.status, f"{method} {path}: {response.status} {response.text[:500]}"
    if status < 400 or status == 404:
        return None
    if status == 403:
        return Denied(what)
    if status == 413:
        return TooLarge(what)
    if status == 429:
        return Unreachable(what)
    if status >= 500:
        return OutcomeUnknown(what) if is_write(method, path) else Unreachable(what)
    return Refused(what)


class Http:
    """A pooled HTTP client for one Consul agent. Used from one event loop; :meth:`close` ends its connections."""

    def __init__(self, settings: ConsulSettings) -> None:
        scheme, host, port = settings.endpoint()
        self.base_uri = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        self.settings = settings
        self._token = Token(settings)
        files = TlsFiles(ca=settings.ca_file, cert=settings.cert_file, key=settings.key_file)
        self._tls = Renewed(files, lambda: _context(settings)) if scheme == "https" else None
        self._session: aiohttp.ClientSession | None = None

    def uri(self, path: str, params: Params = None) -> str:
        """The address of a path with its query."""
        query = f"?{urlencode(params)}" if params else ""
        return f"{self.base_uri}{quote(path, safe='/:')}{query}"

    async def request(
        self,
        method: str,
        path: str,
        params: Params = None,
        body: bytes | str | None = None,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """One request, sent once; any status is an answer.

        Raises ``Unreachable`` or ``OutcomeUnknown`` (see the module) when there is none.
        """
        query: list[tuple[str, Any]] = list(params or ())
        if (
            self.settings.datacenter
            and not path.startswith("/v1/agent/")
            and not any(name == "dc" for name, _ in query)
        ):
            query.append(("dc", self.settings.datacenter))
        limit = timeout if timeout is not None else self._allowed(query)
        token = self._token.current()
        sent = {"X-Consul-Token": token} if token else {}
        sent.update(headers or {})
        call = f"{method} {path}"
        try:
            response = await self._once(method, URL(self.uri(path, query), encoded=True), sent, body, limit)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Unreachable(f"{call} at {self.settings.address}: {of_service(error)}") from error
        except (TimeoutError, _LostError, aiohttp.ClientError) as error:
            reason = f"no answer within {limit:g} s" if isinstance(error, TimeoutError) else of_service(error)
            kind: type[StoreError] = OutcomeUnknown if is_write(method, path) else Unreachable
            raise kind(f"{call}: {reason}") from error
        if response.status == 403:
            self._token.read_again()
        return response

    async def _once(
        self, method: str, url: URL, headers: Mapping[str, str], body: bytes | str | None, limit: float
    ) -> Response:
        async with self._open().request(
            method,
            url,
            headers=headers,
            data=body or None,
            timeout=aiohttp.ClientTimeout(total=limit, sock_connect=limit),
            server_hostname=self.settings.server_name or None,
            # New files make a new context, and thereby new connections; the old ones end when they are idle.
            ssl=self._tls.context() if self._tls is not None else True,
            allow_redirects=False,
        ) as response:
            return Response(response.status, response.headers, await response.read())

    def _open(self) -> aiohttp.ClientSession:
        # Made at the first request, because a session belongs to the loop that is running then.
        if self._session is None or self._session.closed:
            connector = aiohttp.TCPConnector(limit=CONNECTIONS)
            self._session = aiohttp.ClientSession(
                connector=connector,
                middlewares=(_send_once,),
                cookie_jar=aiohttp.DummyCookieJar(),
                # On loopback, compressing costs more than it saves.
                headers={"Accept-Encoding": "identity"},
            )
        return self._session

    @staticmethod
    def _allowed(query: Sequence[tuple[str, Any]]) -> float:
        base = _timeout.get()
        base = DEFAULT_TIMEOUT if base is None else base
        given = dict(query)
        if not given.get("index"):
            return base
        wait = seconds(given["wait"]) if "wait" in given else DEFAULT_WAIT
        return wait + wait / 16 + max(base, WAIT_MARGIN)

    async def close(self) -> None:
        """Ends every connection."""
        if self._session is not None:
            await self._session.close()


class Linked(Protocol):
    """What holds a connection to one Consul agent: a :class:`Link`, or py-consul's client over our transport."""

    @property
    def http(self) -> Http:
        """For raw requests."""
        ...

    async def close(self) -> None:
        """Ends every connection."""
        ...


class Link:
    """One Consul agent, asked by raw requests through ``http``."""

    def __init__(self, settings: ConsulSettings) -> None:
        self.http = Http(settings)

    async def close(self) -> None:
        """Ends every connection."""
        await self.http.close()


def _context(settings: ConsulSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput("consul.ca_file", settings.ca_file, f"a file of PEM certificates ({error})") from error
    if settings.cert_file:
        try:
            context.load_cert_chain(settings.cert_file, settings.key_file or None)
        except (OSError, ssl.SSLError) as error:
            raise InvalidInput("consul.cert_file", settings.cert_file, f"a PEM pair ({error})") from error
    if not settings.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context

"""How rebootctl talks to daemons: plain http.client, so that it starts fast; finds the leader by redirects.

Raises :class:`Trouble` for everything that can go wrong, with the exit code of the command line.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import time
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

from rebootd import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rebootd.cli.ctl_tls import Wire

T = TypeVar("T")

FAILED, BAD_INPUT, UNREACHABLE = 1, 2, 3
HOPS = 5
PAUSE = 0.3
NOT_REACHED_FOR = 60.0
"""Seconds without a leader after which a command that follows gives up."""
STREAM_SILENCE = 45.0
"""Seconds without even a heartbeat after which an event stream counts as dead."""


class Trouble(Exception):
    """A command that did not do what was asked. ``code`` is the exit code, ``problem`` the server's JSON."""

    def __init__(self, text: str, code: int = FAILED, problem: Mapping[str, Any] | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.problem = dict(problem or {"error": text})


class _NotSentError(Exception):
    """No connection: the request never left."""


class Client:
    """Asks whichever of ``servers`` answers and follows it to the leader. ``timeout`` is seconds in all.

    ``token`` is the shared one, ``consul_token`` the person's own. ``wire`` None speaks plain HTTP, or https with the
    system's authorities.
    """

    def __init__(
        self,
        servers: Sequence[str],
        token: str = "",
        timeout: float = 10.0,
        *,
        consul_token: str = "",
        wire: Wire | None = None,
    ) -> None:
        self._servers = list(servers)
        self._token = token
        self._consul_token = consul_token
        self._wire = wire
        self._timeout = timeout
        # One for all that a command asks, so that logs, events and agents tell of the same.
        self.request_id = os.urandom(16).hex()

    def ask(self, method: str, path: str, body: bytes | None = None, **query: object) -> bytes:
        """The body of the answer. What only looks is tried again while nobody leads; a change is not,
        once it was sent.
        """
        return self.ask_patiently(0.0, method, path, body, **query)

    def ask_patiently(
        self, patience: float, method: str, path: str, body: bytes | None = None, **query: object
    ) -> bytes:
        """The same; ``patience`` is how long (seconds) the answer may take once a daemon has the request."""
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                return self._open(method, _target(path, query), body, deadline, silence=patience).read()
            except ssl.SSLError as error:
                # It was refused before a word of ours was read: nothing was done, and asking again changes nothing.
                raise Trouble(f"not let in: {_reason(error)}") from None
            except (OSError, http.client.HTTPException) as error:
                trouble = Trouble(f"the connection broke: {_reason(error)}", UNREACHABLE)
                if method != "GET":
                    raise Trouble(
                        f"the connection broke before the answer came ({_reason(error)}): it may have been done; "
                        "look before you ask again",
                        UNREACHABLE,
                    ) from None
            except _RetryError as again:
                trouble = again.trouble
            if time.monotonic() + PAUSE >= deadline:
                raise trouble
            time.sleep(PAUSE)

    def lines(self, path: str, **query: object) -> Iterator[bytes]:
        """The lines of a stream until it ends. Heartbeats are left out."""
        deadline = time.monotonic() + self._timeout
        try:
            response = self._open("GET", _target(path, query), None, deadline, silence=STREAM_SILENCE)
            while line := response.readline():
                if line.strip():
                    yield line
        except (OSError, http.client.HTTPException) as error:
            raise Trouble(f"the stream broke: {_reason(error)}", UNREACHABLE) from None
        except _RetryError as again:
            raise again.trouble from None

    def _open(
        self, method: str, target: str, body: bytes | None, deadline: float, silence: float = 0.0
    ) -> http.client.HTTPResponse:
        """A successful response. Raises Trouble, OSError once it was sent, or _RetryError when another try is safe."""
        tried = []
        for server in _expand(self._servers, "http" if self._wire is None else "https"):
            url = server + target
            for hop in range(HOPS):
                try:
                    response = self._send(method, url, body, max(0.5, deadline - time.monotonic()), silence)
                except _NotSentError as error:
                    tried.append(f"{url.split('/v1/')[0]}: {error}")
                    if hop:
                        # The leader that we were sent to is gone: there will be another one in a moment.
                        raise _RetryError(_unreachable(tried)) from None
                    break
                if response.status not in {307, 308}:
                    return _checked(response, method)
                url = _redirect(url, response, secret=bool(self._consul_token))
            else:
                raise _RetryError(Trouble("daemons send each other's callers in circles", UNREACHABLE))
        raise _unreachable(tried)

    def _send(
        self, method: str, url: str, body: bytes | None, timeout: float, silence: float
    ) -> http.client.HTTPResponse:
        parts = urlsplit(url)
        connection: http.client.HTTPConnection
        if self._wire is not None:
            connection = self._wire.connection(parts.hostname or "", parts.port, timeout)
        else:
            kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
            connection = kind(parts.hostname or "", parts.port, timeout=timeout)
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            raise _NotSentError(_reason(error)) from None
        headers = {"User-Agent": f"rebootctl/{__version__}", "X-Request-Id": self.request_id}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        if self._consul_token:
            headers["X-Consul-Token"] = self._consul_token
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection.request(method, url[len(f"{parts.scheme}://{parts.netloc}") :], body, headers)
        if silence:
            connection.sock.settimeout(silence)
        return connection.getresponse()


class _RetryError(Exception):
    """Not done, and safe to try again."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(str(trouble))
        self.trouble = trouble


def path_of(*parts: str) -> str:
    """``/v1/...`` of parts that may contain anything."""
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


def read_servers(text: str, *, tls: bool = False) -> list[str]:
    """``--server``: one or more addresses, separated by commas; with ``tls`` they speak https. Raises Trouble."""
    servers = [_normal(part.strip(), tls=tls) for part in text.split(",") if part.strip()]
    if not servers:
        raise Trouble("--server: '' is not accepted; expected a URL such as http://127.0.0.1:8473", BAD_INPUT)
    return servers


def _normal(server: str, *, tls: bool) -> str:
    if server.startswith("srv:"):
        return server
    url = server if "://" in server else f"{'https' if tls else 'http'}://{server}"
    try:
        parts = urlsplit(url)
        good = parts.scheme in {"http", "https"} and parts.hostname and parts.path in {"", "/"} and not parts.query
        port = parts.port
    except ValueError:
        good, port = None, None
    if not good or "@" in url:
        raise Trouble(
            f"--server: {server!r} is not accepted; expected http://host:port, or srv:<name> to look up in DNS",
            BAD_INPUT,
        )
    if tls and not url.startswith("https:"):
        raise Trouble(f"--server: {server!r} is not accepted; expected https://, since --tls-ca is given", BAD_INPUT)
    return url.rstrip("/") if port else f"{url.rstrip('/')}:8473"


def _expand(servers: Sequence[str], scheme: str) -> Iterator[str]:
    for server in servers:
        if server.startswith("srv:"):
            yield from _look_up(server.removeprefix("srv:"), scheme)
        else:
            yield server


def _look_up(name: str, scheme: str) -> list[str]:
    """Addresses behind an SRV name; ``name@host:port`` asks that DNS server (Consul's is on port 8600)."""
    import dns.exception
    import dns.resolver

    name, _, server = name.partition("@")
    try:
        resolver = dns.resolver.Resolver(configure=not server)
        if server:
            host, _, port = server.partition(":")
            resolver.nameservers, resolver.port = [host], int(port or 53)
        resolver.lifetime = 3.0
        found = []
        for record in resolver.resolve(name, "SRV"):
            addresses = resolver.resolve(record.target, "A")
            found += [f"{scheme}://{address.address}:{record.port}" for address in addresses]
    except (dns.exception.DNSException, ValueError, OSError) as error:
        raise Trouble(f"DNS has no daemon under {name}: {error}", UNREACHABLE) from None
    return found


def _target(path: str, query: Mapping[str, object]) -> str:
    given = {k: v for k, v in query.items() if v not in {None, ""}}
    return f"{path}?{urlencode(given)}" if given else path


def _redirect(url: str, response: http.client.HTTPResponse, *, secret: bool) -> str:
    response.read()
    target = response.getheader("Location", "")
    was, will = urlsplit(url), urlsplit(target)
    if will.scheme not in {"http", "https"} or (was.scheme == "https" and will.scheme == "http"):
        raise Trouble(f"a daemon sent us to {target!r}, which is not followed", UNREACHABLE)
    if secret and will.scheme == "http" and not is_local(will.hostname or ""):
        raise Trouble(f"a daemon sent us to {target!r}: a Consul token does not cross a plain wire", UNREACHABLE)
    return target


def is_local(host: str) -> bool:
    """Whether only this machine can hear what is said to ``host``."""
    return host in {"localhost", "::1"} or host.startswith("127.")


def _checked(response: http.client.HTTPResponse, method: str) -> http.client.HTTPResponse:
    if response.status < 300:
        return response
    raw = response.read()
    try:
        said = json.loads(raw)
        text = str(said["error"])
    except (ValueError, KeyError, TypeError):
        said, text = None, f"HTTP {response.status} {response.reason}; is this a rebootd daemon?"
    if response.status == 401:
        text += "; rebootctl shows who you are with --tls-cert and --tls-key, --token-file or --consul-token-file"
    if response.status == 503:
        trouble = Trouble(text, UNREACHABLE, said)
        if method == "GET":
            raise _RetryError(trouble)
        raise trouble
    raise Trouble(text, BAD_INPUT if response.status in {400, 413} else FAILED, said)


def _unreachable(tried: list[str]) -> Trouble:
    return Trouble(f"cannot reach a daemon ({'; '.join(tried)}); name one with --server or REBOOTD_ADDR", UNREACHABLE)


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        from rebootd.tls.words import why

        return why(error)
    if isinstance(error, TimeoutError) and not error.strerror:
        return "no answer in time"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__

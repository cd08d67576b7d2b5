"""Asking the coordinators: every instance tried, redirects followed by hand, the leader remembered."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import aiohttp
import msgspec
import structlog
from msgspec.structs import replace
from yarl import URL

from rebootd.agent.doubt import doubt
from rebootd.agent.settings import tls_setting
from rebootd.core.codec import read_json
from rebootd.core.errors import Forbidden, InvalidInput, NotFound, RebootdError, Refused, Unauthorized, Unreachable
from rebootd.core.wire import Answer, PermitAnswer, PermitRequest, Problem, Report
from rebootd.tls.follow import ClientTls
from rebootd.tls.identity import SERVER_NAME
from rebootd.tls.words import why

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Callable

    from rebootd.agent.settings import AgentSettings

T = TypeVar("T")
Reply = tuple[int, dict[str, str], bytes]
"""Status, headers (title case) and body."""
HOPS = 3
"""Redirects followed for one request: follower to leader, and a change of leadership or two meanwhile."""
BODY_LIMIT = 1 << 20
CONNECT_TIMEOUT = 2.0
PERMIT_TIMEOUT = 15.0
RETRY_AFTER_LIMIT = 30.0
_log = structlog.get_logger("rebootd.agent.client")

_DEFINITE: dict[int, type[RebootdError]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Refused,
}


class Backoff:
    """Pauses in seconds, doubling from ``first`` to the limit given at each call, each cut by up to a half."""

    def __init__(self, rng: random.Random, first: float = 0.2) -> None:
        self._rng = rng
        self._first = first
        self._failures = 0

    def reset(self) -> None:
        """The next pause is the first again."""
        self._failures = 0

    def next(self, limit: float, at_least: float = 0.0) -> float:
        """The next pause; ``at_least`` is what a server asked for, and only ever lengthened."""
        pause = min(limit, self._first * 2.0 ** min(self._failures, 20))
        self._failures += 1
        if at_least > 0:
            return at_least + self._rng.random() * max(pause, 0.5 * at_least)
        return pause * (1 - 0.5 * self._rng.random())


class NoCoordinator(Unreachable):
    """No instance answered; ``retry_after`` is the longest pause (seconds) that one asked for, 0 for none."""

    def __init__(self, tried: dict[str, str], retry_after: float) -> None:
        self.retry_after = retry_after
        told = "; ".join(f"{url}: {why}" for url, why in list(tried.items())[:6])
        super().__init__(f"no coordinator answered ({told})" if tried else "no coordinator could be found")


class _NextError(Exception):
    """This instance is of no use now; ask another (never leaves this module)."""

    def __init__(self, why: str, retry_after: float = 0.0) -> None:
        self.retry_after = retry_after
        super().__init__(why)


class Line(Protocol):
    """How a request gets to an instance."""

    async def post(self, url: str, body: bytes, headers: dict[str, str], timeout: float) -> Reply:
        """One request, no redirect followed. Raises ``OSError``, ``TimeoutError``, ``ValueError``, ``ClientError``."""
        ...

    async def close(self) -> None:
        """Ends every connection."""
        ...


class HttpLine:
    """A :class:`Line` over aiohttp. With ``tls`` the other side has to show a daemon's certificate before it hears a
    word; its address and name do not count.
    """

    def __init__(self, tls: ClientTls | None = None) -> None:
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None

    async def post(self, url: str, body: bytes, headers: dict[str, str], timeout: float) -> Reply:
        """One request; a body beyond ``BODY_LIMIT`` is a ``ValueError``."""
        limits = aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_TIMEOUT)
        secured: dict[str, Any] = {}
        if self._tls is not None:
            # New files make a new context, and thereby new connections; the old ones end when they are idle.
            secured = {"ssl": self._tls.context(), "server_hostname": SERVER_NAME}
        async with self._open().post(
            URL(url, encoded=True), data=body, headers=headers, timeout=limits, allow_redirects=False, **secured
        ) as response:
            data = bytearray()
            async for chunk in response.content.iter_any():
                data += chunk
                if len(data) > BODY_LIMIT:
                    raise ValueError("an answer that is too long")
            return response.status, {k.title(): v for k, v in response.headers.items()}, bytes(data)

    async def close(self) -> None:
        """Ends every connection."""
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        # Made at the first request, because a session belongs to the loop that is running then.
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=8, keepalive_timeout=90)
            self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        return self._session


class Coordinators:
    """A client of whoever leads. ``find`` yields lists of instances; ``leader`` is the URL that answered last."""

    def __init__(
        self, settings: AgentSettings, find: Callable[[], AsyncIterator[list[str]]], line: Line | None = None
    ) -> None:
        self._settings = settings
        self._find = find
        self._secure = settings.tls.on
        if line is None:
            line = HttpLine(ClientTls(settings.tls, tls_setting) if self._secure else None)
        self._line = line
        self._known: list[str] = []
        self._token = read_token(settings.token_file)
        self.leader = ""

    async def report(self, name: str, report: Report) -> Answer:
        """Reports and waits up to ``report.wait`` seconds for news. Raises ``NoCoordinator`` and definite refusals."""
        timeout = report.wait + self._settings.answer_grace
        loop = asyncio.get_running_loop()
        began = loop.time()

        def body() -> bytes:
            # Instances are asked one after another: with the time of the first request, the last one would take the
            # clock of this host to be wrong by all the time that was spent on waiting for the others.
            return msgspec.json.encode(replace(report, clock=report.clock + loop.time() - began))

        return await self._call(f"/v1/machines/{name}/report", body, Answer, timeout)

    async def permit(self, name: str, request: PermitRequest) -> PermitAnswer:
        """Asks for the permit. Raises ``NoCoordinator`` and definite refusals."""
        body = msgspec.json.encode(request)
        return await self._call(f"/v1/machines/{name}/permit", lambda: body, PermitAnswer, PERMIT_TIMEOUT)

    async def close(self) -> None:
        """Ends every connection."""
        await self._line.close()

    async def _call(self, path: str, body: Callable[[], bytes], answer: type[T], timeout: float) -> T:
        tried: dict[str, str] = {}
        retry_after = 0.0
        async for urls in self._candidates():
            for url in urls:
                if url in tried:
                    continue
                try:
                    return await self._follow(url, path, body, answer, timeout, tried)
                except _NextError as error:
                    tried.setdefault(url, str(error))
                    retry_after = max(retry_after, error.retry_after)
        self.leader = ""
        raise NoCoordinator(tried, retry_after)

    async def _candidates(self) -> AsyncIterator[list[str]]:
        if self.leader:
            yield [self.leader]
        found: list[str] = []
        async for urls in self._find():
            found += urls
            self._known = list(dict.fromkeys(found))
            yield urls
        if not found and self._known:
            # Neither DNS nor the catalog answers: where coordinators last were is better than nothing.
            yield list(self._known)

    async def _follow(
        self, url: str, path: str, body: Callable[[], bytes], answer: type[T], timeout: float, tried: dict[str, str]
    ) -> T:
        at, trusted = url, True
        for _ in range(HOPS + 1):
            if tried.get(at):
                raise _NextError(f"redirects to {at}, which failed")
            status, headers, data = await self._send(at, path, body(), timeout, tried, trusted=trusted)
            if status == 401 and not trusted:
                raise _NextError("asks for the token, and discovery does not name it")
            if status not in (307, 308):
                result = self._judge(status, headers, data, answer)
                self.leader = at if trusted else ""
                return result
            at = self._redirected(at, headers.get("Location", ""))
            trusted = await self._trusts(at)
        raise _NextError(f"more than {HOPS} redirects")

    async def _send(
        self, url: str, path: str, body: bytes, timeout: float, tried: dict[str, str], *, trusted: bool
    ) -> Reply:
        headers = {"Content-Type": "application/json"}
        if trusted and self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            return await self._line.post(url + path, body, headers, timeout)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            reason = why(error) or str(error) or type(error).__name__
            tried[url] = reason
            raise _NextError(reason) from error

    def _judge(self, status: int, headers: dict[str, str], data: bytes, answer: type[T]) -> T:
        if status == 200:
            try:
                said = read_json(data, answer)
            except msgspec.MsgspecError as error:
                raise _NextError(f"an answer that cannot be read: {error}") from error
            odd = doubt(said)
            if odd:
                raise _NextError(f"an answer that is none: {odd}")
            return said
        try:
            problem = read_json(data, Problem)
        except msgspec.MsgspecError:
            # Something else may listen at that port: only a coordinator's own refusal ends the search.
            raise _NextError(f"HTTP {status}", _retry_after(headers)) from None
        if status == 401:
            self._token = read_token(self._settings.token_file, self._token)
        if status == 400:
            raise InvalidInput(problem.field or "request", problem.value, problem.accepted or problem.error)
        if status in _DEFINITE:
            raise _DEFINITE[status](problem.error)
        raise _NextError(f"HTTP {status}: {problem.error}", _retry_after(headers))

    @staticmethod
    def _redirected(at: str, location: str) -> str:
        try:
            target, here = URL(location), URL(at)
            target = here.join(target)
            port = target.port
        except ValueError as error:
            raise _NextError(f"redirects to {location[:100]!r}") from error
        downgraded = here.scheme == "https" and target.scheme != "https"
        if downgraded or target.scheme not in ("http", "https") or not target.host or not port:
            raise _NextError(f"redirects to {location[:100]!r}")
        host = f"[{target.host}]" if ":" in target.host else target.host
        return f"{target.scheme}://{host}:{port}"

    async def _trusts(self, url: str) -> bool:
        """The token goes to hosts that discovery names, never to whatever an answer points at. With certificates the
        handshake decides: whoever is no daemon of this fleet hears nothing at all.
        """
        if self._secure:
            return True
        if url in self._known or url in self._settings.coordinators:
            return True
        # What is known may be from long ago: a leader that was not up then is named by now.
        async for urls in self._find():
            self._known = list(dict.fromkeys([*self._known, *urls]))
            if url in urls:
                return True
        if self._token:
            _log.warning("redirected to a host that discovery does not name; asked without the token", url=url)
        return False


def read_token(path: str, otherwise: str = "") -> str:
    """The shared token in a file, ``""`` without a file. Raises ``InvalidInput`` unless there is an ``otherwise``."""
    if not path:
        return ""
    try:
        token = Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        if otherwise:
            return otherwise
        raise InvalidInput("token_file", path, f"a readable text file ({error})") from error
    if not token.isprintable() or not token:
        raise InvalidInput("token_file", path, "a file with one printable word")
    return token


def _retry_after(headers: dict[str, str]) -> float:
    text = headers.get("Retry-After", "").strip()
    return min(float(text), RETRY_AFTER_LIMIT) if text.isascii() and text.isdigit() else 0.0

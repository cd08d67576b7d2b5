"""Where a daemon may listen, and the server itself.

A daemon listens on loopback, or with certificates, or asks every caller for a shared token that it reads from a file;
anything else is refused at start unless somebody says that it is meant.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import resource
import stat
from typing import TYPE_CHECKING, Any

import msgspec

from rebootd.api.connections import DEFAULT_LIMITS, Limits, Runner
from rebootd.api.handshake import Arrival
from rebootd.api.turns import Turns
from rebootd.core.errors import InvalidInput

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

    from aiohttp import web

DEFAULT_PORT = 8473
BACKLOG = 4096
"""Connections that may wait to be accepted: after a power loss a whole data center calls at once."""
ACCEPTS = 64
"""Connections that are accepted in one turn of the loop: asyncio would take all that wait, which is half a second."""
GRACE = 0.1
"""Seconds that running requests are given when the server stops; agents that wait are to leave at once."""
MAX_TOKEN_FILE = 4096

_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]*))(?::(?P<port>[0-9]{1,5}))?")
_TOKEN = re.compile(r"[!-~]{1,1024}")
_ACCEPTED = "host:port, such as 127.0.0.1:8473 or [::1]:8473 (port 0 takes a free one)"


class Listen(msgspec.Struct, frozen=True):
    """Where to listen and the shared token that counts (``""``: none)."""

    host: str
    port: int
    token: str = ""


def parse_listen(address: str, token_file: Path | None = None, *, tls: bool = False, insecure: bool = False) -> Listen:
    """The start rules. Raises InvalidInput for a bad address or token file, and for an address that
    others can reach with neither certificates nor a token, unless ``insecure`` says that everybody may everything.
    """
    match = _ADDRESS.fullmatch(address.strip())
    if match is None or not address.strip():
        raise InvalidInput("listen", address, _ACCEPTED)
    host = match["six"] or match["host"] or "0.0.0.0"
    port = int(match["port"]) if match["port"] else DEFAULT_PORT
    if port > 65535:
        raise InvalidInput("listen", address, _ACCEPTED)
    token = read_token(token_file) if token_file is not None else ""
    if not (token or tls or insecure or is_loopback(host)):
        accepted = "a loopback address (127.0.0.1, ::1, localhost), or --tls-ca or --token-file beside any other"
        raise InvalidInput("listen", address, accepted)
    return Listen(host, port, token)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``. A name other than localhost never counts."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_token(path: Path, field: str = "token-file") -> str:
    """The token in a file that other users of the host cannot read. Raises InvalidInput."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_TOKEN_FILE:
            raise InvalidInput(field, str(path), f"a regular file of at most {MAX_TOKEN_FILE} bytes")
        if status.st_mode & (stat.S_IROTH | stat.S_IWOTH):
            mode = stat.S_IMODE(status.st_mode)
            raise InvalidInput(field, f"{path} (mode {mode:04o})", "a file that others cannot read: chmod 600")
        token = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise InvalidInput(field, str(path), f"a file that can be read ({error.strerror})") from None
    except UnicodeDecodeError:
        token = ""
    if not _TOKEN.fullmatch(token):
        raise InvalidInput(field, str(path), "a file with one token of 1 to 1024 printable ASCII characters")
    return token


class Serving:
    """A server that runs. ``url`` is where it can be reached, by its bound address; ``gate`` tells who is connected."""

    def __init__(self, runner: Runner, turns: Turns, server: asyncio.Server, host: str, *, tls: bool) -> None:
        self._runner = runner
        self._turns = turns
        self._servers = [server]
        self.gate = runner.gate
        self.port = int(server.sockets[0].getsockname()[1])
        shown = f"[{host}]" if ":" in host else host
        self.url = f"{'https' if tls else 'http'}://{shown}:{self.port}"

    @property
    def handshakes_waiting(self) -> int:
        """How many handshakes wait for their turn."""
        return self._turns.waiting

    async def renew(self, context: ssl.SSLContext) -> None:
        """New connections get ``context`` from now on; those that are open stay as they are, and none is refused."""
        old = self._servers
        # The same sockets under new names: what waits to be accepted stays in their queue.
        sockets = [sock.dup() for server in old for sock in server.sockets]
        self._servers = [await _listen(self._runner, self._turns, context, sock=sock) for sock in sockets]
        for server in old:
            server.close()

    async def close(self) -> None:
        """Stops listening, gives running requests ``GRACE`` seconds, and ends them."""
        for server in self._servers:
            server.close()
        await self._runner.cleanup()


async def serve(
    app: web.Application,
    host: str,
    port: int,
    limits: Limits = DEFAULT_LIMITS,
    context: ssl.SSLContext | None = None,
) -> Serving:
    """Serves ``app``, over TLS with a ``context``. Raises OSError when the address cannot be bound."""
    lift_open_files()
    runner = Runner(app, limits, handler_cancellation=True, shutdown_timeout=GRACE)
    await runner.setup()
    turns = Turns()
    try:
        server = await _listen(runner, turns, context, host=host, port=port)
    except OSError:
        await runner.cleanup()
        raise
    return Serving(runner, turns, server, host, tls=context is not None)


async def _listen(runner: Runner, turns: Turns, context: ssl.SSLContext | None, **where: Any) -> asyncio.Server:
    # Not a site of aiohttp's: those take no limit for the handshake, and cannot change their context.
    make = runner.server
    if make is None:
        raise RuntimeError("the runner is not set up")

    def arrived() -> asyncio.BaseProtocol:
        return make() if context is None else Arrival(make, context, runner.gate, turns)

    server = await asyncio.get_running_loop().create_server(arrived, backlog=ACCEPTS, **where)
    for sock in server.sockets:
        # The loop accepts as many at a time as it believes may wait; how many really may is the kernel's.
        with sock.dup() as same:
            same.listen(BACKLOG)
    return server


def lift_open_files() -> None:
    """Raises the soft limit of open files to the hard one: each waiting agent holds a connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

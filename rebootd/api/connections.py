"""Connections within limits: how many, how long a request's head may take, and how slowly an answer may be read.

Bodies have their own limits (see bodies). Every number here is in docs/limits.md, with the test that tries it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import resource
import socket
import sys
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from aiohttp import web

from rebootd.api.bodies import problem
from rebootd.core.wire import Problem
from rebootd.tls.identity import SHOWN, Identity

if TYPE_CHECKING:
    from aiohttp.web_request import BaseRequest

RESERVED = 512
"""Open files that are kept for everything but callers: Consul, files, the health check."""
TELL_EVERY = 60.0
"""Seconds between two lines in the log about connections that were turned away."""

log = structlog.get_logger(__name__)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one caller may take. Times are seconds.

    ``head``: for the whole head of a request, and for the first one to begin. ``idle``: between two requests.
    ``pace`` bytes of a waiting answer must be taken each ``look`` seconds, else the reader is too slow.
    ``per_address``: connections of one address; loopback, where relays are, is only bound by ``total`` (0: as many as
    the process may open, less ``RESERVED``). ``per_identity``: connections of one certificate's name, whatever
    addresses they come from.
    """

    head: float = 10.0
    idle: float = 75.0
    pace: int = 10_240
    look: float = 10.0
    per_address: int = 256
    per_identity: int = 32
    total: int = 0
    loopback: bool = False
    """Whether loopback is counted as any other address (for tests)."""


DEFAULT_LIMITS = Limits()


class Gate:
    """Who is connected now. Turning away costs a caller its connection and us one line a minute."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.total = limits.total or (max(64, files - RESERVED) if files != resource.RLIM_INFINITY else sys.maxsize)
        self.open = 0
        self.addresses: Counter[str] = Counter()
        self.identities: Counter[str] = Counter()
        self.turned_away = 0
        self._told = float("-inf")

    def enter(self, address: str) -> bool:
        """Whether one more connection of the address may stay; each that may must :meth:`leave`."""
        if self.open >= self.total:
            return self._away(address, "too many connections in all")
        if self.addresses[address] >= self.limits.per_address and (self.limits.loopback or not _loopback(address)):
            return self._away(address, "too many connections of one address")
        self.open += 1
        self.addresses[address] += 1
        return True

    def leave(self, address: str) -> None:
        """One connection of the address has ended."""
        self.open -= 1
        self.addresses[address] -= 1
        if not self.addresses[address]:
            del self.addresses[address]

    def name(self, identity: str, address: str) -> bool:
        """Whether one more connection of the identity may stay; each that may must :meth:`forget`."""
        if self.identities[identity] >= self.limits.per_identity:
            return self._away(address, f"too many connections of {identity}")
        self.identities[identity] += 1
        return True

    def forget(self, identity: str) -> None:
        """One connection of the identity has ended."""
        self.identities[identity] -= 1
        if not self.identities[identity]:
            del self.identities[identity]

    def _away(self, address: str, why: str) -> bool:
        self.turned_away += 1
        now = asyncio.get_running_loop().time()
        if now - self._told >= TELL_EVERY:
            self._told = now
            log.warning("connection turned away", why=why, address=address, so_far=self.turned_away, open=self.open)
        if not self.addresses[address]:
            del self.addresses[address]
        return False


def address_of(transport: asyncio.BaseTransport) -> str:
    """The peer's IP address, ``""`` when the connection has gone already."""
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if isinstance(peer, tuple) else ""


def _named(transport: asyncio.BaseTransport) -> str:
    """The name in the caller's certificate, ``""`` without one; a name that is none is the door's to refuse."""
    who = transport.get_extra_info(SHOWN)
    return who.uri if isinstance(who, Identity) else ""


def _loopback(address: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(address).is_loopback
    return False


class Connection(web.RequestHandler):
    """One connection, ended when it breaks a limit. aiohttp itself bounds neither a slow head nor a slow reader."""

    __slots__ = ("_address", "_counted", "_gate", "_head", "_identity", "_left", "_slow")

    def __init__(self, manager: Any, gate: Gate, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self._gate = gate
        self._address: str | None = None
        self._counted = False
        self._identity = ""
        self._head: asyncio.TimerHandle | None = None
        self._slow: asyncio.TimerHandle | None = None
        self._left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Counts it, or ends it; one over TLS was counted before its handshake (see handshake)."""
        address = address_of(transport)
        super().connection_made(transport)
        if transport.get_extra_info("sslcontext") is None:
            if not self._gate.enter(address):
                self._abort()
                return
            self._counted = True
        elif identity := _named(transport):
            if not self._gate.name(identity, address):
                self._abort()
                return
            self._identity = identity
        self._address = address
        self._head = self._loop.call_later(self._gate.limits.head, self._abort)
        sock = transport.get_extra_info("socket")
        if sock is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            # What is sent and never taken does not hold the connection for the kernel's quarter of an hour.
            with suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._gate.limits.idle * 1000))

    def connection_lost(self, exc: BaseException | None) -> None:
        """Counts it out."""
        for timer in (self._head, self._slow):
            if timer is not None:
                timer.cancel()
        self._head = self._slow = None
        if self._address is not None:
            if self._counted:
                self._gate.leave(self._address)
            if self._identity:
                self._gate.forget(self._identity)
            self._address = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """As long as no request has come out of what was received, its head is not complete."""
        super().data_received(data)
        if self._waiter is not None and not self._waiter.done():
            if self._head is None and self._address is not None:
                self._head = self._loop.call_later(self._gate.limits.head, self._abort)
        elif self._head is not None:
            self._head.cancel()
            self._head = None

    def pause_writing(self) -> None:
        """The reader is slower than we are: from now on it is looked at."""
        super().pause_writing()
        self._left = self._unsent()
        if self._slow is None:
            self._slow = self._loop.call_later(self._gate.limits.look, self._look)

    def resume_writing(self) -> None:
        """It has caught up."""
        super().resume_writing()
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None

    def handle_error(
        self, request: BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """What is no HTTP, or a mistake of ours outside every route; only ours leaves a traceback in the log."""
        if status >= 500:
            log.error("request failed", status=status, exc_info=exc)
            said = "a mistake in rebootd itself: its log has the details"
        else:
            said = f"this is no request in HTTP/1.1: {(message or str(exc)).strip().splitlines()[0][:200]}"
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun already")
        response = problem(status, Problem(error=said))
        response.force_close()
        return response

    def _look(self) -> None:
        """Ends a reader that has not taken its pace of bytes since the last look."""
        left, self._slow = self._unsent(), None
        if self._left - left < self._gate.limits.pace:
            log.info("reader too slow", address=self._address, unsent=left)
            self._abort()
        else:
            self._left = left
            self._slow = self._loop.call_later(self._gate.limits.look, self._look)

    def _unsent(self) -> int:
        return self.transport.get_write_buffer_size() if isinstance(self.transport, asyncio.WriteTransport) else 0

    def _abort(self) -> None:
        # Closing would wait until the caller has read what it does not read.
        transport = self.transport
        self.force_close()
        if isinstance(transport, asyncio.WriteTransport):
            transport.abort()


class _Server(web.Server):
    def __init__(self, plain: web.Server, gate: Gate) -> None:
        super().__init__(
            plain.request_handler,
            request_factory=plain.request_factory,
            handler_cancellation=plain.handler_cancellation,
            **plain._kwargs,
        )
        self.gate = gate

    def __call__(self) -> web.RequestHandler:
        return Connection(self, self.gate, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """aiohttp's runner with our connections. ``gate`` tells who is connected."""

    def __init__(self, app: web.Application, limits: Limits, **kwargs: Any) -> None:
        super().__init__(app, access_log=None, keepalive_timeout=limits.idle, **kwargs)
        self.gate = Gate(limits)

    async def _make_server(self) -> web.Server:
        return _Server(await super()._make_server(), self.gate)

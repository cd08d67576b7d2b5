"""What protects a daemon's wire: its certificates as they are renewed, who asks, and what is told of both."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Protocol

import structlog
from prometheus_client import Counter, Gauge
from prometheus_client.core import GaugeMetricFamily

from rebootd.api.guard import Guard
from rebootd.api.people import ConsulPeople
from rebootd.consul.http import Http
from rebootd.core.errors import InvalidInput
from rebootd.tls.follow import ServerTls
from rebootd.tls.listener import LEFT, PEER, observe

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable

    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

    from rebootd.api.listen import Serving
    from rebootd.cli.server_settings import ServerSettings
    from rebootd.tls.follow import ServerState

TELL_EVERY = 10.0
"""Seconds between two lines in the log about failed handshakes of one kind."""
log = structlog.get_logger(__name__)


def tls_flag(name: str) -> str:
    """The flag of ``ca``, ``cert``, ``key`` or ``crl``."""
    return f"tls-{name}"


class Protection:
    """Made once per daemon, within its event loop. Raises InvalidInput when the certificates cannot be used.

    ``context`` is for the listener, None without TLS; ``guard`` for the application.
    """

    def __init__(self, settings: ServerSettings, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._failed = failed_handshakes(registry)
        self._told: dict[str, tuple[float, int]] = {}
        self._following: asyncio.Task[None] | None = None
        self._http = Http(settings.consul) if settings.roles else None
        people = ConsulPeople(self._http, settings.roles) if self._http is not None else None
        token = settings.listen.token
        self._tls: ServerTls | None = None
        if settings.tls.on:
            if not settings.tls.cert:
                raise InvalidInput(tls_flag("cert"), "", "the daemon's certificate, since --tls-ca is given")
            # Where tokens count too, people come without a certificate; every route still asks who they are.
            demand = not (token or people)
            self._tls = ServerTls(settings.tls, tls_flag, demand=demand, dress=self._dress)
        self.guard = Guard(
            token=token, people=people, tls=self._tls is not None, revoked=self._revoked if self._tls else frozenset
        )
        if self._tls is not None:
            registry.register(TlsCollector(self._tls))
        if settings.insecure_http:
            log.warning("INSECURE: without TLS and token, whoever reaches this port may do everything")

    @property
    def context(self) -> ssl.SSLContext | None:
        """What the listener begins with."""
        return self._tls.state.context if self._tls is not None else None

    def follow(self, serving: Serving) -> None:
        """From now on new certificates go to the listener; SIGHUP makes it look at once."""
        loop = asyncio.get_running_loop()
        # Without certificates a SIGHUP has nothing to reload, and must not end the daemon.
        loop.add_signal_handler(signal.SIGHUP, self._tls.kick if self._tls is not None else _nothing)
        if self._tls is not None:
            waiting_handshakes(self._registry).set_function(lambda: serving.handshakes_waiting)
            self._following = asyncio.create_task(self._tls.run(serving.renew))

    async def followed(self) -> None:
        """Returns or raises when following has ended, which it does not by itself."""
        if self._following is not None:
            await self._following

    async def close(self) -> None:
        """Ends the following, and connections of its own."""
        if self._following is not None:
            self._following.cancel()
        if self._http is not None:
            await self._http.close()

    def _revoked(self) -> frozenset[int]:
        return self._tls.state.revoked if self._tls is not None else frozenset()

    def _dress(self, context: ssl.SSLContext) -> None:
        observe(context, self._refused)

    def _refused(self, why: str) -> None:
        self._failed.labels(why).inc()
        if why == LEFT:
            # Load balancers look so whether the port is open, every few seconds.
            return
        now = asyncio.get_running_loop().time()
        told, left_out = self._told.get(why, (-TELL_EVERY, 0))
        if now - told < TELL_EVERY:
            self._told[why] = (told, left_out + 1)
            return
        self._told[why] = (now, 0)
        log.warning("handshake-refused", why=why, address=PEER.get(), left_out=left_out)


def _nothing() -> None:
    return


def failed_handshakes(registry: CollectorRegistry) -> Counter:
    """The metric of connections that never came to a request."""
    return Counter(
        "rebootd_tls_handshakes_failed_total",
        "Connections that came to nothing before any request, by reason.",
        ["reason"],
        registry=registry,
    )


def waiting_handshakes(registry: CollectorRegistry) -> Gauge:
    """The metric of a storm of handshakes: after a leader's death all agents want one."""
    return Gauge(
        "rebootd_tls_handshakes_waiting", "Connections that wait for their handshake's turn.", registry=registry
    )


class Followed(Protocol):
    """What is told of a listener's certificates."""

    @property
    def state(self) -> ServerState:
        """What is used at present."""
        ...

    @property
    def problem(self) -> str:
        """Why newer files are not used, ``""`` when the present ones are the newest."""
        ...


class TlsCollector:
    """When the certificates run out, and whether newer files wait in vain."""

    def __init__(self, tls: Followed) -> None:
        self._tls = tls

    def collect(self) -> Iterable[Metric]:
        """What holds now."""
        ends = GaugeMetricFamily(
            "rebootd_tls_expiry_timestamp_seconds",
            "When the certificate or revocation list in use runs out, seconds since 1970.",
            labels=["file"],
        )
        broken = GaugeMetricFamily(
            "rebootd_tls_files_broken", "1 when newer certificate files cannot be used and the old ones stay."
        )
        state = self._tls.state
        ends.add_metric(["certificate"], state.expires)
        if state.crl_expires:
            ends.add_metric(["revocation-list"], state.crl_expires)
        broken.add_metric([], 1.0 if self._tls.problem else 0.0)
        return [ends, broken]

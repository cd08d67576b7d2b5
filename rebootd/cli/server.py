"""``rebootd server``: one daemon, from its flags to its end."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import time
import uuid
from typing import TYPE_CHECKING, Any

import click
import msgspec
import structlog
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest

from rebootd import __version__
from rebootd.agent.notify import Notifier
from rebootd.api.app import make_app
from rebootd.api.listen import Serving, serve
from rebootd.cli import collector
from rebootd.cli.server_settings import server_options, settings_of
from rebootd.cli.server_tls import Protection
from rebootd.consul.client import Consul
from rebootd.consul.health import HealthThread
from rebootd.consul.leadership import Candidate
from rebootd.consul.registry import Registration, Registry
from rebootd.coordinator.audit_file import AuditFile
from rebootd.coordinator.daemon import Daemon
from rebootd.coordinator.drains.nomad_api import Nomad
from rebootd.coordinator.drains.nomad_http import NomadHttp
from rebootd.coordinator.gates.sight import Eyes
from rebootd.coordinator.gates.tools import Tools
from rebootd.coordinator.leader import LeaderSettings
from rebootd.coordinator.metrics import FleetCollector, Metrics
from rebootd.coordinator.notify import Notifications
from rebootd.coordinator.peers import ConsulPeers
from rebootd.coordinator.redfish import Redfish
from rebootd.coordinator.refusals import Refusals
from rebootd.coordinator.silences import Alertmanager
from rebootd.core.codec import read_json
from rebootd.core.errors import InvalidInput, RebootdError, StoreError
from rebootd.store.consul import ConsulStore
from rebootd.store.memory import MemoryConsul, MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from aiohttp import web

    from rebootd.cli.server_settings import ServerSettings
    from rebootd.coordinator.desk import Desk
    from rebootd.coordinator.drains.nomad_api import NomadApi
    from rebootd.coordinator.gates.sight import Sight
    from rebootd.coordinator.peers import Peers
    from rebootd.coordinator.silences import Alerts
    from rebootd.store.port import Store

log = structlog.get_logger(__name__)

STOP_WAIT = 5.0
"""Seconds that a hand-over may take at a stop."""
FIRST_LOOK = 2.0
"""Seconds between two attempts to learn from the local Consul agent who we are."""


@click.command(name="server", context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "REBOOTD"})
@server_options
@click.option("--log-format", type=click.Choice(["json", "plain"]), default="json", show_default=True)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
def command(log_format: str, log_level: str, **flags: Any) -> None:
    """Run a daemon until it is stopped (SIGTERM, Ctrl-C): wait for leadership, lead, answer machines and operators.

    A stop hands leadership over at once. The memory store forgets everything at the end and elects nobody else: it is
    for trying things out.

    Example: rebootd server --listen 0.0.0.0:8473 --tls-ca ca.pem --tls-cert server.pem --tls-key server-key.pem
    """
    try:
        settings = settings_of(flags, os.environ)
        log_to_stderr(log_format, log_level)
        collector.spare()
        asyncio.run(_serve(settings, Notifier(os.environ)))
    except (RebootdError, OSError) as error:
        click.echo(f"rebootd server: {(isinstance(error, OSError) and error.strerror) or error}", err=True)
        sys.exit(2 if isinstance(error, InvalidInput) else 1)


def log_to_stderr(log_format: str, level: str) -> None:
    """One event, one line, on standard error: JSON or plain."""
    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer(serializer=_line)
    if log_format == "plain":
        renderer = structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"])
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


def _line(said: structlog.typing.EventDict, default: Callable[[object], object]) -> str:
    try:
        return msgspec.json.encode(said, enc_hook=default).decode()
    except UnicodeEncodeError:
        # Text that came in undecodable cannot be written as UTF-8; escaped it can.
        return json.dumps(said, default=default)


async def _serve(settings: ServerSettings, notifier: Notifier) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    registry = CollectorRegistry()
    for kind in (ProcessCollector, PlatformCollector, GCCollector):
        kind(registry=registry)
    metrics = Metrics(registry)
    if settings.memory_nodes is not None:
        await _serve_memory(settings, settings.memory_nodes, metrics, notifier, stop)
    else:
        await _serve_consul(settings, metrics, notifier, stop)


async def _serve_memory(
    settings: ServerSettings, nodes: Mapping[str, str], metrics: Metrics, notifier: Notifier, stop: asyncio.Event
) -> None:
    consul = MemoryConsul()
    for name, rack in nodes.items():
        consul.register_node(name, {"rack": rack})
    office = _Office()
    protection = Protection(settings, metrics.registry)
    serving = await _open(settings, metrics, office, protection)
    candidate = Candidate(settings.id or f"rebootd-{uuid.uuid4().hex[:8]}", serving.url, settings.node)
    store = MemoryStore(consul)
    daemon = office.daemon = _daemon(settings, store, candidate, metrics, ())
    log.info("serving", url=serving.url, store="memory", version=__version__)
    notifier.ready()
    await _until(stop, daemon, notifier.watchdog(), protection.followed(), *_telling(settings, office, metrics))
    await serving.close()
    await protection.close()
    await store.close()


async def _serve_consul(settings: ServerSettings, metrics: Metrics, notifier: Notifier, stop: asyncio.Event) -> None:
    office = _Office()
    protection = Protection(settings, metrics.registry)
    serving = await _open(settings, metrics, office, protection)
    client = Consul(settings.consul)
    health = HealthThread(settings.health, settings.health_port)
    health.start()
    # From the start: while Consul is away, a daemon that waits for it is not a hung one, whoever asks.
    ticking = asyncio.create_task(health.run())
    store = ConsulStore(client)
    election_store = ConsulStore.open(settings.consul)
    eyes = Eyes(client, settings.gate_tokens, settings.gate_tls)
    alerts = Alertmanager(Tools(None, settings.gate_tokens, settings.gate_tls))
    nomad = Nomad(NomadHttp(settings.nomad)) if settings.nomad is not None else None
    try:
        # Serve at once, so that /healthz answers and requests are parked while Consul is still away.
        log.info("serving", url=serving.url, store=settings.consul.address, version=__version__)
        notifier.ready()
        who = asyncio.create_task(_who_we_are(client))
        ended = asyncio.create_task(stop.wait())
        await asyncio.wait({who, ended}, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if not who.done():
            who.cancel()
            return
        node, address = who.result()
        url, host, port = _reachable(settings, serving, address)
        id_ = settings.id or f"{settings.service}-{settings.node or node}-{uuid.uuid4().hex[:8]}"
        registration = Registration(
            id=id_,
            name=settings.service,
            address=host,
            port=port,
            check_url=health.url(settings.health),
            tags=("metrics",),
            meta={"version": __version__, "node": settings.node or node},
        )
        services = Registry(client, registration)
        candidate = Candidate(id_, url, settings.node or node)
        peers = ConsulPeers(client, settings.service, id_)
        daemon = office.daemon = _daemon(
            settings, store, candidate, metrics, registration.session_checks, election_store, eyes, nomad, peers, alerts
        )
        helpers = (services.run(), notifier.watchdog(), collector.now_and_then(), protection.followed())
        await _until(stop, daemon, *helpers, *_telling(settings, office, metrics))
        try:
            await services.deregister()
        except RebootdError as error:
            log.warning("not-deregistered", error=str(error))
    finally:
        await serving.close()
        await protection.close()
        ticking.cancel()
        health.stop()
        await eyes.close()
        await alerts.close()
        if nomad is not None:
            await nomad.close()
        await store.close()
        await election_store.close()


def _daemon(
    settings: ServerSettings,
    store: Store,
    candidate: Candidate,
    metrics: Metrics,
    checks: tuple[str, ...],
    election_store: Store | None = None,
    sight: Sight | None = None,
    nomad: NomadApi | None = None,
    peers: Peers | None = None,
    alerts: Alerts | None = None,
) -> Daemon:
    leader = LeaderSettings(
        id=candidate.id,
        node=candidate.node,
        prefix=settings.prefix,
        lock_node="rebootd-locks",
    )
    credentials = settings.power_credentials
    daemon = Daemon(
        store,
        candidate,
        leader,
        metrics,
        checks=checks,
        election_store=election_store,
        sight=sight,
        restarter=Redfish(credentials, ca=settings.power_ca) if credentials is not None else None,
        nomad=nomad,
        peers=peers,
        alerts=alerts,
        audit=AuditFile(settings.audit_log, candidate.id, time.time) if settings.audit_log is not None else None,
    )
    metrics.registry.register(FleetCollector(daemon.look))
    return daemon


def _telling(
    settings: ServerSettings, office: _Office, metrics: Metrics
) -> tuple[Coroutine[object, object, None], ...]:
    if settings.notify_urls is None:
        return ()
    return (Notifications(settings.notify_urls, settings.notify_events, metrics).run(office),)


class _Office:
    """The office while there is no daemon yet: nobody leads, as far as we know."""

    def __init__(self) -> None:
        self.daemon: Daemon | None = None

    def desk(self) -> Desk | None:
        return self.daemon.desk() if self.daemon is not None else None

    def leader_url(self) -> str:
        return self.daemon.leader_url() if self.daemon is not None else ""

    async def wait_leader(self, timeout: float) -> bool:
        if self.daemon is not None:
            return await self.daemon.wait_leader(timeout)
        await asyncio.sleep(min(timeout, 0.2))
        return timeout > 0.2

    def describe(self) -> dict[str, object]:
        return self.daemon.describe() if self.daemon is not None else {"version": __version__, "leading": False}


async def _open(settings: ServerSettings, metrics: Metrics, office: _Office, protection: Protection) -> Serving:
    app: web.Application = make_app(
        office,
        metrics=lambda: generate_latest(metrics.registry),
        guard=protection.guard,
        refused=Refusals(lambda: office.daemon.audit_file if office.daemon is not None else None, time.time).refused,
    )
    serving = await serve(app, settings.listen.host, settings.listen.port, settings.limits, context=protection.context)
    protection.follow(serving)
    return serving


async def _until(
    stop: asyncio.Event, daemon: Daemon, *helpers: Coroutine[object, object, None], wait: float = STOP_WAIT
) -> None:
    """Runs the daemon and its helpers until ``stop`` is set or one of them fails, then hands leadership over."""
    stopping = asyncio.create_task(stop.wait())
    running = asyncio.create_task(daemon.run())
    others = [asyncio.create_task(helper) for helper in helpers]
    waiting: set[asyncio.Task[Any]] = {stopping, running, *others}
    try:
        while stopping not in (done := (await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED))[0]):
            for task in done:
                task.result()  # a failure ends the daemon; a watchdog that nobody wants just returns
            waiting -= done
        async with asyncio.timeout(wait):
            await daemon.stop()
    finally:
        for task in (stopping, running, *others):
            task.cancel()
        await asyncio.gather(stopping, running, *others, return_exceptions=True)


async def _who_we_are(client: Consul) -> tuple[str, str]:
    """The local Consul agent's node name and address; asks until it answers."""
    waiting = False
    while True:
        try:
            response = await client.http.request("GET", "/v1/agent/self", timeout=3.0)
            if response.status == 200:
                said = read_json(response.body, dict[str, Any])
                return str(said["Config"]["NodeName"]), str(said["Member"]["Addr"])
            problem = f"HTTP {response.status}"
        except (StoreError, msgspec.MsgspecError, KeyError, TypeError) as error:
            problem = f"{type(error).__name__}: {error}"
        if not waiting:
            log.warning("consul-not-there-yet", problem=problem)
            waiting = True
        await asyncio.sleep(FIRST_LOOK)


def _reachable(settings: ServerSettings, serving: Serving, address: str) -> tuple[str, str, int]:
    """The url, host and port at which others reach this daemon."""
    host, port = settings.listen.host, serving.port
    if host in {"0.0.0.0", "::", ""}:
        host = address or socket.gethostname()
    if settings.advertise:
        stated = settings.advertise.removeprefix("http://").removeprefix("https://").rstrip("/")
        host, _, given = stated.rpartition(":") if ":" in stated else (stated, "", "")
        if given:
            if not given.isdigit():
                raise InvalidInput("advertise", settings.advertise, "host:port")
            port = int(given)
    shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"{serving.url.partition(':')[0]}://{shown}:{port}", host.strip("[]"), port

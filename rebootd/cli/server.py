"""``rebootd server``: one daemon, from its flags to its end."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
import structlog
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest

from rebootd import __version__
from rebootd.agent.notify import Notifier
from rebootd.api.app import make_app
from rebootd.api.listen import Listen, Serving, parse_listen, serve
from rebootd.cli import collector
from rebootd.consul.client import Consul
from rebootd.consul.health import HealthThread
from rebootd.consul.leadership import Candidate
from rebootd.consul.registry import Registration, Registry
from rebootd.consul.settings import ConsulSettings
from rebootd.coordinator.daemon import Daemon
from rebootd.coordinator.gates.sight import Eyes
from rebootd.coordinator.leader import LeaderSettings
from rebootd.coordinator.metrics import FleetCollector, Metrics
from rebootd.coordinator.redfish import Redfish
from rebootd.core.errors import InvalidInput, RebootdError, StoreError
from rebootd.store.consul import ConsulStore
from rebootd.store.memory import MemoryConsul, MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from aiohttp import web

    from rebootd.coordinator.desk import Desk
    from rebootd.coordinator.gates.sight import Sight
    from rebootd.store.port import Store

log = structlog.get_logger(__name__)

STOP_WAIT = 5.0
"""Seconds that a hand-over may take at a stop."""
FIRST_LOOK = 2.0
"""Seconds between two attempts to learn from the local Consul agent who we are."""


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Validated settings of one daemon. ``memory_nodes`` (name -> rack) is the catalog of the memory store."""

    listen: Listen
    advertise: str = ""
    health: str = "127.0.0.1"
    node: str = ""
    id: str = ""
    prefix: str = "rebootd/"
    service: str = "rebootd"
    consul: ConsulSettings = ConsulSettings()
    memory_nodes: dict[str, str] | None = None
    power_credentials: Path | None = None
    power_ca: Path | None = None
    gate_tokens: Path | None = None


@click.command(name="server", context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "REBOOTD"})
@click.option(
    "--listen", default="127.0.0.1:8473", show_default=True, help="host:port; else than loopback: with a token."
)
@click.option("--advertise", default="", help="host:port or URL at which others reach this daemon.")
@click.option("--token-file", type=click.Path(path_type=Path), help="The token that every caller must show.")
@click.option("--health", default="127.0.0.1", show_default=True, help="Address that the local Consul agent can check.")
@click.option("--node", default="", help="The machine this daemon runs on; else the local Consul node's name.")
@click.option("--id", "id_", default="", help="This daemon's unique id; else made anew.")
@click.option("--prefix", default="rebootd/", show_default=True, help="Where in Consul's KV this fleet is.")
@click.option("--service", default="rebootd", show_default=True, help="The Consul service agents look for.")
@click.option("--consul", "consul_address", help="Consul's address; else CONSUL_HTTP_ADDR, else the local agent.")
@click.option("--consul-token-file", help="A file with the Consul ACL token.")
@click.option("--store", type=click.Choice(["consul", "memory"]), default="consul", show_default=True)
@click.option("--memory-nodes", default="", help="With --store memory: name=rack,... of the machines it knows.")
@click.option(
    "--power-credentials", type=click.Path(path_type=Path), help="Redfish user and password, one a line, in a file."
)
@click.option("--power-ca", type=click.Path(path_type=Path), help="The authority of Redfish controllers' certificates.")
@click.option(
    "--gate-tokens",
    type=click.Path(path_type=Path),
    help="A folder with a token for each gate's address that wants one, in a file HOST:PORT.",
)
@click.option("--log-format", type=click.Choice(["json", "plain"]), default="json", show_default=True)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
def command(
    listen: str,
    advertise: str,
    token_file: Path | None,
    health: str,
    node: str,
    id_: str,
    prefix: str,
    service: str,
    consul_address: str | None,
    consul_token_file: str | None,
    store: str,
    memory_nodes: str,
    power_credentials: Path | None,
    power_ca: Path | None,
    gate_tokens: Path | None,
    log_format: str,
    log_level: str,
) -> None:
    """Run a daemon until it is stopped (SIGTERM, Ctrl-C): wait for leadership, lead, answer machines and operators.

    A stop hands leadership over at once. The memory store forgets everything at the end and elects nobody else: it is
    for trying things out.

    Example: rebootd server --listen 0.0.0.0:8473 --token-file /etc/rebootd/token
    """
    try:
        explicit = {"address": consul_address, "token_file": consul_token_file}
        settings = ServerSettings(
            listen=parse_listen(listen, token_file),
            advertise=advertise,
            health=health,
            node=node,
            id=id_,
            prefix=_prefix(prefix),
            service=service,
            consul=ConsulSettings.from_env(os.environ, **{k: v for k, v in explicit.items() if v is not None}),
            memory_nodes=_memory_nodes(memory_nodes) if store == "memory" else None,
            power_credentials=_file("power-credentials", power_credentials),
            power_ca=_file("power-ca", power_ca),
            gate_tokens=_folder("gate-tokens", gate_tokens),
        )
        log_to_stderr(log_format, log_level)
        collector.spare()
        asyncio.run(_serve(settings, Notifier(os.environ)))
    except (RebootdError, OSError) as error:
        click.echo(f"rebootd server: {error}", err=True)
        sys.exit(2 if isinstance(error, InvalidInput) else 1)


def _folder(field: str, path: Path | None) -> Path | None:
    if path is not None and not path.is_dir():
        raise InvalidInput(field, str(path), "a folder that exists")
    return path


def _file(field: str, path: Path | None) -> Path | None:
    if path is not None and not path.is_file():
        raise InvalidInput(field, str(path), "a file that exists")
    return path


def _prefix(text: str) -> str:
    if not text.strip("/") or text.startswith("/"):
        raise InvalidInput("prefix", text, "a key prefix such as rebootd/ (no leading slash)")
    return text.rstrip("/") + "/"


def _memory_nodes(text: str) -> dict[str, str]:
    nodes = {}
    for item in filter(None, text.split(",")):
        name, equals, rack = item.partition("=")
        if not equals or not name:
            raise InvalidInput("memory-nodes", item, "name=rack")
        nodes[name] = rack
    return nodes


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
    serving = await _open(settings, metrics, office)
    candidate = Candidate(settings.id or f"rebootd-{uuid.uuid4().hex[:8]}", serving.url, settings.node)
    store = MemoryStore(consul)
    daemon = office.daemon = _daemon(settings, store, candidate, metrics, ())
    log.info("serving", url=serving.url, store="memory", version=__version__)
    notifier.ready()
    await _until(stop, daemon, notifier.watchdog())
    await serving.close()
    await store.close()


async def _serve_consul(settings: ServerSettings, metrics: Metrics, notifier: Notifier, stop: asyncio.Event) -> None:
    office = _Office()
    serving = await _open(settings, metrics, office)
    client = Consul(settings.consul)
    health = HealthThread(settings.health)
    health.start()
    store = ConsulStore(client)
    election_store = ConsulStore.open(settings.consul)
    eyes = Eyes(client, settings.gate_tokens)
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
        daemon = office.daemon = _daemon(
            settings, store, candidate, metrics, registration.session_checks, election_store, eyes
        )
        await _until(stop, daemon, services.run(), health.run(), notifier.watchdog(), collector.now_and_then())
        try:
            await services.deregister()
        except RebootdError as error:
            log.warning("not-deregistered", error=str(error))
    finally:
        await serving.close()
        health.stop()
        await eyes.close()
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
    )
    metrics.registry.register(FleetCollector(daemon.look))
    return daemon


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


async def _open(settings: ServerSettings, metrics: Metrics, office: _Office) -> Serving:
    app: web.Application = make_app(
        office,
        token=settings.listen.token,
        metrics=lambda: generate_latest(metrics.registry),
    )
    return await serve(app, settings.listen.host, settings.listen.port)


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
                said = msgspec.json.decode(response.body)
                return str(said["Config"]["NodeName"]), str(said["Member"]["Addr"])
            problem = f"HTTP {response.status}"
        except StoreError as error:
            problem = str(error)
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
        stated = settings.advertise.removeprefix("http://").rstrip("/")
        host, _, given = stated.rpartition(":") if ":" in stated else (stated, "", "")
        if given:
            if not given.isdigit():
                raise InvalidInput("advertise", settings.advertise, "host:port")
            port = int(given)
    shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"http://{shown}:{port}", host.strip("[]"), port

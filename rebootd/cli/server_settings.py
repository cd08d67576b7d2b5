"""The flags of ``rebootd server``, and the validated settings that they come to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from rebootd.api.connections import DEFAULT_LIMITS, Limits
from rebootd.api.listen import Listen, is_loopback, parse_listen
from rebootd.api.people import parse_roles
from rebootd.consul.settings import ConsulSettings
from rebootd.coordinator.drains.nomad_http import NomadSettings
from rebootd.coordinator.gates.tools import gate_context
from rebootd.core.caller import Role
from rebootd.core.errors import InvalidInput
from rebootd.core.notices import KINDS, parse_kinds
from rebootd.tls.files import TlsFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Validated settings of one daemon. ``memory_nodes`` (name -> rack) is the catalog of the memory store, ``roles``
    what names of Consul policies come to, ``insecure_http`` that everybody who reaches the port may everything.
    """

    listen: Listen
    advertise: str = ""
    health: str = "127.0.0.1"
    health_port: int = 0
    node: str = ""
    id: str = ""
    prefix: str = "rebootd/"
    service: str = "rebootd"
    consul: ConsulSettings = ConsulSettings()
    memory_nodes: dict[str, str] | None = None
    power_credentials: Path | None = None
    power_ca: Path | None = None
    gate_tokens: Path | None = None
    gate_tls: TlsFiles = TlsFiles()
    audit_log: Path | None = None
    notify_urls: Path | None = None
    notify_events: frozenset[str] = frozenset(KINDS)
    tls: TlsFiles = TlsFiles()
    roles: dict[str, Role] = {}
    insecure_http: bool = False
    nomad: NomadSettings | None = None
    limits: Limits = DEFAULT_LIMITS


_FILE = click.Path(path_type=Path)
_OPTIONS = (
    click.option(
        "--listen",
        default="127.0.0.1:8473",
        show_default=True,
        help="host:port; else than loopback: with certificates or a token.",
    ),
    click.option("--advertise", default="", help="host:port or URL at which others reach this daemon."),
    click.option("--token-file", type=_FILE, help="The shared token: whoever shows it may everything."),
    click.option("--tls-ca", default="", help="The authorities that machines' and people's certificates come from."),
    click.option("--tls-cert", default="", help="This daemon's certificate (rebootctl tls cert create --server)."),
    click.option("--tls-key", default="", help="Its key."),
    click.option("--tls-crl", default="", help="Revocation lists of the authorities."),
    click.option(
        "--consul-role",
        "consul_roles",
        multiple=True,
        metavar="POLICY=ROLE",
        help="Consul tokens with this policy have the role viewer, operator or admin. May be repeated.",
    ),
    click.option(
        "--insecure-http", is_flag=True, help="Listen anywhere in plain HTTP and let everybody do everything."
    ),
    click.option("--insecure-health", is_flag=True, help="Allow --health on an address that others reach beside TLS."),
    click.option(
        "--health",
        default="127.0.0.1",
        show_default=True,
        help="Address, or host:port, that the local Consul agent can check.",
    ),
    click.option(
        "--per-address",
        type=click.IntRange(min=1),
        default=DEFAULT_LIMITS.per_address,
        show_default=True,
        help="Connections that one address may hold; loopback is not counted.",
    ),
    click.option("--node", default="", help="The machine this daemon runs on; else the local Consul node's name."),
    click.option("--id", "id_", default="", help="This daemon's unique id; else made anew."),
    click.option("--prefix", default="rebootd/", show_default=True, help="Where in Consul's KV this fleet is."),
    click.option("--service", default="rebootd", show_default=True, help="The Consul service agents look for."),
    click.option("--consul", "consul_address", help="Consul's address; else CONSUL_HTTP_ADDR, else the local agent."),
    click.option("--consul-token-file", help="A file with the Consul ACL token."),
    click.option("--store", type=click.Choice(["consul", "memory"]), default="consul", show_default=True),
    click.option("--memory-nodes", default="", help="With --store memory: name=rack,... of the machines it knows."),
    click.option("--power-credentials", type=_FILE, help="Redfish user and password, one a line, in a file."),
    click.option("--power-ca", type=_FILE, help="The authority of Redfish controllers' certificates."),
    click.option(
        "--gate-tokens",
        type=_FILE,
        help="A folder with a token for each gate's address that wants one, in a file HOST:PORT.",
    ),
    click.option("--gate-ca", default="", help="The authority of gates' https addresses; else the system's."),
    click.option("--gate-cert", default="", help="The certificate that is shown to gates' https addresses."),
    click.option("--gate-key", default="", help="Its key."),
    click.option("--notify-urls", type=_FILE, help="Who is told of events: URLs of apprise, one a line, in a file."),
    click.option("--notify-events", default=",".join(KINDS), show_default=True, help="Of which."),
    click.option("--audit-log", type=_FILE, help="Where this daemon writes who changed what (rebootctl audit verify)."),
    click.option(
        "--nomad", "nomad_address", help="Nomad's address (http, https, unix:///socket) for drains; else NOMAD_ADDR."
    ),
    click.option("--nomad-token-file", help="A file with the Nomad ACL token; else NOMAD_TOKEN."),
)


def server_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the flags that :func:`settings_of` reads."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def settings_of(flags: Mapping[str, Any], environ: Mapping[str, str]) -> ServerSettings:
    """The settings that the flags of ``server_options`` come to. Raises InvalidInput."""
    consul = {"address": flags["consul_address"], "token_file": flags["consul_token_file"]}
    tls = TlsFiles(**{name: flags[f"tls_{name}"] for name in ("ca", "cert", "key", "crl")})
    health, health_port = _health(flags["health"])
    listen = parse_listen(flags["listen"], flags["token_file"], tls=tls.on, insecure=flags["insecure_http"])
    roles = parse_roles(flags["consul_roles"], "consul-role")
    nomad = NomadSettings.from_env(environ, address=flags["nomad_address"], token_file=flags["nomad_token_file"])
    gate_tls = TlsFiles(**{name: flags[f"gate_{name}"] for name in ("ca", "cert", "key")})
    if gate_tls.on:
        gate_context(gate_tls)
    _cross_check({**flags, "health": health}, tls, listen, roles)
    return ServerSettings(
        listen=listen,
        tls=tls,
        roles=roles,
        insecure_http=flags["insecure_http"],
        advertise=flags["advertise"],
        health=health,
        health_port=health_port,
        node=flags["node"],
        id=flags["id_"],
        prefix=_prefix(flags["prefix"]),
        service=flags["service"],
        consul=ConsulSettings.from_env(environ, **{k: v for k, v in consul.items() if v is not None}),
        memory_nodes=_memory_nodes(flags["memory_nodes"]) if flags["store"] == "memory" else None,
        power_credentials=_file("power-credentials", flags["power_credentials"]),
        power_ca=_file("power-ca", flags["power_ca"]),
        gate_tokens=_folder("gate-tokens", flags["gate_tokens"]),
        gate_tls=gate_tls,
        audit_log=flags["audit_log"],
        notify_urls=_file("notify-urls", flags["notify_urls"]),
        notify_events=parse_kinds(flags["notify_events"], "notify-events"),
        nomad=nomad,
        limits=Limits(per_address=flags["per_address"]),
    )


def _health(text: str) -> tuple[str, int]:
    """The host and the port (0: any free one) of ``host``, ``host:port`` or ``[host]:port``."""
    host, colon, port = text.rpartition(":")
    if not colon or (":" in host and not host.startswith("[")):
        return text.strip("[]"), 0
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise InvalidInput("health", text, "a host, or host:port such as 127.0.0.1:8474 or [::1]:8474")
    return host.strip("[]"), int(port)


def _cross_check(flags: Mapping[str, Any], tls: TlsFiles, listen: Listen, roles: Mapping[str, Role]) -> None:
    if flags["insecure_http"] and (tls.on or listen.token):
        raise InvalidInput("insecure-http", True, "no certificates and no token beside it: they would be for nothing")
    if tls.on and not flags["insecure_health"] and not is_loopback(flags["health"]):
        accepted = "a loopback address; the health check is plain HTTP (--insecure-health allows it elsewhere)"
        raise InvalidInput("health", flags["health"], accepted)
    if roles and not tls.on and not is_loopback(listen.host):
        raise InvalidInput("consul-role", ", ".join(roles), "--tls-ca beside it: tokens must not cross a plain wire")


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

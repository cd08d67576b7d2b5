"""A fleet on a Consul that trusts nobody: ACLs that deny by default, TLS on every port, encrypted gossip.

Three Consul servers, a daemon beside each, two machines whose nodes are only in the catalog and one that is a Consul
server itself. Each has a token of its own with nothing but the shipped policy.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import yaml

from rebootd.cli.ctl_client import Client
from rebootd.cli.demo_machines import Machine, Supervisor
from rebootd.cli.demo_processes import Child
from rebootd.consul.binary import locate
from rebootd.core.audit import Head
from tests.support.cluster import Cluster, free_ports, wait_for
from tests.support.policies import rules, token

if TYPE_CHECKING:
    from collections.abc import Mapping

SERVICE, PREFIX = "reboots", "fleet/dc1/"
MACHINES = [("m1", "r1"), ("m2", "r2"), ("server2", "r3")]


def certificates(folder: Path) -> dict[str, str]:
    """An authority and its certificates, made as Consul's documentation says. File names by Consul's own variables."""
    folder.mkdir()
    for words in (["ca", "create"], ["cert", "create", "-server"], ["cert", "create", "-client"]):
        subprocess.run([str(locate()), "tls", *words], cwd=folder, check=True, capture_output=True, timeout=20)
    return {
        "CONSUL_CACERT": str(folder / "consul-agent-ca.pem"),
        "CONSUL_CLIENT_CERT": str(folder / "dc1-client-consul-0.pem"),
        "CONSUL_CLIENT_KEY": str(folder / "dc1-client-consul-0-key.pem"),
    }


def guarded_cluster(folder: Path, shown: Mapping[str, str]) -> Cluster:
    """Three servers. Their plain HTTP port is for the test alone, which uses the master token."""
    tls = Path(shown["CONSUL_CACERT"]).parent
    master = secrets.token_hex(16)
    made = Cluster(
        folder,
        3,
        ca_file=shown["CONSUL_CACERT"],
        cert_file=str(tls / "dc1-server-consul-0.pem"),
        key_file=str(tls / "dc1-server-consul-0-key.pem"),
        verify_incoming=True,
        verify_outgoing=True,
        verify_server_hostname=True,
        encrypt=base64.b64encode(secrets.token_bytes(32)).decode(),
        acl={
            "enabled": True,
            "default_policy": "deny",
            "down_policy": "extend-cache",
            "tokens": {"master": master, "agent": master},
        },
    )
    for server in made.servers:
        server.config["ports"]["https"] = server.ports["https"]
    made.servers[2].config["node_meta"] = {"rack": "r3"}
    return made


class Hosts(Supervisor):
    """The machines, each with settings of its own."""

    own: dict[str, dict[str, Any]]

    def _boot(self, machine: Machine, kernel: str) -> None:
        super()._boot(machine, kernel)
        file = machine.folder / "agent.yaml"
        settings = yaml.safe_load(file.read_text()) | self.own[machine.name]
        file.write_text(yaml.safe_dump(settings))


class Guarded:
    """An async context manager. ``secrets`` are all tokens that were ever given out."""

    def __init__(self, cluster: Cluster, folder: Path, shown: Mapping[str, str]) -> None:
        self.cluster = cluster
        self.folder = folder
        self.consul = cluster.servers[0]
        # Consul's own variables, and nothing that this process has been given.
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith("CONSUL_")} | dict(shown)
        self.secrets: list[str] = []
        self.ports = free_ports(3)
        self.daemons: list[Child] = []
        self.client = Client([f"http://127.0.0.1:{port}" for port in self.ports], timeout=5.0)
        for made in ("tokens", "audit"):
            (folder / made).mkdir()
        for name, rack in MACHINES[:2]:
            node = {"Node": name, "Address": "127.0.0.1", "NodeMeta": {"rack": rack, "external-node": "true"}}
            self.consul.ask("/v1/catalog/register", "PUT", json.dumps(node).encode())
        # After an election Consul has its old ACL system for a moment.
        wait_for(lambda: token(self.consul, ['operator = "read"']), "Consul's ACL system")
        self._dns()
        for server in cluster.servers:
            self.give(f"daemon-{server.name}", "daemon", "daemon-gates")
        common = {"dns": [f"127.0.0.1:{self.consul.dns_port}"], "service": SERVICE, "recheck": 0.3}
        self.hosts = Hosts(folder, MACHINES, common, self.environ, 0.2)
        self.hosts.own = {name: self._agent(name) for name, _ in MACHINES}

    def _agent(self, name: str) -> dict[str, Any]:
        file = self.give(f"agent-{name}", "agent", node=name)
        server = next((s for s in self.cluster.servers if s.name == name), None)
        where = (
            {"mark": "agent", "consul": https(server)} if server else {"mark": "catalog", "consul": https(self.consul)}
        )
        return {**where, "consul_token_file": str(file)}

    def _dns(self) -> None:
        shown = token(self.consul, rules("dns", service=SERVICE))
        self.secrets.append(shown)
        body = json.dumps({"Token": shown}).encode()
        self.consul.ask("/v1/agent/token/default", "PUT", body)

    def give(self, owner: str, *policies: str, **values: str) -> Path:
        """A fresh token of these policies for ``owner``, in a file of its own that appears at once."""
        wanted = [rule for name in policies for rule in rules(name, service=SERVICE, prefix=PREFIX, **values)]
        shown = token(self.consul, wanted)
        self.secrets.append(shown)
        file = self.folder / "tokens" / owner
        new = file.with_suffix(".new")
        new.write_text(shown + "\n")
        new.chmod(0o600)
        new.replace(file)
        return file

    def revoke(self, owner_token: str) -> None:
        """Ends a token that was given out."""
        for one in self.consul.ask("/v1/acl/tokens"):
            secret = self.consul.ask(f"/v1/acl/token/{one['AccessorID']}")["SecretID"]
            if secret == owner_token:
                self.consul.ask(f"/v1/acl/token/{one['AccessorID']}", "DELETE")

    async def start(self, number: int) -> Child:
        """A daemon beside the server of that number."""
        server = self.cluster.servers[number]
        return await Child.start(
            [
                *(sys.executable, "-m", "rebootd.cli.main", "server", "--listen", f"127.0.0.1:{self.ports[number]}"),
                *("--prefix", PREFIX, "--service", SERVICE),
                *("--audit-log", str(self.folder / "audit" / f"d{number}.log")),
            ],
            log=self.folder / f"daemon{number}.log",
            environ=self.environ
            | {
                "CONSUL_HTTP_ADDR": https(server),
                "CONSUL_HTTP_TOKEN_FILE": str(self.folder / "tokens" / f"daemon-{server.name}"),
            },
        )

    async def __aenter__(self) -> Guarded:
        self.daemons = [await self.start(number) for number in range(3)]
        await self.hosts.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.hosts.close()
        for daemon in self.daemons:
            await daemon.end()

    async def kill(self, number: int) -> None:
        """SIGKILL, and a new one at once."""
        self.daemons[number].signal(signal.SIGKILL)
        await self.daemons[number].wait()
        self.daemons[number] = await self.start(number)

    def audit(self) -> tuple[dict[str, list[bytes]], Head]:
        """The lines of every daemon's audit file, and the head of the chain as it is in Consul."""
        found = self.consul.ask(f"/v1/kv/{PREFIX}audit")[0]["Value"]
        files = sorted((self.folder / "audit").iterdir())
        head = msgspec.json.decode(base64.b64decode(found), type=Head)
        return {file.name: file.read_bytes().splitlines(keepends=True) for file in files}, head

    def processes(self) -> list[int]:
        """The ids of all daemons and agents that run."""
        agents = [m.agent for m in self.hosts.machines.values() if m.agent is not None]
        return [child.pid for child in (*self.daemons, *agents) if child.running]

    def said(self) -> str:
        """All that daemons and agents have written: logs, and the machines' files."""
        files = [
            *self.folder.glob("*.log"),
            *self.folder.glob("audit/*"),
            *(f for f in (self.folder / "machines").rglob("*") if f.is_file()),
        ]
        return "\n".join(file.read_text(errors="replace") for file in files)


def https(server: Any) -> str:
    """Where a server's HTTPS is."""
    return f"https://127.0.0.1:{server.ports['https']}"

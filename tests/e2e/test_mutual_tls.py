"""A whole cycle under mutual TLS: real daemons, agents, Consul and rebootctl, new certificates in the middle, the
leader killed, and a machine whose certificate is taken back.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
import yaml

from rebootd.cli.ctl_client import Client, Trouble
from rebootd.cli.ctl_tls import Wire
from rebootd.cli.demo_machines import Supervisor
from rebootd.cli.demo_processes import Child
from rebootd.tls.files import TlsFiles
from tests.support.cluster import free_ports

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.support.cluster import Agent


class Guarded:
    """Two daemons and two machines, each with a certificate that ``rebootctl tls`` made."""

    def __init__(self, consul: Agent, folder: Path) -> None:
        self.consul = consul
        self.folder = folder
        self.run = f"tls-{uuid.uuid4().hex[:8]}"
        self.certs = folder / "certs"
        self.names = [f"{self.run}-r{rack}m1" for rack in (1, 2)]
        self.ports = free_ports(2)
        self.daemons: list[Child] = []
        agents = {
            "mark": "catalog",
            "consul": consul.url,
            "dns": [f"127.0.0.1:{consul.dns_port}"],
            "service": self.run,
            "recheck": 0.3,
            "wait_idle": 5,
            "tls_ca": str(self.ca),
            "tls_crl": str(self.crl),
        }
        racks = [(name, f"r{number}") for number, name in enumerate(self.names, 1)]
        self.hosts = Supervisor(folder, racks, agents, os.environ, 0.2)

    @property
    def ca(self) -> Path:
        return self.certs / "rebootd-ca.pem"

    @property
    def crl(self) -> Path:
        return self.certs / "rebootd-crl.pem"

    async def ctl(self, *words: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "rebootd.cli.ctl", *words),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
        assert process.returncode == 0, out.decode()
        return out.decode()

    async def make(self, *who: str, at: str) -> TlsFiles:
        """A new certificate for ``who``; it appears at ``at`` with its key, one after the other."""
        fresh = self.folder / f"fresh-{uuid.uuid4().hex[:6]}"
        fresh.mkdir()
        for name in ("rebootd-ca.pem", "rebootd-ca-key.pem"):
            (fresh / name).symlink_to(self.certs / name)
        await self.ctl("tls", "cert", "create", "--dir", str(fresh), *who)
        key = next(p for p in fresh.glob("*-key.pem") if "ca" not in p.name)
        cert = key.with_name(key.name.replace("-key", ""))
        at_cert, at_key = self.certs / f"{at}.pem", self.certs / f"{at}-key.pem"
        cert.replace(at_cert)
        key.replace(at_key)
        return TlsFiles(ca=str(self.ca), crl=str(self.crl), cert=str(at_cert), key=str(at_key))

    async def everybodys(self) -> None:
        """Certificates for all daemons and machines."""
        daemons = [self.make("--server", at=f"daemon{number}") for number in range(2)]
        await asyncio.gather(*daemons, *(self.make("--machine", name, at=name) for name in self.names))

    async def start(self, number: int) -> Child:
        return await Child.start(
            [
                *(sys.executable, "-m", "rebootd.cli.main", "server", "--listen", f"127.0.0.1:{self.ports[number]}"),
                *("--consul", self.consul.url, "--prefix", f"{self.run}/", "--service", self.run),
                *("--id", f"d{number}-{uuid.uuid4().hex[:6]}"),
            ],
            log=self.folder / f"daemon{number}.log",
            environ=os.environ
            | {
                "REBOOTD_TLS_CA": str(self.ca),
                "REBOOTD_TLS_CRL": str(self.crl),
                "REBOOTD_TLS_CERT": str(self.certs / f"daemon{number}.pem"),
                "REBOOTD_TLS_KEY": str(self.certs / f"daemon{number}-key.pem"),
            },
        )

    async def __aenter__(self) -> Guarded:
        await self.ctl("tls", "ca", "create", "--dir", str(self.certs))
        await self.everybodys()
        for number, name in enumerate(self.names, 1):
            meta = {"rack": f"r{number}", "external-node": "true"}
            node = {"Node": name, "Address": "127.0.0.1", "NodeMeta": meta}
            self.consul.ask("/v1/catalog/register", "PUT", msgspec.json.encode(node))
            # Beside the settings that all machines share, in the folder that the agent also reads.
            own = self.folder / "machines" / name / "agent.d"
            own.mkdir(parents=True)
            shown = {"tls_cert": str(self.certs / f"{name}.pem"), "tls_key": str(self.certs / f"{name}-key.pem")}
            (own / "tls.yaml").write_text(yaml.safe_dump(shown))
        alice = await self.make("--operator", "alice", "--role", "operator", at="alice")
        self.client = Client([f"https://127.0.0.1:{port}" for port in self.ports], timeout=5.0, wire=Wire(alice))
        self.daemons = [await self.start(number) for number in range(2)]
        await self.hosts.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.hosts.close()
        for daemon in self.daemons:
            await daemon.end()
        for name in self.names:
            self.consul.ask("/v1/catalog/deregister", "PUT", msgspec.json.encode({"Node": name}))
        self.consul.ask(f"/v1/kv/{self.run}/?recurse=true", "DELETE")

    async def ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        return json.loads(await asyncio.to_thread(self.client.ask, method, path, body))

    async def metric(self, number: int, name: str) -> float:
        """One of a daemon's figures, which a viewer may read."""
        alone = Client([f"https://127.0.0.1:{self.ports[number]}"], timeout=5.0, wire=self.client._wire)
        text = (await asyncio.to_thread(alone.ask, "GET", "/metrics")).decode()
        return next(float(row.rpartition(" ")[2]) for row in text.splitlines() if row.startswith(name))

    async def until(self, question: Callable[[], Awaitable[Any]], what: str, timeout: float = 60.0) -> Any:
        deadline = time.monotonic() + timeout
        while True:
            self.hosts.check()
            with suppress(Trouble):
                if found := await question():
                    return found
            assert time.monotonic() < deadline, f"waited for {what}\n{self.said()}"
            await asyncio.sleep(0.1)

    def said(self) -> str:
        files = [*self.folder.glob("daemon*.log"), *(self.folder / "machines").glob("*/log")]
        return "\n".join(f"--- {file}\n{file.read_text()[-3000:]}" for file in files)


async def test_a_cycle_with_new_certificates_in_its_middle_and_a_killed_leader(
    dev_consul: Agent, tmp_path: Path
) -> None:
    async with Guarded(dev_consul, tmp_path) as fleet:

        async def states() -> dict[str, str]:
            rows = (await fleet.ask("GET", "/v1/machines"))["machines"]
            return {row["name"]: row["state"] for row in rows}

        async def in_service() -> bool:
            return await states() == dict.fromkeys(fleet.names, "in-service")

        await fleet.until(in_service, "all machines to be in service")
        before = await fleet.ask("GET", "/v1/status")
        assert before["daemon"]["url"].startswith("https://")
        body = json.dumps({"id": "k", "selector": "*", "by": "mallory", "reason": "a test"}).encode()
        done = await fleet.ask("POST", "/v1/cycles", body)
        assert "by alice" in json.dumps(done)
        assert "mallory" not in json.dumps(done)

        async def one_went() -> bool:
            return any(m.boots for m in fleet.hosts.machines.values())

        await fleet.until(one_went, "the first machine to reboot")
        # All certificates change while the cycle runs; the daemons take them without a restart.
        name = 'rebootd_tls_expiry_timestamp_seconds{file="certificate"}'
        old = [await fleet.metric(number, name) for number in range(2)]
        await asyncio.sleep(1.1)  # certificates know whole seconds
        await fleet.everybodys()

        async def taken() -> bool:
            return all([await fleet.metric(number, name) > old[number] for number in range(2)])

        await fleet.until(taken, "the daemons to take their new certificates", 20)
        status = await fleet.ask("GET", "/v1/status")
        assert status["epoch"] == before["epoch"], "new certificates cost a leadership"
        number = next(n for n in range(2) if str(fleet.ports[n]) in status["daemon"]["url"])
        fleet.daemons[number].signal(signal.SIGKILL)
        await fleet.daemons[number].wait()
        fleet.daemons[number] = await fleet.start(number)

        async def ended() -> bool:
            return bool((await fleet.ask("GET", "/v1/cycles/k"))["cycle"]["state"] == "done")

        await fleet.until(ended, "the cycle to end", 90)
        await fleet.until(in_service, "all machines to be back")
        assert {m.name: m.boots for m in fleet.hosts.machines.values()} == dict.fromkeys(fleet.names, 1)
        assert (await fleet.ask("GET", "/v1/status"))["epoch"] > before["epoch"]

        # A stolen certificate: once it is on the list, its machine is heard no more, and everybody else is.
        lost, kept = fleet.names
        await fleet.ctl("tls", "revoke", "--dir", str(fleet.certs), str(fleet.certs / f"{lost}.pem"))

        async def shut_out() -> bool:
            log = (tmp_path / "machines" / lost / "log").read_text()
            return "is revoked" in log

        await fleet.until(shut_out, "the lost machine to be refused", 30)
        assert "is revoked" not in (tmp_path / "machines" / kept / "log").read_text()

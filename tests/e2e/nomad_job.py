"""The shipped job file on a real Nomad, for tests: registered, asked, and the agents of its hosts.

The three clients share a machine, so the job takes any free port, and the tasks run with ``raw_exec``.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.server
import json
import os
import subprocess
import threading
import time
import uuid
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from rebootd.cli.ctl_client import Client, Trouble
from rebootd.cli.demo_machines import Supervisor
from tests.support.cluster import Agent, wait_for
from tests.support.nomad import binary, nomad
from tests.support.one_file import ROOT, one_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
    from pathlib import Path

    import pytest

    from rebootd.cli.ctl_tls import Wire
    from tests.support.nomad import Nomad

JOB = ROOT / "nomad" / "rebootd.nomad.hcl"
VARS = sorted((ROOT / "nomad" / "vars").glob("*.vars.hcl"))
CLIENTS = ("c1", "c2", "c3")
TOKEN = "sesame"


class Job:
    """The job on a Nomad, under a service name and a prefix of its own.

    ``given`` are variables of the job file beside those that every test needs. With ``wire`` the daemons are asked
    over https and with its certificate, else with the shared token.
    """

    def __init__(
        self, real: Nomad, consul: Agent, file: Path, url: str, given: Mapping[str, str], wire: Wire | None
    ) -> None:
        self.nomad = real
        self.consul = consul
        self.name = f"rebootd-{uuid.uuid4().hex[:8]}"
        self.wire = wire
        checksum = hashlib.sha256(file.read_bytes()).hexdigest()
        variables = {
            "driver": "raw_exec",
            "port": "0",
            "artifact": url,
            "artifact_checksum": f"sha256:{checksum}",
            # The var-file names files of certificates on its hosts.
            **dict.fromkeys(("tls_ca", "tls_cert", "tls_key", "tls_crl"), ""),
            # Each client's own; on a host of its own it is always 127.0.0.1:8500.
            "consul_address": "http://${meta.consul}",
            # One rack has one client here: what is drained must find a place in another.
            "per_rack": "2",
            "service": self.name,
            "prefix": f"{self.name}/",
            **given,
        }
        self.variables = [f"-var={name}={value}" for name, value in variables.items()]

    def command(self, *arguments: str, ok: tuple[int, ...] = (0,)) -> str:
        """What a ``nomad`` command prints."""
        done = subprocess.run(
            [str(binary()), *arguments],
            env={**os.environ, "NOMAD_ADDR": self.nomad.servers[0].url},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode in ok, done.stdout + done.stderr
        return done.stdout

    def submit(self, verb: str, *more: str, ok: tuple[int, ...] = (0,)) -> str:
        """``nomad job <verb>`` with all variables."""
        flags = ["-detach"] if verb == "run" else []
        return self.command("job", verb, *flags, f"-var-file={VARS[0]}", *self.variables, *more, str(JOB), ok=ok)

    def remember(self, items: Mapping[str, str]) -> None:
        """Nomad Variables that the job's templates can read."""
        path = "nomad/jobs/rebootd"
        self.nomad.ask(f"/v1/var/{path}", "PUT", {"Path": path, "Items": dict(items)})

    def passing(self, service: str = "") -> list[str]:
        """``host:port`` of the instances that Consul calls healthy."""
        rows = self.consul.ask(f"/v1/health/service/{service or self.name}?passing=1")
        return sorted(f"{r['Service']['Address']}:{r['Service']['Port']}" for r in rows)

    def allocs(self) -> dict[str, str]:
        """``host:port`` of the allocations that run, with their ids."""
        found = {}
        for row in self.nomad.ask("/v1/job/rebootd/allocations"):
            if row["ClientStatus"] == "running" and row["DesiredStatus"] == "run":
                ports = self.nomad.ask(f"/v1/allocation/{row['ID']}")["AllocatedResources"]["Shared"]["Ports"]
                (port,) = (p["Value"] for p in ports if p["Label"] == "http")
                found[f"127.0.0.1:{port}"] = row["ID"]
        return found

    def version(self) -> int:
        """The newest version that has a deployment; -1: none has."""
        return max((d["JobVersion"] for d in self.nomad.ask("/v1/job/rebootd/deployments")), default=-1)

    def deployed(self, version: int = 0) -> bool:
        """Whether the newest deployment, of at least this version, is over, and well."""
        newest = max(self.nomad.ask("/v1/job/rebootd/deployments"), key=lambda d: d["JobVersion"])
        assert newest["Status"] in {"running", "pending", "successful"}, newest
        return bool(newest["Status"] == "successful" and newest["JobVersion"] >= version)

    def client(self) -> Client:
        """As an operator asks, whatever the daemons' ports are by now."""
        return self.client_of(*self.passing())

    def client_of(self, *places: str) -> Client:
        """As :meth:`client`, of these daemons."""
        if self.wire is None:
            return Client([f"http://{place}" for place in places], TOKEN, timeout=5.0)
        return Client([f"https://{place}" for place in places], timeout=5.0, wire=self.wire)

    async def ask(self, method: str, path: str, **body: Any) -> Any:
        """An answer of the leader; asked again while there is none."""
        data = msgspec.json.encode(body) if body else None
        deadline = time.monotonic() + 60
        while True:
            with suppress(Trouble, OSError):
                return json.loads(await asyncio.to_thread(lambda: self.client().ask(method, path, data)))
            assert time.monotonic() < deadline, f"{method} {path}"
            await asyncio.sleep(0.3)

    async def leader(self) -> str:
        """``host:port`` of the leader."""
        return str((await self.ask("GET", "/v1/status"))["daemon"]["url"]).partition("://")[2]


@contextmanager
def artifacts(file: Path) -> Iterator[str]:
    """The URL of a server that has the file."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(file.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/{file.name}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def consuls(server: Agent, folder: Path) -> Iterator[dict[str, Agent]]:
    """A Consul client for each Nomad client, of the same name, with its rack."""
    joined = [f"127.0.0.1:{server.ports['serf_lan']}"]
    agents = {
        name: Agent(name, folder / name, [], {"retry_join": joined, "node_meta": {"rack": f"r{n}"}})
        for n, name in enumerate(CLIENTS, 1)
    }
    with ExitStack() as stack:
        for agent in agents.values():
            stack.enter_context(agent)
        yield agents
    for name in CLIENTS:
        server.ask(f"/v1/agent/force-leave/{name}?prune=1", "PUT", timeout=20)


@contextmanager
def scheduled(
    consul: Agent,
    folders: pytest.TempPathFactory,
    given: Mapping[str, str],
    wire: Wire | None = None,
    variables: Mapping[str, str] | None = None,
) -> Iterator[Job]:
    """The job with its three daemons, on a Nomad of its own. ``variables`` are Nomad's (not the job file's) for it."""
    binary()
    file = one_file(folders.mktemp("one-file"))
    with consuls(consul, folders.mktemp("consuls")) as agents, artifacts(file) as url:
        places = {name: agent.url.removeprefix("http://") for name, agent in agents.items()}
        meta = {name: {"rack": f"r{n}", "consul": places[name]} for n, name in enumerate(CLIENTS, 1)}
        with nomad(meta, consuls=places) as real:
            made = Job(real, consul, file, url, given, wire)
            if variables is not None:
                made.remember(variables)
            plan = made.submit("plan", ok=(1,))
            assert "All tasks successfully allocated" in plan, plan
            began = time.monotonic()
            made.submit("run")
            wait_for(lambda: len(made.passing()) == len(CLIENTS), "three daemons", 180)
            print(f"three daemons after {time.monotonic() - began:.1f} s")
            wait_for(made.deployed, "the first deployment", 120)
            yield made


@asynccontextmanager
async def machines(job: Job, folder: Path, proof: Mapping[str, str]) -> AsyncIterator[Supervisor]:
    """An agent on each host, that knows nothing but a DNS server, the service's name and its ``proof`` (settings)."""
    settings = {
        "mark": "none",
        # Nobody there: what is not in DNS is not found.
        "consul": "http://127.0.0.1:1",
        "dns": [f"127.0.0.1:{job.consul.dns_port}"],
        "service": job.name,
        "recheck": 0.3,
        **proof,
    }
    supervisor = Supervisor(folder, [(name, f"r{n}") for n, name in enumerate(CLIENTS, 1)], settings, os.environ, 0.2)
    await supervisor.start()
    try:
        yield supervisor
    finally:
        await supervisor.close()


async def until(question: Callable[[], Awaitable[bool]], what: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not await question():
        assert time.monotonic() < deadline, f"waited {timeout:g} s for {what}"
        await asyncio.sleep(0.3)


async def in_service(job: Job) -> None:
    """Waits until the machines have found rebootd."""

    async def all_three() -> bool:
        rows = (await job.ask("GET", "/v1/machines"))["machines"]
        return [r["state"] for r in rows] == ["in-service"] * 3

    await until(all_three, "the machines to find rebootd and be in service", 60)


async def start(job: Job, cycle: str, policy: str) -> None:
    await asyncio.to_thread(lambda: job.client().ask("PUT", "/v1/policy", policy.encode()))
    await job.ask("POST", "/v1/cycles", id=cycle, selector="*", by="test")


async def ended(job: Job, supervisor: Supervisor, cycle: str, boots: int) -> None:
    """The cycle is done, and every machine has booted so often."""

    async def done() -> bool:
        supervisor.check()
        return str((await job.ask("GET", f"/v1/cycles/{cycle}"))["cycle"]["state"]) == "done"

    await until(done, f"cycle {cycle}", 300)
    assert {name: m.boots for name, m in supervisor.machines.items()} == dict.fromkeys(CLIENTS, boots)
    counts = (await job.ask("GET", f"/v1/cycles/{cycle}"))["counts"]
    assert (counts["rebooted"], counts["failed"]) == (3, 0)

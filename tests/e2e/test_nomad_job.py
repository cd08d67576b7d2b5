"""The shipped job file on a real Nomad: three daemons in three racks, from the one file of ``make dist``.

The three clients share a machine, so the job takes any free port, and the tasks run with ``raw_exec``.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.server
import json
import os
import re
import subprocess
import threading
import time
import uuid
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from rebootd.cli.ctl_client import Client, Trouble
from rebootd.cli.demo_machines import Supervisor
from tests.support.cluster import Agent, wait_for
from tests.support.nomad import binary, nomad
from tests.support.one_file import ROOT, one_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from tests.support.nomad import Nomad

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

JOB = ROOT / "nomad" / "rebootd.nomad.hcl"
VARS = sorted((ROOT / "nomad" / "vars").glob("*.vars.hcl"))
CLIENTS = ("c1", "c2", "c3")
TICKS = os.sysconf("SC_CLK_TCK")


class Job:
    """The job on a Nomad, under a service name and a prefix of its own."""

    def __init__(self, real: Nomad, consul: Agent, file: Path, url: str) -> None:
        self.nomad = real
        self.consul = consul
        self.name = f"rebootd-{uuid.uuid4().hex[:8]}"
        self.token = "sesame"
        checksum = hashlib.sha256(file.read_bytes()).hexdigest()
        given = {
            "driver": "raw_exec",
            "port": "0",
            "artifact": url,
            "artifact_checksum": f"sha256:{checksum}",
            # The var-file has certificates; this fleet does with a token.
            **dict.fromkeys(("tls_ca", "tls_cert", "tls_key", "tls_crl"), ""),
            "token_template": self.token,
            # Each client's own; on a host of its own it is always 127.0.0.1:8500.
            "consul_address": "http://${meta.consul}",
            # One rack has one client here: what is drained must find a place in another.
            "per_rack": "2",
            "service": self.name,
            "prefix": f"{self.name}/",
        }
        self.variables = [f"-var={name}={value}" for name, value in given.items()]

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
        return Client([f"http://{place}" for place in self.passing()], self.token, timeout=5.0)

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
        return str((await self.ask("GET", "/v1/status"))["daemon"]["url"]).removeprefix("http://")


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


@pytest.fixture(scope="module")
def job(dev_consul: Agent, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """Registered and running."""
    binary()
    file = one_file(tmp_path_factory.mktemp("one-file"))
    with consuls(dev_consul, tmp_path_factory.mktemp("consuls")) as agents, artifacts(file) as url:
        places = {name: agent.url.removeprefix("http://") for name, agent in agents.items()}
        meta = {name: {"rack": f"r{n}", "consul": places[name]} for n, name in enumerate(CLIENTS, 1)}
        with nomad(meta, consuls=places) as real:
            made = Job(real, dev_consul, file, url)
            plan = made.submit("plan", ok=(1,))
            assert "All tasks successfully allocated" in plan, plan
            began = time.monotonic()
            made.submit("run")
            wait_for(lambda: len(made.passing()) == len(CLIENTS), "three daemons", 180)
            print(f"three daemons after {time.monotonic() - began:.1f} s")
            wait_for(made.deployed, "the first deployment", 120)
            yield made


@pytest.mark.parametrize("path", VARS, ids=lambda path: path.name)
def test_nomad_finds_the_job_valid_for_each_data_center(job: Job, path: Path) -> None:
    assert "validation successful" in job.command("job", "validate", f"-var-file={path}", str(JOB))


def test_one_daemon_in_each_rack_and_both_services_are_healthy(job: Job) -> None:
    assert job.nomad.running("rebootd") == list(CLIENTS)
    wait_for(lambda: job.passing(f"{job.name}-http") == job.passing(), "Nomad's own service", 60)
    assert sorted(job.allocs()) == job.passing()
    # Nothing is to be done for a job that is as it was.
    job.submit("plan")


@asynccontextmanager
async def machines(job: Job, folder: Path) -> AsyncIterator[Supervisor]:
    """An agent on each host, that knows nothing but a DNS server and the service's name."""
    token = folder / "token"
    token.write_text(job.token)
    token.chmod(0o600)
    settings = {
        "mark": "none",
        # Nobody there: what is not in DNS is not found.
        "consul": "http://127.0.0.1:1",
        "dns": [f"127.0.0.1:{job.consul.dns_port}"],
        "service": job.name,
        "token_file": str(token),
        "recheck": 0.3,
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


async def test_cycles_lose_nothing(job: Job, tmp_path: Path) -> None:
    async with machines(job, tmp_path) as supervisor:

        async def in_service() -> bool:
            rows = (await job.ask("GET", "/v1/machines"))["machines"]
            return [r["state"] for r in rows] == ["in-service"] * 3

        await until(in_service, "the machines to find rebootd and be in service", 60)
        await start(job, "update", "settle: 0s\nsoak: 20s\n")
        await rolling_update(job)
        await killed_leader(job)
        await ended(job, supervisor, "update", 1)

        began = time.monotonic()
        await start(job, "drains", "settle: 5s\ndrains: {nomad: {machines: '*', deadline: 2m}}\n")
        await ended(job, supervisor, "drains", 2)
        print(f"three hosts with drains at Nomad in {time.monotonic() - began:.1f} s")
        assert [job.nomad.eligible(name) for name in CLIENTS] == [True] * 3
        events = await asyncio.to_thread(lambda: job.client().ask("GET", "/v1/events?limit=10000"))
        rows = [json.loads(row) for row in events.splitlines()]
        led = epochs(job)
        out = [(e["machine"], led[e["epoch"]]) for e in rows if e["to"] == "draining" and e["cycle"] == "drains"]
        assert sorted(name for name, _ in out) == list(CLIENTS)
        # Nobody's host was taken out while it led, and where it was drained its allocation went elsewhere.
        assert [pair for pair in out if pair[0] == pair[1]] == []
        assert len(job.allocs()) == 3


async def rolling_update(job: Job) -> None:
    before, version = set(job.allocs().values()), job.version()
    await asyncio.to_thread(job.submit, "run", "-var=log_level=debug")

    async def updated() -> bool:
        # A moment after the job, its deployment.
        return await asyncio.to_thread(job.deployed, version + 1)

    await until(updated, "the deployment", 300)
    assert not before & set(job.allocs().values())


async def killed_leader(job: Job) -> None:
    leader = await job.leader()
    victim = job.allocs()[leader]
    client = next(c for c in job.nomad.clients.values() if _runs(c, victim))
    began = time.monotonic()
    # Nomad's own signal API: the task dies as if the kernel had killed it.
    body = {"Signal": "SIGKILL", "Task": "rebootd"}
    await asyncio.to_thread(client.ask, f"/v1/client/allocation/{victim}/signal", "PUT", body)

    async def other() -> bool:
        return await job.leader() != leader

    await until(other, "another leader", 60)
    print(f"another leader answers {time.monotonic() - began:.1f} s after the kill")

    async def started_again() -> bool:
        task = job.nomad.ask(f"/v1/allocation/{victim}")["TaskStates"]["rebootd"]
        return bool(task["Restarts"] == 1 and task["State"] == "running" and len(job.passing()) == len(CLIENTS))

    await until(started_again, "Nomad to start it again", 60)


def epochs(job: Job) -> dict[int, str]:
    """The host of each epoch's leader, as the allocations' logs say."""
    found = {}
    for name, client in job.nomad.clients.items():
        for path in client.folder.glob("data/alloc/*/alloc/logs/rebootd.stderr.*"):
            for line in path.read_text().splitlines():
                said = json.loads(line) if line.startswith("{") else {}
                if said.get("event") == "leading":
                    found[said["epoch"]] = name
    return found


def _runs(client: Any, alloc: str) -> bool:
    try:
        return bool(client.ask(f"/v1/client/allocation/{alloc}/stats"))
    except OSError:
        return False


def test_what_a_daemon_takes_stays_within_what_the_job_asks_for(job: Job) -> None:
    """Idle daemons of a small fleet; what a leader of 10,000 machines takes is in docs/performance.md."""
    pids = {place: _pid(place) for place in job.passing()}
    before = {place: _cpu(pid) for place, pid in pids.items()}
    time.sleep(20)
    asked = {k: int(v) for k, v in re.findall(r'variable "(cpu|memory)" \{[^}]*default\s*=\s*(\d+)', JOB.read_text())}
    for place, pid in pids.items():
        status = Path(f"/proc/{pid}/status").read_text()
        resident = int(status.split("VmHWM:")[1].split()[0]) / 1024
        share = (_cpu(pid) - before[place]) / 20
        print(f"{place}: at most {resident:.0f} MB, {share:.1%} of a core")
        assert resident < asked["memory"] / 2
        assert share < 0.2


def _pid(place: str) -> int:
    """The process that was started for the allocation with that port."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if f"0.0.0.0:{place.rpartition(':')[2]}".encode() in words and b"python" in words[0]:
                return int(path.parent.name)
    raise AssertionError(f"no process listens as {place}")


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS

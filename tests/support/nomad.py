"""Real Nomad agents for tests: servers and clients on loopback, with ports, names and folders of their own.

``nomad`` is ``$NOMAD_BIN`` or the one on PATH; a test that needs it is skipped, visibly, without it (and without root,
which a client wants). Several clients run on one machine: they share its cgroups and nothing else, so their tasks run
with the ``raw_exec`` driver.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.cluster import die_with_parent, free_ports, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

PORTS = ("http", "rpc", "serf")
SLEEP = {"command": "/bin/sleep", "args": ["100000"]}


def binary() -> Path:
    """Where ``nomad`` is; without it, or without root, the test is skipped."""
    named = os.environ.get("NOMAD_BIN") or shutil.which("nomad")
    if not named or not Path(named).is_file():
        pytest.skip("no nomad: put it on PATH or name it with NOMAD_BIN")
    if os.geteuid() != 0:
        pytest.skip("a Nomad client needs root")
    return Path(named)


class NomadAgent:
    """One ``nomad agent`` process, server or client (``config`` says which). ``url`` is its HTTP API."""

    def __init__(self, name: str, folder: Path, config: Mapping[str, Any], consul: str = "") -> None:
        self.name = name
        self.folder = folder
        self.ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        self.config: dict[str, Any] = {
            "name": name,
            "bind_addr": "127.0.0.1",
            "advertise": dict.fromkeys(PORTS, "127.0.0.1"),
            "data_dir": str(folder / "data"),
            "ports": self.ports,
            "leave_on_terminate": False,
            "disable_update_check": True,
            "log_level": "INFO",
            "consul": {"address": consul, "checks_use_advertise": True}
            if consul
            else {"auto_advertise": False, "server_auto_join": False, "client_auto_join": False},
            **config,
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address of its HTTP API."""
        return f"http://127.0.0.1:{self.ports['http']}"

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.poll() is None

    def spawn(self) -> None:
        """Starts the process, without waiting until it is of use."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # Nomad would make it for root alone; tasks of other users must pass through it.
        (self.folder / "data").mkdir(mode=0o711, exist_ok=True)
        path = self.folder / "config.json"
        path.write_text(json.dumps(self.config), encoding="utf-8")
        with (self.folder / "log").open("ab") as output:
            self._process = subprocess.Popen(
                [str(binary()), "agent", f"-config={path}"],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent(),  # noqa: PLW1509  # no threads
            )

    def ask(self, path: str, method: str = "GET", body: Any = None, timeout: float = 5.0) -> Any:
        """The JSON answer of its API, blocking. Raises OSError, with the answer's text for a refusal."""
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.url + path, data=data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise OSError(f"{error.code} {error.read().decode(errors='replace')}") from None
        return json.loads(text) if text else None

    def log_tail(self, lines: int = 15) -> str:
        """The end of its log."""
        return "\n".join((self.folder / "log").read_text(errors="replace").splitlines()[-lines:])

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Ends it; a client's tasks go on."""
        if self.running:
            assert self._process is not None
            self._process.send_signal(number)
        if self._process is not None:
            self._process.wait(20)


class Nomad:
    """``servers`` and ``clients`` (by name). A context manager that leaves no task behind."""

    def __init__(
        self,
        folder: Path,
        clients: Mapping[str, Mapping[str, str]],
        *,
        servers: int = 1,
        consuls: Mapping[str, str] | None = None,
    ) -> None:
        self.servers = [
            NomadAgent(f"nomad-server{n}", folder / f"server{n}", {"server": {"enabled": True}}) for n in range(servers)
        ]
        joined = [f"127.0.0.1:{s.ports['serf']}" for s in self.servers]
        for server in self.servers:
            server.config["server"] |= {
                "bootstrap_expect": servers,
                "raft_multiplier": 1,
                "raft_protocol": 3,
                "num_schedulers": 1,
                # Lost clients are noticed at Nomad's shortest.
                "min_heartbeat_ttl": "1s",
                "max_heartbeats_per_second": 1000.0,
                "heartbeat_grace": "2s",
                "server_join": {"retry_join": joined, "retry_interval": "1s"},
            }
        self.rpc = [f"127.0.0.1:{s.ports['rpc']}" for s in self.servers]
        self.clients = {
            name: NomadAgent(name, folder / name, _client(self.rpc, meta), (consuls or {}).get(name, ""))
            for name, meta in clients.items()
        }

    # --- asking --------------------------------------------------------------------------

    def ask(self, path: str, method: str = "GET", body: Any = None) -> Any:
        """The answer of the first server that gives one."""
        for server in self.servers:
            if server.running:
                with contextlib.suppress(ConnectionError, TimeoutError):
                    return server.ask(path, method, body)
        raise OSError("no server answers")

    def node(self, name: str) -> dict[str, Any]:
        """The client's node, the living one if it has had several ids."""
        rows = [n for n in self.ask("/v1/nodes") if n["Name"] == name]
        if not rows:
            raise OSError(f"no node {name}")
        row = min(rows, key=lambda n: n["Status"] == "down")
        found: dict[str, Any] = self.ask(f"/v1/node/{row['ID']}")
        return found

    def eligible(self, name: str) -> bool:
        """Whether the client takes new allocations."""
        return str(self.node(name)["SchedulingEligibility"]) == "eligible"

    def allocs(self, name: str, job: str = "") -> list[dict[str, Any]]:
        """The client's allocations that run or may run."""
        rows = self.ask(f"/v1/node/{self.node(name)['ID']}/allocations")
        return [a for a in rows if a["ClientStatus"] in {"pending", "running"} and job in {"", a["JobID"]}]

    def running(self, job: str) -> list[str]:
        """The names of the clients on which allocations of the job run, sorted."""
        rows = self.ask(f"/v1/job/{job}/allocations")
        return sorted(a["NodeName"] for a in rows if a["ClientStatus"] == "running" and a["DesiredStatus"] == "run")

    # --- changing ------------------------------------------------------------------------

    def run(self, job: Mapping[str, Any]) -> None:
        """Registers a job (Nomad's JSON)."""
        self.ask("/v1/jobs", "POST", {"Job": job})

    def eligibility(self, name: str, word: str) -> None:
        """As ``nomad node eligibility`` does it."""
        node = self.node(name)["ID"]
        self.ask(f"/v1/node/{node}/eligibility", "PUT", {"NodeID": node, "Eligibility": word})

    def drain(self, name: str, deadline: float, **more: Any) -> None:
        """As ``nomad node drain -enable`` does it; ``deadline`` in seconds."""
        node = self.node(name)["ID"]
        spec = {"Deadline": int(deadline * 1e9), **more}
        self.ask(f"/v1/node/{node}/drain", "PUT", {"NodeID": node, "DrainSpec": spec})

    # --- its life ------------------------------------------------------------------------

    def _keys(self) -> bool:
        return any(k["State"] == "active" for k in self.ask("/v1/operator/keyring/keys"))

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Waits until every client is ready."""

        def ready() -> bool:
            known = {n["Name"] for n in self.ask("/v1/nodes") if n["Status"] == "ready"}
            return known >= set(self.clients)

        try:
            wait_for(ready, "every client to be ready", timeout)
        except TimeoutError:
            tails = [f"--- {a.name}\n{a.log_tail()}" for a in (*self.servers, *self.clients.values())]
            raise TimeoutError("\n".join(tails)) from None

    def __enter__(self) -> Nomad:
        binary()
        try:
            for server in self.servers:
                server.spawn()
            wait_for(self._keys, "a leader of Nomad with keys", 60)
            # A client that asks before the servers can sign its identity tries again only after 20 s [measured].
            for client in self.clients.values():
                client.spawn()
            self.wait_ready()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            for job in self.ask("/v1/jobs?namespace=*"):
                self.ask(f"/v1/job/{job['ID']}?purge=true&namespace={job['Namespace']}", "DELETE")
            wait_for(lambda: not any(self.allocs(name) for name in self.clients), "all tasks to stop", 20)
        for agent in (*self.clients.values(), *self.servers):
            agent.kill()
        for client in self.clients.values():
            unmount(client.folder)


def _client(servers: Sequence[str], meta: Mapping[str, str]) -> dict[str, Any]:
    return {
        "client": {
            "enabled": True,
            "servers": list(servers),
            "meta": dict(meta),
            # Without these each client would look for a cloud around it, and calls its host's address its own.
            "network_interface": "lo",
            "cpu_total_compute": 4000,
            "memory_total_mb": 4000,
            "gc_interval": "10m",
            "options": {"fingerprint.denylist": "env_aws,env_gce,env_azure,env_digitalocean,cni,bridge"},
            # The default copies 310 MB into every allocation of the exec driver.
            "chroot_env": {"/bin": "/bin", "/lib": "/lib", "/lib64": "/lib64", "/usr/lib": "/usr/lib"},
        },
        "plugin": [{"raw_exec": [{"config": [{"enabled": True}]}]}],
    }


def unmount(folder: Path) -> None:
    """The secrets folders of allocations that were not stopped in time are mounts."""
    for line in Path("/proc/mounts").read_text(encoding="ascii", errors="replace").splitlines():
        where = line.split()[1]
        if where.startswith(f"{folder}/"):
            subprocess.run(["umount", "-l", where], check=False)


@contextlib.contextmanager
def nomad(
    clients: Mapping[str, Mapping[str, str]],
    *,
    servers: int = 1,
    consuls: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Iterator[Nomad]:
    """A ready Nomad with clients of these names and metadata.

    ``consuls`` maps clients to the ``host:port`` of their Consul agents: one each, since a Nomad client removes the
    services that other clients have registered with the same agent.
    """
    binary()
    with tempfile.TemporaryDirectory(prefix="rebootd-nomad-", ignore_cleanup_errors=True) as path:
        # Tasks of other users must pass through it.
        Path(path).chmod(0o711)
        with Nomad(folder or Path(path), clients, servers=servers, consuls=consuls) as made:
            yield made


def job(name: str, kind: str = "service", count: int = 1, **task: Any) -> dict[str, Any]:
    """A job of one group with one ``raw_exec`` task that sleeps; ``task`` adds to that task."""
    group = {
        "Name": name,
        **({} if kind == "system" else {"Count": count}),
        "RestartPolicy": {"Attempts": 3, "Delay": 1_000_000_000, "Interval": 60_000_000_000, "Mode": "delay"},
        "Tasks": [
            {
                "Name": name,
                "Driver": "raw_exec",
                "Config": SLEEP,
                "KillTimeout": 1_000_000_000,
                "Resources": {"CPU": 20, "MemoryMB": 10},
                **task,
            }
        ],
    }
    if kind == "service":
        # Nomad's own 10 s until an allocation counts as healthy would be waited for at each drain.
        quick = {
            "MaxParallel": 1,
            "HealthCheck": "task_states",
            "MinHealthyTime": 200_000_000,
            "HealthyDeadline": 60_000_000_000,
        }
        group |= {"Migrate": quick, "Update": {**quick, "ProgressDeadline": 600_000_000_000}}
    return {"ID": name, "Name": name, "Type": kind, "Datacenters": ["dc1"], "TaskGroups": [group]}

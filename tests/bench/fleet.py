"""The daemons of a bench and the Consul they stand on: real processes, asked and watched from outside."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from rebootd.consul.leadership import LeaderInfo
from tests.support.cluster import Cluster, cluster, die_with_parent, free_ports, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.cluster import Agent

PREFIX = "rebootd/"
CATALOG_OPS = 60
CANARY = "bench-canary"
_METRIC = re.compile(r"^([a-z_]+)(?:\{([^}]*)\})? ([^ ]+)$", re.MULTILINE)
_TICKS = os.sysconf("SC_CLK_TCK")


class Process:
    """A child process and what the kernel knows of it."""

    def __init__(self, command: list[str], log: Path, environ: dict[str, str] | None = None) -> None:
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                env={**os.environ, **(environ or {})},
                start_new_session=True,
                preexec_fn=die_with_parent(),  # noqa: PLW1509  # no threads
            )
        self.log = log

    @property
    def running(self) -> bool:
        """Whether it lives."""
        return self._child.poll() is None

    def memory(self, field: str = "VmRSS") -> int:
        """Bytes of memory in use now (``VmRSS``) or at most so far (``VmHWM``)."""
        text = Path(f"/proc/{self._child.pid}/status").read_text(encoding="ascii")
        return int(text.partition(f"{field}:")[2].split()[0]) * 1024

    def cpu(self) -> float:
        """Seconds of CPU that it has used."""
        fields = Path(f"/proc/{self._child.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def signal(self, number: int) -> None:
        """Sends it a signal."""
        self._child.send_signal(number)

    def end(self, patience: float = 5.0) -> None:
        """Asks it to stop, and kills it if it does not."""
        self._child.terminate()
        try:
            self._child.wait(patience)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def kill(self) -> None:
        """Ends it at once."""
        self._child.kill()
        self._child.wait()


class Daemon:
    """One ``rebootd server``, at the Consul server ``consul``."""

    def __init__(self, number: int, consul: Agent, folder: Path) -> None:
        self.id = f"d{number}"
        self.port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{self.port}"
        self.consul = consul
        self._log = folder / f"{self.id}.log"
        self.process = self._start()

    def _start(self) -> Process:
        command = [sys.executable, "-m", "rebootd.cli.main", "server", "--id", self.id]
        command += ["--listen", f"127.0.0.1:{self.port}", "--prefix", PREFIX, "--consul", self.consul.url]
        return Process(command, self._log)

    def restart(self) -> None:
        """Starts it again after its end."""
        self.process = self._start()

    def log_text(self) -> str:
        """All that it has logged."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def wait_log(self, words: str, times: int = 1) -> None:
        """Waits until ``words`` were logged so many times."""
        wait_for(lambda: self.log_text().count(words) >= times, f"{self.id} to log {words}", 30)

    def read(self, path: str) -> bytes:
        """What a GET answers."""
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return bytes(answer.read())

    def metrics(self) -> dict[str, float]:
        """Its metrics by name, labels inside braces; sums over labels under the bare name as well."""
        text = self.read("/metrics").decode()
        found: dict[str, float] = {}
        for name, labels, value in _METRIC.findall(text):
            if labels:
                found[f"{name}{{{labels}}}"] = float(value)
            found[name] = found.get(name, 0.0) + float(value)
        return found


class Fleet:
    """Three daemons on a cluster of three Consul servers with disks, one daemon at each."""

    def __init__(self, consul: Cluster, folder: Path) -> None:
        self.consul = consul
        self.folder = folder
        self.daemons: list[Daemon] = []

    def register(self, machines: int, racks: int) -> None:
        """Puts machines into Consul's catalog, each with its rack."""
        server = self.consul.servers[self.consul.leader()]
        for start in range(0, machines, CATALOG_OPS):
            nodes = [
                {
                    "Node": {
                        "Verb": "set",
                        "Node": {
                            "Node": f"m{n:05d}",
                            "Address": "127.0.0.1",
                            "Meta": {"rack": f"r{n * racks // machines:02d}", "external-node": "true"},
                        },
                    }
                }
                for n in range(start, min(start + CATALOG_OPS, machines))
            ]
            server.ask("/v1/txn", "PUT", json.dumps(nodes).encode(), timeout=30)

    def wait_synced(self) -> None:
        """Waits until Consul's agents tell the catalog of checks that change.

        One that began without a leader of its cluster does not for 15 to 30 s [measured on 1.8.7]. A killed leader's
        session lives as long as its TTL meanwhile: that is no figure of ours.
        """
        check = {"ID": CANARY, "Name": CANARY, "HTTP": "http://127.0.0.1:1/", "Interval": "1s", "Status": "passing"}
        for server in self.consul.servers:
            server.ask("/v1/agent/check/register", "PUT", json.dumps(check).encode())
        for server in self.consul.servers:
            wait_for(partial(_told, server), f"{server.name} to tell of its checks", 60)
            server.ask(f"/v1/agent/check/deregister/{CANARY}", "PUT")

    def start(self) -> Daemon:
        """Starts the daemons and returns the first leader."""
        self.daemons = [Daemon(n, server, self.folder) for n, server in enumerate(self.consul.servers)]
        return self.leader()

    def leader(self, timeout: float = 30.0, but: str = "") -> Daemon:
        """The daemon that leads and answers (another than ``but``)."""

        def found() -> Daemon | None:
            name = self._named()
            daemon = next((d for d in self.daemons if d.id == name and d.id != but), None)
            return daemon if daemon is not None and daemon.metrics().get("rebootd_leader") == 1.0 else None

        daemon = wait_for(found, "a leader", timeout)
        assert daemon is not None
        return daemon

    def _named(self) -> str:
        [entry] = self.consul.servers[0].ask(f"/v1/kv/{PREFIX}leader?consistent")
        if "Session" not in entry:
            return ""
        value = self.consul.servers[0].ask(f"/v1/kv/{PREFIX}leader?raw&consistent")
        return msgspec.convert(value, LeaderInfo).id

    def epoch(self) -> int:
        """The epoch as Consul has it: it counts leaderships."""
        return int(self.consul.servers[0].ask(f"/v1/kv/{PREFIX}epoch?raw&consistent")["epoch"])

    def writes(self) -> tuple[int, int]:
        """The highest ModifyIndex under the prefix, and how many sessions there are: unchanged means no write."""
        entries = self.consul.servers[0].ask(f"/v1/kv/{PREFIX}?recurse&consistent", timeout=60)
        sessions = self.consul.servers[0].ask("/v1/session/list?consistent")
        return max(e["ModifyIndex"] for e in entries), len(sessions)

    def stop(self) -> None:
        """Ends every daemon."""
        for daemon in self.daemons:
            if daemon.process.running:
                daemon.process.signal(signal.SIGCONT)
                daemon.process.end()
        self.daemons = []


@contextlib.contextmanager
def fleet(machines: int, racks: int) -> Iterator[Fleet]:
    """A cluster with ``machines`` in its catalog, and no daemon yet."""
    with tempfile.TemporaryDirectory(prefix="rebootd-bench-", ignore_cleanup_errors=True) as made, cluster() as consul:
        found = Fleet(consul, Path(made))
        found.register(machines, racks)
        try:
            yield found
        finally:
            found.stop()


class Bare(Process):
    """The bare handler in a process of its own, at ``port``."""

    def __init__(self, folder: Path) -> None:
        self.port = free_ports(1)[0]
        super().__init__([sys.executable, "-m", "tests.bench.bare", str(self.port)], folder / "bare.log")


@contextlib.contextmanager
def bare(folder: Path) -> Iterator[Bare]:
    """The bare handler, ready."""
    process = Bare(folder)
    try:
        wait_for(lambda: _answers(process.port), "the bare handler", 20)
        yield process
    finally:
        process.end()


def _told(server: Agent) -> bool:
    checks = server.ask(f"/v1/health/node/{server.name}?consistent")
    return any(c["CheckID"] == CANARY and c["Status"] == "critical" for c in checks)


def _answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2).close()
    except urllib.error.HTTPError:
        return True
    return True


def pause(seconds: float) -> None:
    """Lets time pass while something is measured."""
    time.sleep(seconds)

"""Real Consul agents for tests: one dev agent, or a cluster of servers with disks, on loopback with ports of their own.

Each is a context manager; leaving it ends what it started, by process id, and nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rebootd.consul.binary import locate
from rebootd.consul.settings import ConsulSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

T = TypeVar("T")
PORTS = ("http", "https", "dns", "serf_lan", "serf_wan", "server")
_handed_out: set[int] = set()


def free_ports(count: int) -> list[int]:
    """Ports that are free now for TCP and UDP on loopback, below the kernel's ephemeral range, none given twice."""
    ports: list[int] = []
    # A random start keeps test runs that go on at the same time apart; outgoing connections never take these ports.
    start = 10_000 + uuid.uuid4().int % 20_000
    for offset in range(20_000):
        port = 10_000 + (start - 10_000 + offset) % 20_000
        if port not in _handed_out and _free(port):
            _handed_out.add(port)
            ports.append(port)
            if len(ports) == count:
                return ports
    raise RuntimeError("no free ports")


def _free(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True


def wait_for(question: Callable[[], T], what: str, timeout: float = 20.0, pause: float = 0.05) -> T:
    """The first true answer of ``question``; an ``OSError`` counts as not yet."""
    deadline = time.monotonic() + timeout
    while True:
        with contextlib.suppress(OSError, ValueError):
            answer = question()
            if answer:
                return answer
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout:g} s for {what}")
        time.sleep(pause)


def die_with_parent() -> Callable[[], object] | None:
    """Makes the kernel end the child when a test run is itself killed. It watches the thread that starts the child."""
    if not sys.platform.startswith("linux") or threading.current_thread() is not threading.main_thread():
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(1, int(signal.SIGKILL))


class Agent:
    """One ``consul agent`` process. ``url``, ``dns_port`` and ``settings`` say how to reach it."""

    def __init__(self, name: str, folder: Path, arguments: Sequence[str], config: dict[str, Any]) -> None:
        self.name = name
        self.folder = folder
        self.ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        self.arguments = tuple(arguments)
        self.config: dict[str, Any] = {
            "node_name": name,
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "data_dir": str(folder / "data"),
            "ports": {**self.ports, "grpc": -1} | ({} if "cert_file" in config else {"https": -1}),
            "performance": {"raft_multiplier": 1, "leave_drain_time": "100ms"},
            "disable_update_check": True,
            "log_level": "INFO",
        } | config
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address of its HTTP API."""
        return f"http://127.0.0.1:{self.ports['http']}"

    @property
    def dns_port(self) -> int:
        """The port of its DNS, UDP and TCP on 127.0.0.1."""
        return self.ports["dns"]

    @property
    def settings(self) -> ConsulSettings:
        """Settings that reach it, with the master token of its configuration if it has one."""
        return ConsulSettings(address=self.url, token=self.token)

    @property
    def token(self) -> str:
        """The master token of its configuration, or ``""``."""
        return str(self.config.get("acl", {}).get("tokens", {}).get("master", ""))

    @property
    def pid(self) -> int:
        """Its process id while it runs."""
        assert self._process is not None, f"{self.name} is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether its process lives (a frozen one does)."""
        return self._process is not None and self._process.poll() is None

    def spawn(self) -> None:
        """Starts the process, without waiting until it is of use."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "config.json"
        path.write_text(json.dumps(self.config), encoding="utf-8")
        command = [str(locate()), "agent", f"-config-file={path}", *self.arguments]
        with (self.folder / "log").open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent(),  # noqa: PLW1509  # no threads
            )

    def ask(self, path: str, method: str = "GET", body: bytes | None = None, timeout: float = 2.0) -> Any:
        """The JSON answer of its API, blocking."""
        headers = {"X-Consul-Token": self.token} if self.token else {}
        request = urllib.request.Request(self.url + path, data=body, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            text = answer.read()
            return json.loads(text) if text else None

    def wait_ready(self, timeout: float = 20.0) -> None:
        """Waits until it knows a leader and its own node is in the catalog."""

        def ready() -> bool:
            if not self.running:
                raise RuntimeError(f"{self.name} ended: {self.log_tail()}")
            return bool(self.ask("/v1/status/leader")) and bool(self.ask(f"/v1/health/node/{self.name}"))

        wait_for(ready, f"{self.name} to be ready", timeout)

    def log_tail(self, lines: int = 15) -> str:
        """The end of its log."""
        return "\n".join((self.folder / "log").read_text(errors="replace").splitlines()[-lines:])

    def signal(self, number: int) -> None:
        """Sends a signal to its process if it lives."""
        if self.running:
            assert self._process is not None
            self._process.send_signal(number)

    def pause(self) -> None:
        """Freezes it (SIGSTOP)."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Thaws it (SIGCONT)."""
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """Ends it at once (SIGKILL), also while frozen."""
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(10)

    def leave(self) -> None:
        """Ends it cleanly: it leaves the cluster first."""
        self.ask("/v1/agent/leave", "PUT", timeout=10.0)
        if self._process is not None:
            self._process.wait(20)

    def restart(self, timeout: float = 20.0) -> None:
        """Kills it if it lives, starts it again on the same ports and data, and waits until it is ready."""
        self.kill()
        self.spawn()
        self.wait_ready(timeout)

    def __enter__(self) -> Agent:
        self.spawn()
        try:
            self.wait_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


@contextlib.contextmanager
def _folder(folder: Path | None, prefix: str) -> Iterator[Path]:
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as made:
        yield Path(made)


@contextlib.contextmanager
def dev_agent(folder: Path | None = None, **config: Any) -> Iterator[Agent]:
    """A ``consul agent -dev`` (state in memory) that is ready; ``config`` is merged into its configuration."""
    with _folder(folder, "rebootd-dev-") as path, Agent("dev", path, ["-dev"], config) as agent:
        yield agent


class Cluster:
    """Servers with disks that form one cluster; ``servers[i]`` are :class:`Agent`."""

    def __init__(self, folder: Path, size: int = 3, **config: Any) -> None:
        self.servers = [Agent(f"server{number}", folder / f"server{number}", [], {}) for number in range(size)]
        peers = [f"127.0.0.1:{server.ports['serf_lan']}" for server in self.servers]
        for server in self.servers:
            server.config |= {"server": True, "bootstrap_expect": size, "retry_join": peers, "retry_interval": "1s"}
            server.config |= config

    @property
    def urls(self) -> list[str]:
        """The HTTP addresses of the servers."""
        return [server.url for server in self.servers]

    def pause(self, index: int) -> None:
        """Freezes one server (SIGSTOP)."""
        self.servers[index].pause()

    def resume(self, index: int) -> None:
        """Thaws it."""
        self.servers[index].resume()

    def kill(self, index: int) -> None:
        """Ends it at once (SIGKILL)."""
        self.servers[index].kill()

    def restart(self, index: int) -> None:
        """Starts it again on its data and waits until it is ready."""
        self.servers[index].restart()

    def leader(self, among: Sequence[int] | None = None, timeout: float = 20.0) -> int:
        """The index of the server that the asked ones (all by default) name as leader, waiting for one to be named.

        Only servers in ``among`` are asked or accepted: leave out a frozen one, which would not know better.
        """
        asked = list(range(len(self.servers)) if among is None else among)
        addresses = {f"127.0.0.1:{self.servers[index].ports['server']}": index for index in asked}

        def named() -> list[int]:
            seen = {addresses.get(self.servers[index].ask("/v1/status/leader", timeout=1.0)) for index in asked}
            return [index for index in seen if index is not None] if len(seen) == 1 else []

        return wait_for(named, "one leader", timeout)[0]

    def wait_healthy(self, timeout: float = 30.0) -> None:
        """Waits until every server follows one leader, is a voter, and is in the catalog."""
        for server in self.servers:
            server.wait_ready(timeout)
        self.leader(timeout=timeout)

        def complete() -> bool:
            voters = [s for s in self.servers[0].ask("/v1/operator/raft/configuration")["Servers"] if s["Voter"]]
            known = self.servers[0].ask("/v1/catalog/nodes")
            return len(voters) == len(self.servers) <= len(known)

        wait_for(complete, "every server to vote", timeout)

    def __enter__(self) -> Cluster:
        try:
            for server in self.servers:
                server.spawn()
            self.wait_healthy()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        for server in self.servers:
            server.kill()


@contextlib.contextmanager
def cluster(size: int = 3, folder: Path | None = None, **config: Any) -> Iterator[Cluster]:
    """A healthy :class:`Cluster` in a folder of its own."""
    with _folder(folder, "rebootd-cluster-") as path, Cluster(path, size, **config) as made:
        yield made

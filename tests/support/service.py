"""One real daemon as a process, with a token, on the memory store or on a real Consul, and machines that it knows."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.cluster import die_with_parent, free_ports, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN = "correct-horse-battery"
MACHINES = {f"r{rack}m{number}": f"r{rack}" for rack in (1, 2, 3) for number in (1, 2)}

CLIENT = "r3m2"
"""The one among them that may have a FleetLock client in the place of an agent."""


class Service:
    """A daemon that leads. ``url`` is where it listens, ``pid`` its process."""

    def __init__(self, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.pid = process.pid
        self.log = log

    def ask(self, method: str, path: str, body: object = None, timeout: float = 10.0) -> Any:
        """The JSON answer, blocking. Raises ``HTTPError``."""
        data = json.dumps(body).encode() if body is not None else None
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return json.loads(answer.read())

    def report(self, name: str, **facts: object) -> Any:
        """What the machine is told; it waits for nothing."""
        said = {"name": name, "machine_id": f"id-{name}", "boot_id": f"boot-{name}", "boot_check": {"status": "passed"}}
        return self.ask("POST", f"/v1/machines/{name}/report", said | facts)

    def join(self, name: str) -> None:
        """From the machine's first report into service."""
        answer = self.report(name)
        while answer["state"] != "in-service":
            directive = answer["directive"]
            facts: dict[str, object] = {"index": answer["index"], "wait": 1}
            if directive is not None and directive["kind"] == "enable":
                facts |= {
                    "result": {"id": directive["id"], "kind": "enable", "ok": True, "epoch": directive["epoch"]},
                    "in_service": True,
                }
            answer = self.report(name, **facts)

    @property
    def memory(self) -> int:
        """Bytes that the process has resident now."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024


@contextlib.contextmanager
def service(folder: Path, *arguments: str, token: bool = True) -> Iterator[Service]:
    """A daemon on the memory store, which knows :data:`MACHINES`, unless ``arguments`` name a Consul."""
    (port,) = free_ports(1)
    secret = folder / "token"
    secret.write_text(TOKEN)
    secret.chmod(0o600)
    command = [sys.executable, "-m", "rebootd.cli.main", "server", "--listen", f"127.0.0.1:{port}"]
    command += ["--log-format", "plain", *(["--token-file", str(secret)] if token else [])]
    if "--consul" not in arguments:
        nodes = ",".join(f"{name}={rack}" for name, rack in MACHINES.items())
        command += ["--store", "memory", "--memory-nodes", nodes]
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("REBOOTD_", "CONSUL_"))}
    with (folder / "daemon.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environ,
            preexec_fn=die_with_parent(),  # noqa: PLW1509  # no threads
        )
    made = Service(port, process, folder / "daemon.log")
    try:
        wait_for(lambda: process.poll() is None and made.ask("GET", "/v1/status", timeout=6), "a daemon that leads")
        yield made
    finally:
        process.kill()
        process.wait(10)

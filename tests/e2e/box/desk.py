"""What an operator of the box does and sees: rebootctl, the API, the load balancer's own account, and load upon it."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import msgspec

from rebootd.api.shapes import Cycles, CycleShow, Machines, Status
from rebootd.cli.ctl_client import Client, Trouble
from rebootd.core.model import Event
from tests.e2e.box import agents, lb
from tests.e2e.box.load import Tally
from tests.e2e.box.plan import API_PORT, FRONT_PORT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.e2e.box.control import Box

DRAINS = """
drains:
  nomad: {machines: role=web, deadline: 60s, services: 60s}
"""
CLONE_NEWNET = 0x40000000


class Desk:
    """An operator's desk in the box's network. Close it when done."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.servers = [f"http://{host.address}:{API_PORT}" for host in box.plan.daemons]
        self._client = Client(self.servers, box.plan.token, timeout=8.0)
        # One thread lives in the box's network; the rest of the process stays where it is.
        self._thread = ThreadPoolExecutor(1, initializer=_enter, initargs=(box.plant_pid,))

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown()

    # --- asking --------------------------------------------------------------------------

    def ask(self, method: str, path: str, **body: Any) -> bytes:
        """One call of the API. Raises ``Trouble``."""
        data = msgspec.json.encode(body) if body else None
        return self._thread.submit(self._client.ask, method, path, data).result()

    def rebootctl(self, *words: str, check: bool = True) -> str:
        """The command itself; its output."""
        token = self.box.folder / "token"
        token.write_text(self.box.plan.token)
        token.chmod(0o600)
        done = subprocess.run(
            [
                *self.box.within(),
                *(sys.executable, "-c", "import rebootd.cli.ctl as c; c.main()"),
                *("--server", ",".join(self.servers), "--token-file", str(token), *words),
            ],
            cwd=agents.TREE,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(f"rebootctl {' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def status(self) -> Status:
        """``GET /v1/status``."""
        return msgspec.json.decode(self.ask("GET", "/v1/status"), type=Status)

    def states(self) -> dict[str, str]:
        """Each machine's state."""
        rows = msgspec.json.decode(self.ask("GET", "/v1/machines"), type=Machines).machines
        return {row.name: row.state for row in rows}

    def cycle(self, id_: str) -> CycleShow:
        """One cycle."""
        return msgspec.json.decode(self.ask("GET", f"/v1/cycles/{id_}"), type=CycleShow)

    def events(self) -> list[Event]:
        """All that is remembered."""
        return [msgspec.json.decode(row, type=Event) for row in self.ask("GET", "/v1/events?limit=10000").splitlines()]

    def ask_policy(self, text: str) -> None:
        """Puts a policy into force; with Nomad in the box, it drains the workers there too."""
        text += DRAINS if self.box.plan.nomad else ""
        self._thread.submit(self._client.ask, "PUT", "/v1/policy", text.encode()).result()

    def counted(self, sample: str) -> float:
        """What all daemons that answer have counted under this name with these labels, since each was started."""
        total = 0.0
        for server in self.servers:
            text = self.box.run("lb", "curl", "-s", "-m", "3", f"{server}/metrics", check=False)
            total += sum(float(row.rpartition(" ")[2]) for row in text.splitlines() if row.startswith(sample + " "))
        return total

    def calm(self) -> None:
        """Ends what an earlier test left: cycles, quarantine, halt."""
        cycles = msgspec.json.decode(self.ask("GET", "/v1/cycles"), type=Cycles).cycles
        for view in cycles:
            if view.cycle.state.value not in {"done", "cancelled"}:
                self.ask("POST", f"/v1/cycles/{view.cycle.id}/cancel", by="test", reason="the next test")
        for name, state in self.states().items():
            if state == "quarantined":
                self.ask("POST", f"/v1/quarantine/{name}/clear", by="test", reason="the next test")
        with suppress(Trouble):
            self.ask("DELETE", "/v1/halt", by="test", reason="the next test")

    # --- waiting -------------------------------------------------------------------------

    def until(self, question: Callable[[], Any], what: str, timeout: float) -> Any:
        """The first true answer; while nobody leads there is none."""
        deadline = time.monotonic() + timeout
        while True:
            with suppress(Trouble, OSError, RuntimeError):
                answer = question()
                if answer:
                    return answer
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {timeout:g} s for {what}\n{self.told()}")
            time.sleep(0.1)

    def in_service(self, timeout: float) -> None:
        """Until all machines are in service."""
        names = {host.name for host in self.box.plan.machines}
        self.until(
            lambda: {name for name, state in self.states().items() if state == "in-service"} >= names,
            "all machines to be in service",
            timeout,
        )

    def balanced(self, timeout: float) -> None:
        """Until the load balancer sends requests to all web services."""
        addresses = {host.address for host in self.box.plan.hosts if host.web}
        self.until(lambda: self.pool() >= addresses, "all hosts to get requests", timeout)

    def done(self, cycle: str, timeout: float) -> CycleShow:
        """Until a cycle has ended."""

        def ended() -> CycleShow | None:
            shown = self.cycle(cycle)
            return shown if shown.cycle.state.value == "done" else None

        shown = self.until(ended, f"cycle {cycle} to end", timeout)
        assert isinstance(shown, CycleShow)
        return shown

    # --- traffic -------------------------------------------------------------------------

    def pool(self) -> set[str]:
        """Addresses of the hosts that get requests."""
        return lb.servers_up(self._statistics())

    def hidden(self) -> dict[str, int]:
        """What the load balancer counts as trouble with its servers."""
        return lb.hidden(self._statistics())

    def _statistics(self) -> str:
        return self.box.run("lb", "/usr/bin/python3", "-I", "-c", lb.STATISTICS)

    @contextmanager
    def load(self, rate: float = 200.0, longest: float = 600.0) -> Iterator[list[Tally]]:
        """Load while the body runs, from the first answer on; its one tally is in the list afterwards."""
        found: list[Tally] = []
        process = subprocess.Popen(self._load(rate, longest), cwd=agents.TREE, stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"answered\n", "the load does not begin"
            yield found
        finally:
            process.terminate()
            output, _ = process.communicate(timeout=30)
            found.append(_tally(output))

    def load_for(self, seconds: float, rate: float = 200.0) -> Tally:
        """Load for so long, and what came of it."""
        done = subprocess.run(self._load(rate, seconds), cwd=agents.TREE, stdout=subprocess.PIPE, check=True)
        return _tally(done.stdout)

    def _load(self, rate: float, seconds: float) -> list[str]:
        url = f"http://{self.box.plan.host('lb').address}:{FRONT_PORT}"
        return [*self.box.within(), sys.executable, "-m", "tests.e2e.box.load", url, str(rate), str(seconds)]

    # --- when something fails ------------------------------------------------------------

    def told(self) -> str:
        """Everything that helps to understand a failure."""
        lines = [f"{n.at:.2f} {n.host} {n.what} {n.code} {n.boot_id}{n.detail}" for n in self.box.notes()]
        for question in (self.states, self.events):
            with suppress(Trouble):
                found = question()
                lines += [str(row) for row in (found if isinstance(found, list) else [found])][-60:]
        for host in self.box.plan.machines:
            with suppress(RuntimeError):
                units = ("-u", "rebootd", "-u", "rebootd-agent")
                lines.append(self.box.run(host.name, "journalctl", "--no-pager", "-n", "12", *units, check=False))
        return "\n".join(lines)


def _tally(output: bytes) -> Tally:
    return msgspec.json.decode(output.splitlines()[-1], type=Tally)


def _enter(pid: int) -> None:
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(namespace)

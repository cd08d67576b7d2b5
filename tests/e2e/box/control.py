"""A box from the outside: it is built, ordered about, asked, and taken away."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from rebootd.consul.binary import locate
from tests.e2e.box import agents, cgroups, consul, layers, lb, nomad, rootfs
from tests.e2e.box.host import Note
from tests.e2e.box.plant import EVENTS, SOCKET, Setup
from tests.support.cluster import die_with_parent, wait_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.e2e.box.plan import BoxPlan

NAMESPACES = ("--mount", "--net", "--pid")


class Box:
    """A box in ``folder``. ``open`` one that runs, or ``build`` one and ``start`` it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.setup = msgspec.json.decode((folder / "setup.json").read_bytes(), type=Setup)
        self.plan: BoxPlan = self.setup.plan
        self._plant: subprocess.Popen[bytes] | None = None

    @classmethod
    def build(cls, folder: Path, plan: BoxPlan, one_file: Path | None = None) -> Box:
        """Lays out the hosts' files in an empty folder. Raises ``NoBoxError``."""
        base = rootfs.make()
        cgroups.sweep()
        (folder / "log").mkdir(parents=True)
        everywhere = folder / "layers" / "all"
        layers.common(everywhere)
        binds = [f"{locate()}:{consul.PROGRAM}", *agents.program(everywhere, one_file)]
        if plan.nomad:
            binds.append(nomad.fetched(folder))
        for host in plan.hosts:
            layer = folder / "layers" / host.name
            layers.own(layer, host)
            consul.install(layer, plan, host)
            lb.install(layer, host)
            agents.install(layer, plan, host)
            nomad.install(layer, plan, host)
        name = f"{cgroups.PREFIX}{uuid.uuid4().hex[:8]}"
        setup = Setup(box=name, plan=plan, rootfs=str(base), binds=tuple(binds))
        (folder / "setup.json").write_bytes(msgspec.json.encode(setup))
        return cls(folder)

    # --- its life ------------------------------------------------------------------------

    def start(self, *, stay: bool = False) -> None:
        """Starts the plant, not yet its hosts. ``stay``: it outlives the caller."""
        command = ["unshare", *NAMESPACES, "--propagation", "private", "--fork", "--kill-child", "--mount-proc"]
        with (self.folder / "log" / "plant").open("wb") as log:
            self._plant = subprocess.Popen(
                [*command, sys.executable, "-m", "tests.e2e.box.plant", str(self.folder)],
                cwd=agents.TREE,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=None if stay else die_with_parent(),  # noqa: PLW1509  # no threads yet
            )
        (self.folder / "unshare.pid").write_text(str(self._plant.pid))
        wait_for(self._answers, "the plant to answer", 20)

    def stop(self) -> None:
        """Ends everything and removes what is left; the folder with the logs stays. Raises if something survives."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            pid = int((self.folder / "unshare.pid").read_text())
            if self._is_ours(pid):
                os.kill(pid, signal.SIGKILL)
        if self._plant is not None:
            self._plant.wait(20)
        name = self.setup.box
        wait_for(lambda: not cgroups.processes(name), "the hosts' processes to end", 20)
        wait_for(lambda: not cgroups.remove(name), "the hosts' cgroups to go", 10)
        for leftover in ("unshare.pid", SOCKET):
            (self.folder / leftover).unlink(missing_ok=True)
        shutil.rmtree(self.folder / "layers", ignore_errors=True)

    def running(self) -> bool:
        """Whether its plant lives."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return self._is_ours(int((self.folder / "unshare.pid").read_text()))
        return False

    def _is_ours(self, pid: int) -> bool:
        with contextlib.suppress(OSError):
            return str(self.folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        return False

    def _answers(self) -> bool:
        if self._plant is not None and self._plant.poll() is not None:
            raise AssertionError((self.folder / "log" / "plant").read_text())
        return bool(self.told(self.plan.hosts[0].name))

    @property
    def plant_pid(self) -> int:
        """The plant's pid, as seen from here."""
        parent = int((self.folder / "unshare.pid").read_text())
        return int(Path(f"/proc/{parent}/task/{parent}/children").read_text().split()[0])

    def within(self, *namespaces: str) -> list[str]:
        """The words that run a command in the plant's namespaces; not named, in its network only."""
        return ["nsenter", "-t", str(self.plant_pid), *(namespaces or ("--net",)), "--"]

    # --- orders --------------------------------------------------------------------------

    def order(self, do: str, host: str, **more: Any) -> Any:
        """Gives the plant an order. Raises ``RuntimeError`` with what went wrong."""
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(more.get("timeout", 0) + 60.0)
            line.connect(str(self.folder / SOCKET))
            line.sendall(json.dumps({"do": do, "host": host, **more}).encode() + b"\n")
            answer = json.loads(line.makefile().read())
        if "error" in answer:
            raise RuntimeError(f"{do} {host}: {answer['error']}")
        return answer["ok"]

    def on(self, *hosts: str) -> None:
        """Power for these hosts, or all."""
        for host in hosts or [host.name for host in self.plan.hosts]:
            self.order("on", host)

    def cut(self, host: str, *, again: bool = False) -> None:
        """Power loss of one host; ``again``: the power is back at once."""
        self.order("cut", host, again=again)

    def told(self, host: str) -> dict[str, Any]:
        """Where a host stands."""
        found: dict[str, Any] = self.order("told", host)
        return found

    def run(self, host: str, *command: str, timeout: float = 20.0, check: bool = True) -> str:
        """Runs a command inside a host; its output."""
        done = self.order("run", host, command=command, timeout=timeout)
        if check and done["code"]:
            raise RuntimeError(f"{host}: {' '.join(command)}: exit code {done['code']}: {done['output']}")
        return str(done["output"])

    # --- the ground truth ----------------------------------------------------------------

    def notes(self) -> list[Note]:
        """What happened to the hosts, by who holds their power."""
        with contextlib.suppress(FileNotFoundError):
            rows = (self.folder / EVENTS).read_bytes().splitlines()
            return [msgspec.json.decode(row, type=Note) for row in rows]
        return []

    def exits(self, since: float = 0.0) -> dict[str, list[int]]:
        """The exit codes of each host's boots that ended after ``since``: 133 is a reboot."""
        found: dict[str, list[int]] = {}
        for note in self.notes():
            if note.what == "exit" and note.at >= since:
                found.setdefault(note.host, []).append(note.code)
        return found

    def boot_ids(self, host: str) -> list[str]:
        """The boot_id of each boot of a host."""
        return [note.boot_id for note in self.notes() if note.what == "boot" and note.host == host]

    def wait_boots(self, hosts: Sequence[str], boots: int, timeout: float) -> None:
        """Until each host has booted so often."""
        wait_for(lambda: all(len(self.boot_ids(h)) >= boots for h in hosts), f"{boots} boots", timeout)

    def now(self) -> float:
        """The clock of the notes."""
        return time.time()

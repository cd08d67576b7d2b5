"""The demo's machines: each a real agent process with a boot_id of its own, and a supervisor that boots them.

What a machine's ``reboot_command`` does is write its name into a pipe. The supervisor reads it, ends the agent as a
reboot would, waits, gives the machine a new boot_id and starts the agent again. It counts the boots: the demo's verdict
rests on that count, and not on what rebootd believes.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import uuid
from typing import TYPE_CHECKING, Any

import yaml

from rebootd.cli.demo_processes import Child

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

OLD_KERNEL, NEW_KERNEL = "6.12.8", "6.12.9"
START_PATIENCE = 20.0
"""Seconds that an agent keeps others of its kind from starting, at most."""


class Machine:
    """``boots`` counts reboots, ``asked`` how often the reboot command ran, ``crashes`` agents that ended unasked."""

    def __init__(self, name: str, rack: str, folder: Path) -> None:
        self.name = name
        self.rack = rack
        self.folder = folder
        self.boots = 0
        self.asked = 0
        self.crashes = 0
        self.agent: Child | None = None
        self.reboot = asyncio.Event()

    @property
    def state_file(self) -> Path:
        """Where its agent says how it stands."""
        return self.folder / "run" / "agent.json"


class Supervisor:
    """Keeps the machines running. ``settings`` are given to every agent; ``boot_time`` is the mean, in seconds.

    ``crash_pause`` is how many seconds an agent that ended unasked stays away.
    """

    def __init__(
        self,
        folder: Path,
        machines: Sequence[tuple[str, str]],
        settings: Mapping[str, Any],
        environ: Mapping[str, str],
        boot_time: float,
    ) -> None:
        self._settings = dict(settings)
        self._environ = dict(environ)
        self._boot_time = boot_time
        self.crash_pause = 1.0
        self._pipe_path = folder / "reboot"
        self._pipe = -1
        self._read = b""
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting = asyncio.Semaphore(max(2, os.cpu_count() or 2))
        self.machines = {name: Machine(name, rack, folder / "machines" / name) for name, rack in machines}

    async def start(self) -> None:
        """Boots every machine for the first time, without waiting for them. Raises OSError."""
        os.mkfifo(self._pipe_path, 0o600)
        # Open for writing too: else the pipe would end whenever no machine has it open.
        self._pipe = os.open(self._pipe_path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        asyncio.get_running_loop().add_reader(self._pipe, self._asked)
        for machine in self.machines.values():
            self._prepare(machine)
            task = asyncio.create_task(self._live(machine), name=f"machine {machine.name}")
            self._tasks.add(task)

    def check(self) -> None:
        """Raises what ended a machine's task, if one ended."""
        for task in self._tasks:
            if task.done():
                task.result()

    async def close(self) -> None:
        """Ends every agent; none comes back."""
        if self._pipe >= 0:
            asyncio.get_running_loop().remove_reader(self._pipe)
            os.close(self._pipe)
            self._pipe = -1
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(m.agent.end() for m in self.machines.values() if m.agent is not None))

    def _asked(self) -> None:
        *names, self._read = (self._read + os.read(self._pipe, 65536)).split(b"\n")
        for name in names:
            machine = self.machines.get(name.decode("ascii", "replace"))
            if machine is not None:
                machine.asked += 1
                machine.reboot.set()

    def _prepare(self, machine: Machine) -> None:
        for name in ("state", "run", "hooks"):
            (machine.folder / name).mkdir(parents=True)
        (machine.folder / "machine-id").write_text(uuid.uuid4().hex, encoding="ascii")
        (machine.folder / "reboot-required").write_text(f"linux-image-{NEW_KERNEL}\n", encoding="ascii")
        self._boot(machine, OLD_KERNEL)

    def _boot(self, machine: Machine, kernel: str) -> None:
        """A new boot_id, and the settings of an agent that finds itself on that kernel."""
        folder = machine.folder
        (folder / "boot_id").write_text(str(uuid.uuid4()), encoding="ascii")
        settings = {
            **self._settings,
            "name": machine.name,
            "labels": {"role": "demo"},
            "kernel": kernel,
            "machine_id_file": str(folder / "machine-id"),
            "boot_id_file": str(folder / "boot_id"),
            "state_dir": str(folder / "state"),
            "run_dir": str(folder / "run"),
            "hooks_dir": str(folder / "hooks"),
            "detect": ["file"],
            "reboot_required_file": str(folder / "reboot-required"),
            # Opened for reading too, so that the command never waits for a supervisor that is gone.
            "reboot_command": ["/bin/sh", "-c", 'echo "$0" 1<>"$1"', machine.name, str(self._pipe_path)],
        }
        (folder / "agent.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")

    async def _live(self, machine: Machine) -> None:
        await self._start(machine)
        while True:
            agent = machine.agent
            if agent is None:
                raise RuntimeError(f"{machine.name} has no agent")
            ended = asyncio.create_task(agent.wait())
            asked = asyncio.create_task(machine.reboot.wait())
            try:
                await asyncio.wait({ended, asked}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                ended.cancel()
                asked.cancel()
            if machine.reboot.is_set():
                await self._reboot(machine, agent)
            else:
                # What systemd would do with an agent that ends by itself.
                machine.crashes += 1
                await asyncio.sleep(self.crash_pause)
            await self._start(machine)

    async def _reboot(self, machine: Machine, agent: Child) -> None:
        machine.reboot.clear()
        # An orderly shutdown, or a machine that is just gone: both have to do.
        agent.signal(random.choice((signal.SIGTERM, signal.SIGKILL)))
        await asyncio.sleep(self._boot_time * random.uniform(0.5, 1.5))
        await agent.end()
        machine.boots += 1
        (machine.folder / "reboot-required").unlink(missing_ok=True)
        self._boot(machine, NEW_KERNEL)

    async def _start(self, machine: Machine) -> None:
        # An interpreter's start takes half a second of a CPU: many at once would starve the daemons.
        machine.state_file.unlink(missing_ok=True)
        async with self._starting:
            command = [sys.executable, "-m", "rebootd.cli.main", "agent", "run"]
            machine.agent = await Child.start(
                [*command, "--config", str(machine.folder / "agent.yaml")],
                log=machine.folder / "log",
                environ=self._environ,
            )
            until = asyncio.get_running_loop().time() + START_PATIENCE
            while machine.agent.running and not machine.state_file.exists():
                if asyncio.get_running_loop().time() > until:
                    break
                await asyncio.sleep(0.05)

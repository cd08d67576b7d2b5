"""One host: a systemd-nspawn container that is started again when it reboots, with a log of what really happened to it.

The log is the ground truth of who rebooted: the exit codes of systemd-nspawn (133 reboot, 0 power off, else init was
killed) and the boot_id of each start, written by who holds the power and not by rebootd.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tests.e2e.box import cgroups, network
from tests.e2e.box.plan import BRIDGE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.e2e.box.plan import HostPlan

REBOOTED = 133
POWER_OFF = signal.SIGRTMIN + 4
FORGOTTEN = ("/var/lib/consul", "/var/lib/rebootd")
"""What a stateless host loses at each boot."""
BOOT_ID = "proc/sys/kernel/random/boot_id"
_JOIN = (
    'for group in "$@"; do [ "$group" = -- ] && break; echo 0 > "$group/cgroup.procs"; shift; done; shift; exec "$@"'
)


class Note(msgspec.Struct, frozen=True):
    """One line of the log. ``what``: start, boot (with boot_id), exit (with code), cut, link."""

    at: float
    host: str
    what: str
    boot_id: str = ""
    code: int = 0
    detail: str = ""


class Host:
    """Power over one host. ``returns`` False: a reboot ends in silence; ``delay``: seconds that a start is put off."""

    def __init__(
        self, plan: HostPlan, folder: Path, box: str, binds: Sequence[str], note: Callable[[Note], None]
    ) -> None:
        self.plan = plan
        self.name = plan.name
        self.returns = True
        self.delay = 0.0
        self.plugged = True
        self.wanted = False
        self._root = folder / "hosts" / plan.name / "root"
        self._log = folder / "log" / f"{plan.name}.console"
        self._box = box
        self._binds = [f"--bind-ro={bind}" for bind in binds]
        if plan.stateless:
            self._binds += [f"--tmpfs={folder}:mode=755" for folder in FORGOTTEN]
        self._note = note
        self._process: asyncio.subprocess.Process | None = None
        self._life: asyncio.Task[None] | None = None

    @property
    def on(self) -> bool:
        """Whether it has power."""
        return self._process is not None and self._process.returncode is None

    def power_on(self) -> None:
        """Starts it, unless it runs."""
        self.wanted = True
        if self._life is None or self._life.done():
            self._life = asyncio.create_task(self._live())

    async def power_off(self) -> None:
        """An orderly power off, and waits for the end."""
        self.wanted = False
        await self._signal(POWER_OFF)
        await self._ended()

    async def cut(self, *, again: bool = False) -> None:
        """Power loss: its init is killed and everything in it with it. ``again``: the power is back at once."""
        self.wanted = False
        self._say("cut")
        await self._signal(signal.SIGKILL)
        await self._ended()
        if again:
            self.power_on()

    def link(self, *, up: bool) -> None:
        """Pulls its cable or plugs it in; it stays so over reboots."""
        self.plugged = up
        network.plug(self.name, up=up)
        self._say("link", detail="up" if up else "down")

    async def run(self, command: Sequence[str], timeout: float, text: bytes = b"") -> tuple[int, bytes]:
        """Runs a command inside; its exit code and output. Code 255 when the host is off."""
        leader = self.leader()
        if leader is None:
            return 255, b"the host is off"
        process = await asyncio.create_subprocess_exec(
            *("nsenter", "-t", str(leader), "-m", "-u", "-i", "-n", "-p", "-C", "--", *command),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={
                "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME": "/root",
                "LANG": "C.UTF-8",
            },
        )
        try:
            async with asyncio.timeout(timeout):
                output, _ = await process.communicate(text)
        except TimeoutError:
            # The command first, so that nsenter collects it: as an orphan it would be nobody's, and a host whose
            # PID namespace has a dead process that nobody collects never ends its shutdown.
            for pid in _children(process.pid) or [process.pid]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await process.wait()
            return 124, b"it took too long"
        return process.returncode or 0, output

    def leader(self) -> int | None:
        """The pid of its init, in the plant's PID namespace."""
        if self._process is None or self._process.returncode is not None:
            return None
        nspawn = self._process.pid
        with suppress(OSError):
            for child in Path(f"/proc/{nspawn}/task/{nspawn}/children").read_text().split():
                status = Path(f"/proc/{child}/status").read_text()
                numbers = next(line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:"))
                if len(numbers) > 1 and numbers[-1] == "1":
                    return int(child)
        return None

    def told(self) -> dict[str, Any]:
        """Where it stands, for people."""
        return {"host": self.name, "on": self.on, "plugged": self.plugged, "returns": self.returns}

    # --- its life ------------------------------------------------------------------------

    async def _live(self) -> None:
        while self.wanted:
            code = await self._one_boot()
            self._say("exit", code=code)
            if code != REBOOTED or not self.returns:
                self.wanted = False
            elif self.delay:
                await asyncio.sleep(self.delay)

    async def _one_boot(self) -> int:
        groups = [str(path) for path in cgroups.make(self._box, self.name)]
        command = [
            *("systemd-nspawn", "-q", "--boot", f"--directory={self._root}", f"--machine={self.name}"),
            *("--register=no", "--keep-unit", f"--network-bridge={BRIDGE}", "--console=pipe", "--resolv-conf=off"),
            *("--timezone=off", "--kill-signal=SIGRTMIN+3", "--system-call-filter=@keyring", *self._binds),
        ]
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *("/bin/sh", "-c", _JOIN, "join", *groups, "--", *command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
            )
        self._say("start")
        watch = asyncio.create_task(self._watch())
        code = await self._process.wait()
        watch.cancel()
        return code

    async def _watch(self) -> None:
        """Notes the boot_id as soon as there is one of its own, and keeps a pulled cable pulled."""
        ours = Path("/", BOOT_ID).read_text()
        pulled = self.plugged
        boot_id = ""
        while not (boot_id and pulled):
            pulled = pulled or self.plugged or network.plug(self.name, up=False)
            leader = self.leader()
            if leader is not None and not boot_id:
                with suppress(OSError):
                    found = Path(f"/proc/{leader}/root", BOOT_ID).read_text()
                    if found != ours:
                        boot_id = found.strip()
                        self._say("boot", boot_id=boot_id)
            await asyncio.sleep(0.02)

    async def _ended(self) -> None:
        if self._life is not None:
            await asyncio.wait({self._life})

    async def _signal(self, number: int) -> None:
        while self.on and (leader := self.leader()) is None:
            # It is just being started: there is no init yet that could be told anything.
            await asyncio.sleep(0.02)
        if self.on and leader is not None:
            os.kill(leader, number)

    def _say(self, what: str, **more: Any) -> None:
        self._note(Note(at=time.time(), host=self.name, what=what, **more))


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()]
    return []

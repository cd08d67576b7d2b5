"""The host itself: which boot this is, for how long it runs, and the one command that ends it."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rebootd.agent import userspace
from rebootd.agent.methods import command_of
from rebootd.core.errors import InvalidInput, Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rebootd.agent.settings import AgentSettings

_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,63}")
OUTPUT_KEPT = 2000

# The marker is made by the process that becomes the reboot command, and mkdir fails if it is there: whoever is killed
# when, the command is executed at most once per boot_id, and an agent that starts again can tell whether it was.
_ONCE = 'mkdir -- "$0" || exit 113; exec "$@"'


class Host:
    """What the agent asks of its host. Files are read anew at each call, so a demo can fake a host with its own."""

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self._userspace = userspace.Userspace()

    async def look(self, environ: Mapping[str, str]) -> None:
        """Finds out which userspace of this kernel it is; once, since a soft-reboot ends every process."""
        command = self._settings.userspace_command
        if not command and self._settings.boot_id_file.startswith("/proc/"):
            command = userspace.QUESTION
        if command:
            memory = Path(self._settings.run_dir) / "userspace.json"
            self._userspace = await userspace.look(command, self._kernel_boot_id(), memory, environ)

    def boot_id(self) -> str:
        """The id of the present boot, of the userspace too. Raises ``InvalidInput`` when it cannot be read."""
        boot_id = self._kernel_boot_id()
        return userspace.reported(boot_id, self._userspace.count if boot_id == self._userspace.boot_id else 0)

    def _kernel_boot_id(self) -> str:
        return _read_id("boot_id_file", self._settings.boot_id_file)

    def soft_booted(self) -> bool:
        """Whether only the userspace is new: the kernel's time since boot then says nothing about it."""
        return self._userspace.count > 0

    def service_mark(self) -> str:
        """What ``in-service`` in the run folder holds while in service; systemd/out-mark makes the same line."""
        return f"{self._kernel_boot_id()} {self._userspace.invocation}".rstrip() + "\n"

    def crashed(self) -> bool:
        """Whether the kernel before this one left a trace: in pstore, or moved from there since this boot."""
        fresh, *moved = [Path(folder) for folder in self._settings.crash_dirs] or [Path("/nonexistent")]
        return _newer(fresh, 0.0) or any(_newer(folder, self.now() - self.boottime()) for folder in moved)

    def machine_id(self) -> str:
        """The id that stays with this installation. Raises ``InvalidInput`` when it cannot be read."""
        return _read_id("machine_id_file", self._settings.machine_id_file)

    def kernel(self) -> str:
        """The release of the running kernel."""
        return self._settings.kernel or os.uname().release

    @staticmethod
    def hostname() -> str:
        """The host's name without its domain."""
        return socket.gethostname().partition(".")[0]

    @staticmethod
    def boottime() -> float:
        """Seconds since the boot, suspension included (CLOCK_BOOTTIME); never set back."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def age(self) -> float:
        """Seconds that this host has been up at most. A container counts from its own start, not its kernel's."""
        return min(self.boottime(), _age_of_init(self.boottime()))

    @staticmethod
    def now() -> float:
        """Seconds since the Unix epoch."""
        return time.time()

    def _marker(self, boot_id: str) -> Path:
        return Path(self._settings.state_dir) / f"reboot-{boot_id}.started"

    def reboot_started(self, boot_id: str) -> bool:
        """Whether the reboot command was executed in this boot."""
        return self._marker(boot_id).exists()

    def forget_markers(self, boot_id: str) -> None:
        """Removes the markers of earlier boots."""
        for marker in Path(self._settings.state_dir).glob("reboot-*.started"):
            if marker != self._marker(boot_id):
                try:
                    marker.rmdir()
                except OSError:
                    continue

    async def reboot(
        self, boot_id: str, environ: Mapping[str, str], method: str = "reboot"
    ) -> asyncio.subprocess.Process:
        """Starts the method's reboot command; at most one is ever executed per boot_id.

        It runs in a session of its own and writes to a file, so that it outlives the agent. Raises ``Refused`` when
        it cannot be started.
        """
        command = command_of(self._settings, method)
        try:
            with (Path(self._settings.state_dir) / "reboot.out").open("wb") as output:
                return await asyncio.create_subprocess_exec(
                    "/bin/sh",
                    "-c",
                    _ONCE,
                    str(self._marker(boot_id)),
                    *command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    env=dict(environ),
                )
        except OSError as error:
            raise Refused(f"the reboot command {' '.join(command)!r} cannot be started: {error}") from error

    def reboot_output(self) -> str:
        """The end of what the reboot command wrote."""
        try:
            data = (Path(self._settings.state_dir) / "reboot.out").read_bytes()
        except OSError:
            return ""
        return data[-OUTPUT_KEPT:].decode("utf-8", "replace").strip()


def _age_of_init(boottime: float, stat: Path = Path("/proc/1/stat")) -> float:
    """Seconds since the first process of this system was started; infinite where that is not told."""
    try:
        # The name of the program, in brackets, may hold anything.
        started = int(stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return float("inf")
    return max(0.0, boottime - started / os.sysconf("SC_CLK_TCK"))


def _newer(folder: Path, begun: float) -> bool:
    """Whether something came into the folder since ``begun``."""
    try:
        return any(path.stat().st_mtime >= begun for path in folder.iterdir())
    except OSError:
        return False


def _read_id(field: str, path: str) -> str:
    try:
        text = Path(path).read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        raise InvalidInput(field, path, f"a readable file ({error.strerror})") from error
    if not _ID.fullmatch(text):
        raise InvalidInput(field, text[:80], "a file that holds one id of letters, digits and dashes")
    return text

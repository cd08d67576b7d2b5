"""Child processes of the demo: none of them outlives it, however it ends."""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import signal
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl
_PORTS = range(20_000, 32_000)
"""Below the kernel's ephemeral range, so that no outgoing connection takes one before its server does."""


class Child:
    """One process in a session of its own, so that Ctrl-C reaches the demo alone, which then ends it in order."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self.log = log

    @classmethod
    async def start(cls, command: Sequence[str], *, log: Path, environ: Mapping[str, str]) -> Child:
        """Starts ``command``; what it writes is appended to ``log``. Raises OSError."""
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(environ),
                start_new_session=True,
                preexec_fn=_die_with(os.getpid()),  # nothing in it takes a lock
            )
        return cls(process, log)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.returncode is None

    async def wait(self) -> int:
        """Its exit code, negative for a signal."""
        return await self._process.wait()

    def signal(self, number: int) -> None:
        """Sends a signal if it still runs."""
        if self.running:
            self._process.send_signal(number)

    async def end(self, patience: float = 0.0) -> None:
        """Ends it: SIGTERM first if there is patience (seconds), then SIGKILL."""
        if patience > 0 and self.running:
            self.signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(patience):
                    await self.wait()
            except TimeoutError:
                pass
        self.signal(signal.SIGKILL)
        await self.wait()

    def tail(self, lines: int = 6) -> str:
        """The end of what it wrote."""
        try:
            return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


def _die_with(parent: int) -> Callable[[], None]:
    def before_exec() -> None:
        _prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:
            os._exit(1)

    return before_exec


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that are free for TCP and UDP. Raises OSError when there are not that many."""
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        if _free(port):
            found.append(port)
            if len(found) == count:
                return found
    raise OSError("no free ports on 127.0.0.1")


def _free(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True

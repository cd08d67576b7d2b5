"""A real daemon process behind certificates, with the memory store."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from tests.support.cluster import free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from rebootd.tls.files import TlsFiles


class Process:
    """One that serves at ``https://127.0.0.1:port``."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self._log = log

    def told(self, event: str) -> list[dict[str, object]]:
        """Its log lines of this event."""
        rows = [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]
        return [row for row in rows if row["event"] == event]

    async def until(self, true: Callable[[], bool]) -> None:
        """Waits until it is so, as long as the process lives."""
        async with asyncio.timeout(30):
            while not true():
                assert self.process.returncode is None, self._log.read_text()
                await asyncio.sleep(0.02)


@asynccontextmanager
async def daemon(folder: Path, files: TlsFiles, *more: str) -> AsyncIterator[Process]:
    """One that knows the machine m1 of rack r1, once it serves; ``more`` are flags."""
    (port,) = free_ports(1)
    log = folder / "daemon.log"
    words = ["--store", "memory", "--memory-nodes", "m1=r1", "--listen", f"127.0.0.1:{port}"]
    words += ["--tls-ca", files.ca, "--tls-crl", files.crl, "--tls-cert", files.cert, "--tls-key", files.key, *more]
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "rebootd.cli.main", "server", *words),
            stdout=output,
            stderr=output,
            env={**os.environ},
        )
    found = Process(process, port, log)
    try:
        await found.until(lambda: bool(found.told("serving")))
        yield found
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 20)

"""The demo's daemons: as many as asked for, found by agents as on a real fleet, killed at will."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import msgspec

from rebootd.api.shapes import Status
from rebootd.cli.ctl_client import Client, Trouble
from rebootd.cli.demo_processes import Child, free_ports
from rebootd.core.errors import Unreachable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

READY = 30.0
GRACE = 3.0


class Daemons:
    """Daemons by id. ``urls`` are where they answer; ``killed`` are the ids that were killed."""

    def __init__(self, folder: Path, run: str, environ: Mapping[str, str], count: int) -> None:
        self._folder = folder
        self._run = run
        self._environ = dict(environ)
        ports = free_ports(count)
        self.urls = {f"{run}-d{i}": f"http://127.0.0.1:{port}" for i, port in enumerate(ports, 1)}
        self.killed: set[str] = set()
        self._children: dict[str, Child] = {}
        self.client = Client(list(self.urls.values()), timeout=5.0)

    async def start(self, options: Sequence[str]) -> None:
        """Starts them. Raises OSError."""
        for id_, url in self.urls.items():
            listen = url.removeprefix("http://")
            self._children[id_] = await Child.start(
                [
                    *(sys.executable, "-m", "rebootd.cli.main", "server"),
                    *("--id", id_, "--listen", listen, "--prefix", f"{self._run}/", "--service", self._run),
                    *("--log-format", "plain"),
                    *options,
                ],
                log=self._folder / f"{id_}.log",
                environ=self._environ,
            )

    async def ready(self) -> Status:
        """Waits until one leads. Raises Unreachable."""
        loop = asyncio.get_running_loop()
        until = loop.time() + READY
        while (status := await self.status()) is None:
            for id_, child in self._children.items():
                if not child.running and id_ not in self.killed:
                    raise Unreachable(f"the daemon {id_} ended:\n{child.tail()}")
            if loop.time() > until:
                raise Unreachable(f"no daemon leads after {READY:g} s:\n{self.tail()}")
            await asyncio.sleep(0.1)
        return status

    async def status(self) -> Status | None:
        """What the leader says of the fleet; None while nobody leads."""
        try:
            return msgspec.json.decode(await self.ask("GET", "/v1/status"), type=Status)
        except Trouble:
            return None

    async def ask(self, method: str, path: str, body: object = None) -> bytes:
        """Asks whoever leads, as rebootctl does. Raises Trouble."""
        data = msgspec.json.encode(body) if body is not None else None
        return await asyncio.to_thread(self.client.ask, method, path, data)

    async def kill(self, id_: str) -> None:
        """Ends one at once, with SIGKILL; returns when it has ended."""
        self.killed.add(id_)
        await self._children[id_].end()

    def tail(self) -> str:
        """The ends of their logs."""
        return "\n".join(f"--- {id_}\n{child.tail()}" for id_, child in self._children.items())

    async def close(self) -> None:
        """Ends them all, in order if they can."""
        await asyncio.gather(*(child.end(GRACE) for child in self._children.values()))

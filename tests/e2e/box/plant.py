"""The power plant: the one process in whose namespaces the whole box lives. ``python -m tests.e2e.box.plant FOLDER``.

It is the first process of its PID namespace, so however it ends, the kernel ends every host with it, and the mounts
and the network go too. It takes orders on a socket in its folder, one JSON line each, from ``tests.e2e.box.control``.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tests.e2e.box import network
from tests.e2e.box.host import Host
from tests.e2e.box.plan import BoxPlan

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.e2e.box.host import Note

SOCKET = "plant.sock"
EVENTS = "events.jsonl"


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What a plant is told at its start. ``binds`` are what hosts see read-only (``here:there``), ``box`` its name."""

    box: str
    plan: BoxPlan
    rootfs: str
    binds: tuple[str, ...] = ()


class Plant:
    """The hosts of a box and the orders that can be given."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        setup = msgspec.json.decode((folder / "setup.json").read_bytes(), type=Setup)
        self._setup = setup
        self._events = (folder / EVENTS).open("ab", buffering=0)
        self.hosts = {plan.name: Host(plan, folder, setup.box, setup.binds, self._note) for plan in setup.plan.hosts}
        self._orders: dict[str, Callable[[Host, dict[str, Any]], Awaitable[Any]]] = {
            "on": self._on,
            "off": lambda host, _: host.power_off(),
            "cut": lambda host, order: host.cut(again=bool(order.get("again"))),
            "link": self._link,
            "habit": self._habit,
            "run": self._run,
            "told": self._told,
        }

    def furnish(self) -> None:
        """Mounts the hosts' root folders and lays the network."""
        # What systemd-nspawn leaves in /run, and what hosts write, is ours alone and gone with us.
        self._mount("-t", "tmpfs", "-o", "mode=755", "box", "/run")
        hosts = self.folder / "hosts"
        hosts.mkdir(exist_ok=True)
        self._mount("-t", "tmpfs", "-o", "mode=755,size=8g", "box", str(hosts))
        for name in self.hosts:
            folders = {part: hosts / name / part for part in ("upper", "work", "root")}
            for folder in folders.values():
                folder.mkdir(parents=True)
            own = self.folder / "layers" / name
            lower = f"{own}:{self.folder / 'layers' / 'all'}:{self._setup.rootfs}"
            options = f"lowerdir={lower},upperdir={folders['upper']},workdir={folders['work']}"
            self._mount("-t", "overlay", "-o", options, "overlay", str(folders["root"]))
        network.lay()

    async def serve(self) -> None:
        """Takes orders until the end."""
        for number in (signal.SIGTERM, signal.SIGINT):
            # The first process of a namespace is spared by signals that it has no handler for.
            asyncio.get_running_loop().add_signal_handler(number, sys.exit, 0)
        server = await asyncio.start_unix_server(self._answer, self.folder / SOCKET, limit=1 << 24)
        async with server:
            await server.serve_forever()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer: dict[str, Any]
        order = msgspec.json.decode(await reader.readline())
        try:
            host = self.hosts[order["host"]]
            answer = {"ok": await self._orders[order["do"]](host, order)}
        except (OSError, KeyError, ValueError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        writer.write(msgspec.json.encode(answer) + b"\n")
        writer.close()

    async def _on(self, host: Host, order: dict[str, Any]) -> None:
        host.power_on()

    async def _link(self, host: Host, order: dict[str, Any]) -> None:
        host.link(up=order["up"])

    async def _habit(self, host: Host, order: dict[str, Any]) -> None:
        host.returns, host.delay = order.get("returns", True), order.get("delay", 0.0)

    async def _run(self, host: Host, order: dict[str, Any]) -> dict[str, Any]:
        code, output = await host.run(order["command"], order["timeout"], order.get("input", "").encode())
        return {"code": code, "output": output.decode("utf-8", "replace")}

    async def _told(self, host: Host, order: dict[str, Any]) -> dict[str, Any]:
        return {**host.told(), "leader": host.leader()}

    def _note(self, note: Note) -> None:
        self._events.write(msgspec.json.encode(note) + b"\n")

    @staticmethod
    def _mount(*words: str) -> None:
        subprocess.run(["mount", *words], check=True, capture_output=True)


def main() -> None:
    """Runs the plant of the folder that is named."""
    plant = Plant(Path(sys.argv[1]))
    plant.furnish()
    asyncio.run(plant.serve())


if __name__ == "__main__":
    main()

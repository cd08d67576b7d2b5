"""A fleet for end-to-end tests: real daemons and real agents on a real Consul, each daemon between two relays.

What a daemon says to Consul and what machines and operators say to a daemon passes a relay, so that a test can end a
process at an exact moment without any hook in the product. Daemons advertise their relay, so discovery leads there.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from rebootd.api.shapes import CycleShow, Machines, Status
from rebootd.cli.ctl_client import Client, Trouble
from rebootd.cli.demo_machines import Supervisor
from rebootd.cli.demo_processes import Child
from rebootd.core.model import Event
from tests.e2e.ledger import Change, Ledger
from tests.e2e.relay import BreakOff, Relay
from tests.support.cluster import free_ports

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from aiohttp import web

    from tests.support.cluster import Agent


class Blow(NamedTuple):
    """When the leader is to be killed: right before or right after the commit of a machine's transition."""

    moment: str
    machine: str
    frm: str
    to: str


class Slot:
    """One daemon, started again after each kill under a new id, at the same address."""

    def __init__(self, fleet: Fleet, number: int) -> None:
        self.fleet = fleet
        self.number = number
        self.port, self.front_port, self.back_port = free_ports(3)
        self.child: Child | None = None
        self.again: asyncio.Task[None] | None = None
        self.front = Relay(f"http://127.0.0.1:{self.port}", before=fleet.machine_asks, after=fleet.machine_told)
        self.back = Relay(fleet.consul.url, before=self._asks, after=self._told)

    async def open(self) -> None:
        await self.front.start(self.front_port)
        await self.back.start(self.back_port)
        await self.start()

    async def start(self) -> None:
        run = self.fleet.run
        self.child = await Child.start(
            [
                *(sys.executable, "-m", "rebootd.cli.main", "server", "--log-format", "plain"),
                *("--listen", f"127.0.0.1:{self.port}", "--advertise", f"127.0.0.1:{self.front_port}"),
                *("--consul", self.back.url, "--prefix", f"{run}/", "--service", run),
                *self.fleet.flags,
                *(("--node", self.fleet.hosts[self.number]) if self.fleet.hosts else ()),
            ],
            log=self.fleet.folder / f"daemon{self.number}.log",
            environ=dict(os.environ),
        )

    def kill(self) -> None:
        """SIGKILL, and a new daemon at once, as Nomad would start it."""
        assert self.child is not None
        if self.again is not None and not self.again.done():
            return  # dead already, and the next one is about to start
        self.child.signal(signal.SIGKILL)
        self.fleet.kills += 1
        # A task of its own: the relay's handler ends with the connection of the daemon that was killed.
        self.again = asyncio.create_task(self._again(self.child))

    async def _again(self, child: Child) -> None:
        await child.wait()
        await self.start()

    async def close(self) -> None:
        if self.again is not None:
            await self.again
        if self.child is not None:
            await self.child.end()
        await self.front.stop()
        await self.back.stop()

    async def _asks(self, request: web.Request, body: bytes) -> None:
        if request.path == "/v1/txn" and self.fleet.strike("before", self.fleet.ledger.changes(body)):
            self.kill()
            raise BreakOff

    async def _told(self, request: web.Request, body: bytes, status: int, answer: bytes) -> None:
        if request.path == "/v1/txn" and status == 200:
            changes = self.fleet.ledger.changes(body)
            self.fleet.ledger.landed(body, answer)
            self.fleet.leader = self
            if self.fleet.strike("after", changes):
                self.kill()
                raise BreakOff


class Fleet:
    """``racks`` racks of ``machines`` machines; an async context manager that leaves nothing behind.

    ``blows`` are the kills still to be made, each once; ``on_ask`` and ``on_tell`` see what machines say and are told
    and may raise :class:`BreakOff`. ``settings`` are given to every agent, ``flags`` to every daemon.
    """

    def __init__(
        self,
        consul: Agent,
        folder: Path,
        *,
        daemons: int = 3,
        racks: int = 2,
        machines: int = 1,
        flags: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        self.consul = consul
        self.folder = folder
        self.flags = tuple(flags)
        self.run = f"e2e-{uuid.uuid4().hex[:8]}"
        self.ledger = Ledger(self.run + "/")
        self.blows: list[Blow] = []
        self.kills = 0
        self.leader: Slot | None = None
        self.on_ask: Callable[[str, str, bytes], Awaitable[None]] | None = None
        self.on_tell: Callable[[str, str, bytes, bytes], Awaitable[None]] | None = None
        self.nodes = [(f"{self.run}-r{r}m{m}", f"r{r}") for r in range(1, racks + 1) for m in range(1, machines + 1)]
        self.slots = [Slot(self, number) for number in range(daemons)]
        self.client = Client([f"http://127.0.0.1:{slot.front_port}" for slot in self.slots], timeout=5.0)
        agents = {
            "mark": "catalog",
            "consul": consul.url,
            "dns": [f"127.0.0.1:{consul.dns_port}"],
            "service": self.run,
            "recheck": 0.3,
            **settings,
        }
        self.supervisor = Supervisor(folder, self.nodes, agents, os.environ, 0.2)
        self.supervisor.crash_pause = 0.05
        self.meta: dict[str, dict[str, str]] = {}
        """What a machine's node meta in Consul has besides its rack."""
        self.hosts: list[str] = []
        """The machines that the daemons run on; none: on no machine of the fleet."""

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.nodes]

    # --- its life ------------------------------------------------------------------------

    async def __aenter__(self) -> Fleet:
        for name, rack in self.nodes:
            meta = {"rack": rack, "external-node": "true", **self.meta.get(name, {})}
            node = {"Node": name, "Address": "127.0.0.1", "NodeMeta": meta}
            self.consul.ask("/v1/catalog/register", "PUT", msgspec.json.encode(node))
        try:
            await asyncio.gather(*(slot.open() for slot in self.slots))
            await self.until(self.status, "a leader", 20)
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    async def _end(self) -> None:
        self.blows.clear()
        await self.supervisor.close()
        await asyncio.gather(*(slot.close() for slot in self.slots), return_exceptions=True)
        for name, _ in self.nodes:
            self.consul.ask("/v1/catalog/deregister", "PUT", msgspec.json.encode({"Node": name}))
        self.consul.ask(f"/v1/kv/{self.run}/?recurse=true", "DELETE")

    # --- killing -------------------------------------------------------------------------

    def strike(self, moment: str, changes: Sequence[Change]) -> bool:
        """Whether one of the blows is due now; it is used up then."""
        for blow in self.blows:
            for change in changes:
                fits = change.machine == blow.machine and change.to in blow.to.split("|")
                if fits and change.frm == blow.frm and blow.moment == moment and change.frm != change.to:
                    self.blows.remove(blow)
                    return True
        return False

    async def machine_asks(self, request: web.Request, body: bytes) -> None:
        name, what = _machine(request.path)
        if name and self.on_ask is not None:
            await self.on_ask(name, what, body)

    async def machine_told(self, request: web.Request, body: bytes, status: int, answer: bytes) -> None:
        name, what = _machine(request.path)
        if name and status == 200 and self.on_tell is not None:
            await self.on_tell(name, what, body, answer)

    def kill_agent(self, name: str) -> None:
        """SIGKILL; the supervisor starts it again within the same boot."""
        agent = self.supervisor.machines[name].agent
        assert agent is not None
        os.kill(agent.pid, signal.SIGKILL)
        self.kills += 1

    def kill_leader(self) -> None:
        """SIGKILL to the daemon that committed last."""
        if self.leader is not None:
            self.leader.kill()

    # --- asking --------------------------------------------------------------------------

    async def until(self, question: Callable[[], Awaitable[Any]], what: str, timeout: float = 45.0) -> Any:
        """The first true answer."""
        deadline = time.monotonic() + timeout
        while True:
            with suppress(Trouble):
                answer = await question()
                if answer:
                    return answer
            for slot in self.slots:
                dead = slot.child is not None and not slot.child.running and (slot.again is None or slot.again.done())
                assert not dead, f"a daemon ended by itself\n{await self.told()}"
            assert time.monotonic() < deadline, f"waited {timeout:g} s for {what}\n{await self.told()}"
            await asyncio.sleep(0.05)

    async def ask(self, method: str, path: str, **body: Any) -> bytes:
        """As rebootctl asks; a change whose answer was lost is asked for again."""
        data = msgspec.json.encode(body) if body else None
        deadline = time.monotonic() + 20
        while True:
            try:
                return await asyncio.to_thread(self.client.ask, method, path, data)
            except Trouble as trouble:
                if trouble.code != 3 or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.1)

    async def status(self) -> Status:
        return msgspec.json.decode(await asyncio.to_thread(self.client.ask, "GET", "/v1/status"), type=Status)

    async def states(self) -> dict[str, str]:
        rows = msgspec.json.decode(await self.ask("GET", "/v1/machines"), type=Machines).machines
        return {row.name: row.state for row in rows}

    async def reach(self, name: str, state: str, timeout: float = 45.0) -> None:
        """Waits until a machine is in a state."""

        async def there() -> bool:
            self.supervisor.check()
            return (await self.states()).get(name) == state

        await self.until(there, f"{name} to be {state}", timeout)

    async def all_in_service(self, timeout: float = 45.0) -> None:
        async def there() -> bool:
            self.supervisor.check()
            states = await self.states()
            return all(states.get(name) == "in-service" for name in self.names)

        await self.until(there, "all machines to be in service", timeout)

    async def start_cycle(self, id_: str, **more: Any) -> None:
        try:
            await self.ask("POST", "/v1/cycles", id=id_, selector="*", by="test", **more)
        except Trouble:
            # An answer was lost with its leader; what counts is whether the cycle exists.
            await self.cycle(id_)

    async def apply_policy(self, text: str) -> None:
        await asyncio.to_thread(self.client.ask, "PUT", "/v1/policy", text.encode())

    async def release(self, name: str) -> None:
        """Ends a hold; that it is gone already is as good."""
        try:
            await self.ask("DELETE", f"/v1/holds/machine/{name}", by="test")
        except Trouble:
            assert b'"holds":[]' in await self.ask("GET", "/v1/holds")

    async def clear(self, name: str) -> None:
        """Clears a quarantine; that it is cleared already is as good."""
        try:
            await self.ask("POST", f"/v1/quarantine/{name}/clear", by="test")
        except Trouble:
            assert (await self.states())[name] != "quarantined"

    async def cycle(self, id_: str) -> CycleShow:
        return msgspec.json.decode(await self.ask("GET", f"/v1/cycles/{id_}"), type=CycleShow)

    async def cycle_done(self, id_: str, timeout: float = 90.0) -> CycleShow:
        async def done() -> CycleShow | None:
            self.supervisor.check()
            shown = await self.cycle(id_)
            return shown if shown.cycle.state.value == "done" else None

        shown = await self.until(done, f"cycle {id_} to be done", timeout)
        assert isinstance(shown, CycleShow)
        return shown

    async def events(self) -> list[Event]:
        text = await self.ask("GET", "/v1/events?limit=10000")
        return [msgspec.json.decode(row, type=Event) for row in text.splitlines()]

    async def told(self) -> str:
        """Everything that helps to understand a failure."""
        lines = [f"blows left: {self.blows}", f"records: {self.ledger.states}"]
        with suppress(Trouble):
            lines.append((await asyncio.to_thread(self.client.ask, "GET", "/v1/machines")).decode())
            lines += [
                f"{e.seq} {e.epoch} {e.kind} {e.machine} {e.frm}->{e.to} {e.cause} {e.detail}"
                for e in await self.events()
            ]
        lines += [f"--- daemon{s.number}\n{s.child.tail(12)}" for s in self.slots if s.child]
        lines += [f"--- {m.name}\n{m.agent.tail(8)}" for m in self.supervisor.machines.values() if m.agent]
        return "\n".join(lines)


def _machine(path: str) -> tuple[str, str]:
    """The name and the last word of ``/v1/machines/<name>/<what>``."""
    parts = path.split("/")
    return (parts[3], parts[4]) if len(parts) == 5 and parts[2] == "machines" else ("", "")

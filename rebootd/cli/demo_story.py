"""The demo's story: a fleet starts, a cycle takes it through its reboots, and the leader is killed in the middle."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, Any

import msgspec

from rebootd.api.shapes import CycleAsked, CycleShow, Machines
from rebootd.cli.ctl_client import Trouble
from rebootd.cli.demo_consul import DemoConsul
from rebootd.cli.demo_daemons import Daemons
from rebootd.cli.demo_events import Follower, Tally
from rebootd.cli.demo_machines import NEW_KERNEL, Supervisor
from rebootd.cli.demo_summary import Failover, Verdict
from rebootd.core.errors import RebootdError
from rebootd.core.model import CycleState, Event, State

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rebootd.cli.demo_screen import Screen

CYCLE = f"kernel-{NEW_KERNEL}"
DAEMONS = 3
FRAME = 0.12
LOOK = 0.3
ENDED = frozenset({CycleState.DONE, CycleState.CANCELLED, CycleState.HALTED})


class DemoOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the demo was asked for. ``program`` is a Consul to start (None: see ``given``); ``boot_time`` and
    ``timeout`` are seconds. Without a Consul the memory store is used, with one daemon, and nobody is killed.
    """

    racks: int
    machines: int
    kill: bool
    keep: bool
    timeout: float
    boot_time: float
    given: bool
    program: Path | None


class Story:
    """One run of the demo. ``file`` gets the transitions as lines of JSON."""

    def __init__(self, options: DemoOptions, screen: Screen, file: IO[str] | None) -> None:
        self._options = options
        self._screen = screen
        self._run = f"rebootd-demo-{uuid.uuid4().hex[:6]}"
        # Nodes of a Consul that others use too are named after the run; in one of our own, names can be short.
        before = f"{self._run}-" if options.given else ""
        racks = [f"r{rack}" for rack in range(1, options.racks + 1)]
        self._machines = [(f"{before}{r}-m{m}", r) for r in racks for m in range(1, options.machines + 1)]
        self._tally = Tally(self._machines, file)
        self._moved = asyncio.Event()
        self._failover = Failover()
        self._began = time.monotonic()

    async def play(self, finished: Callable[[Verdict], object]) -> None:
        """The whole story, and everything gone when it ends; ``finished`` is told what came of it.

        Raises RebootdError, Trouble and OSError.
        """
        async with AsyncExitStack() as stack:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="rebootd-demo-", ignore_cleanup_errors=True)))
            consul = await self._open_consul(stack, folder)
            daemons = await self._open_daemons(stack, folder, consul)
            follower = Follower(list(daemons.urls.values()), asyncio.get_running_loop(), self._take)
            stack.callback(follower.stop)
            follower.start()
            self._screen.begin(self._tally)
            stack.callback(self._screen.end)
            drawing = asyncio.create_task(self._draw(daemons))
            stack.push_async_callback(_cancel, drawing)
            supervisor = Supervisor(
                folder, self._machines, self._agents(consul, daemons), self._environ(consul), self._options.boot_time
            )
            stack.push_async_callback(supervisor.close)
            await supervisor.start()
            problem = await self._tell(consul, daemons, supervisor)
            for event in await asyncio.to_thread(follower.history):
                self._take(event)
            verdict = await self._judge(daemons, supervisor, problem)
            drawing.cancel()
            self._screen.phase = "done"
            self._screen.end()
            if verdict.problems:
                self._screen.say(f"The ends of the logs:\n{daemons.tail()}", "dim")
            self._screen.show(verdict.table())
            finished(verdict)
            if self._options.keep:
                await self._keep(consul, daemons)

    # --- the parts -----------------------------------------------------------------------

    async def _open_consul(self, stack: AsyncExitStack, folder: Path) -> DemoConsul | None:
        options, say = self._options, self._screen.say
        if options.given:
            consul = DemoConsul.given(os.environ, self._run)
            say(f"Consul: {consul.settings.address}, which CONSUL_HTTP_ADDR names; all our keys are under {self._run}/")
        elif options.program is not None:
            consul = await DemoConsul.start(options.program, folder, self._run)
            say(f"Consul: {options.program} agent -dev, at {consul.settings.address}")
        else:
            return None
        stack.push_async_callback(consul.close)
        await consul.ready()
        stack.push_async_callback(self._clean, consul)
        await consul.register(self._machines)
        return consul

    async def _clean(self, consul: DemoConsul) -> None:
        for problem in await consul.clean():
            self._screen.say(f"left behind in Consul: {problem}", "red")

    async def _open_daemons(self, stack: AsyncExitStack, folder: Path, consul: DemoConsul | None) -> Daemons:
        daemons = Daemons(folder, self._run, self._environ(consul), 1 if consul is None else DAEMONS)
        stack.push_async_callback(daemons.close)
        nodes = ",".join(f"{name}={rack}" for name, rack in self._machines)
        await daemons.start(["--store", "memory", "--memory-nodes", nodes] if consul is None else [])
        self._screen.leader = str((await daemons.ready()).daemon.get("id", ""))
        return daemons

    def _environ(self, consul: DemoConsul | None) -> dict[str, str]:
        environ = {k: v for k, v in os.environ.items() if not k.startswith("REBOOTD_")}
        return environ | (consul.environ if consul is not None else {})

    def _agents(self, consul: DemoConsul | None, daemons: Daemons) -> Mapping[str, Any]:
        if consul is None:
            return {"mark": "none", "coordinators": list(daemons.urls.values())}
        # Consul's DNS where it has one; else agents ask the catalog, as they do on a fleet without DNS.
        dns = [consul.dns] if consul.dns else ["system"]
        return {"mark": "catalog", "service": self._run, "dns": dns, "domain": consul.domain}

    def _take(self, event: Event) -> None:
        if self._tally.take(event):
            self._screen.event(event)
            self._moved.set()

    async def _draw(self, daemons: Daemons) -> None:
        looked = 0.0
        while True:
            self._screen.refresh()
            await asyncio.sleep(FRAME)
            if time.monotonic() - looked > 1.0:
                looked = time.monotonic()
                status = await daemons.status()
                self._screen.leader = str(status.daemon.get("id", "")) if status is not None else ""

    # --- the story itself ----------------------------------------------------------------

    async def _tell(self, consul: DemoConsul | None, daemons: Daemons, supervisor: Supervisor) -> str:
        """Returns ``""``, or why the story did not come to its end."""
        total, began = len(self._machines), time.monotonic()
        self._screen.phase = "machines start"
        try:
            async with asyncio.timeout(self._options.timeout):
                await self._until(lambda: self._tally.count(State.IN_SERVICE) == total, supervisor)
                self._screen.note(f"all {total} machines are in service after {time.monotonic() - began:.0f} s")
                self._tally.begin()
                asked = CycleAsked(id=CYCLE, selector="role=demo", target=f"kernel={NEW_KERNEL}", by="demo")
                await daemons.ask("POST", "/v1/cycles", asked)
                self._screen.phase = f"cycle {CYCLE} runs"
                if self._options.kill and consul is not None:
                    await self._until(self._in_the_middle, supervisor)
                    await self._kill(consul, daemons)
                return await self._until_ended(daemons, supervisor)
        except TimeoutError:
            return f"the time is over ({self._options.timeout:g} s); {await _waits(daemons)}"

    async def _until(self, condition: Callable[[], bool], supervisor: Supervisor) -> None:
        while not condition():
            supervisor.check()
            self._moved.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._moved.wait(), 1.0)

    def _in_the_middle(self) -> bool:
        """A third is done, and one machine is down: the worst moment for its leader to die."""
        return len(self._tally.rebooted) >= len(self._machines) // 3 and self._tally.count(State.REBOOTING) > 0

    async def _kill(self, consul: DemoConsul, daemons: Daemons) -> None:
        id_ = str((await daemons.ready()).daemon["id"])
        before = await consul.epoch(0, 1.0)
        self._failover = Failover(killed=id_, at=time.time())
        began = time.monotonic()
        await daemons.kill(id_)
        self._screen.note(f"the leader {id_} was killed with SIGKILL", "bold red")
        epoch = await consul.epoch(before, 60.0)
        if epoch <= before:
            return
        self._failover.commit = time.monotonic() - began
        self._failover.epoch = epoch
        self._screen.leader = str((await daemons.ready()).daemon["id"])
        self._screen.note(
            f"{self._screen.leader} leads: first commit {self._failover.commit:.2f} s after the kill", "bold green"
        )

    async def _until_ended(self, daemons: Daemons, supervisor: Supervisor) -> str:
        while True:
            supervisor.check()
            with suppress(Trouble):
                shown = msgspec.json.decode(await daemons.ask("GET", f"/v1/cycles/{CYCLE}"), type=CycleShow)
                state = shown.cycle.state
                if state in ENDED:
                    return "" if state is CycleState.DONE else f"the cycle is {state.value}: {shown.cycle.why}"
            await asyncio.sleep(LOOK)

    async def _judge(self, daemons: Daemons, supervisor: Supervisor, problem: str) -> Verdict:
        rows = msgspec.json.decode(await daemons.ask("GET", "/v1/machines"), type=Machines).machines
        tally = self._tally
        moved = tally.first.get(self._failover.epoch)
        if moved is not None:
            self._failover.moved = moved.time - self._failover.at
        return Verdict(
            machines=tuple(name for name, _ in self._machines),
            states={row.name: row.state for row in rows},
            boots={m.name: max(m.boots, m.asked) for m in supervisor.machines.values()},
            crashes=sum(m.crashes for m in supervisor.machines.values()),
            rebooted=len(tally.rebooted),
            failed=len(tally.failed),
            most_racks=tally.most_racks,
            most_out=tally.most_out,
            failover=self._failover,
            kill=self._options.kill and (self._options.given or self._options.program is not None),
            seconds=time.monotonic() - self._began,
            problem=problem,
        )

    async def _keep(self, consul: DemoConsul | None, daemons: Daemons) -> None:
        alive = ",".join(url for id_, url in daemons.urls.items() if id_ not in daemons.killed)
        self._screen.say("\nEverything goes on running until Ctrl-C. In another terminal:", "bold")
        self._screen.say(
            f"  export REBOOTD_ADDR={alive}\n  rebootctl status\n  rebootctl cycle start again --selector '*'"
        )
        if consul is not None:
            address = consul.environ["CONSUL_HTTP_ADDR"]
            self._screen.say(f"  export CONSUL_HTTP_ADDR={address}\n  consul kv get -recurse {self._run}/machines/")
        await asyncio.Event().wait()


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


async def _waits(daemons: Daemons) -> str:
    """Which machines are not in service or wait, and for what."""
    try:
        rows = msgspec.json.decode(await daemons.ask("GET", "/v1/machines"), type=Machines).machines
    except (Trouble, RebootdError) as error:
        return f"and {error}"
    told = [f"{r.name} is {r.state}: {r.waiting}" for r in rows if r.state != State.IN_SERVICE or r.waiting]
    return "; ".join(told[:5]) or "no machine waits"

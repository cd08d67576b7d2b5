"""An electorate on the memory store: candidates that count while they lead. No tests here."""

from __future__ import annotations

import asyncio
import random

from rebootd.consul.election import Candidate, Election, Leadership, Tuning
from rebootd.core.errors import Conflict, NotLeader, StoreError
from rebootd.store.memory import MemoryConsul, MemoryStore
from rebootd.store.port import CheckSession, Set

KEY = "t/leader"
COUNTER = "t/counter"


def now() -> float:
    return asyncio.get_running_loop().time()


class Daemon:
    """One candidate with a client and a check of its own. While it leads it counts, fenced, each 50 ms."""

    def __init__(self, fleet: Fleet, name: str, tuning: Tuning | None) -> None:
        self.name = name
        self.check = f"service:{name}"
        fleet.consul.set_check("local", self.check, "passing")
        self.store = MemoryStore(fleet.consul)
        self.fleet = fleet
        self.terms: list[Leadership] = []
        self.error: Exception | None = None
        """What its scope is to raise."""
        self.scopes = 0
        """How many of its scopes run now."""
        self.election = Election(
            self.store,
            KEY,
            Candidate(name, f"http://{name}", "local"),
            self.lead,
            checks=("serfHealth", self.check),
            tuning=tuning,
            wall=now,
            rng=random.Random(name),
        )
        self.task = asyncio.create_task(self.election.run())

    async def lead(self, leadership: Leadership) -> None:
        self.terms.append(leadership)
        self.scopes += 1
        try:
            while self.error is None:
                await self.count(leadership)
                await asyncio.sleep(0.05)
            error, self.error = self.error, None
            raise error
        finally:
            self.scopes -= 1

    async def count(self, leadership: Leadership) -> None:
        at = now()
        try:
            entry = await self.store.get(COUNTER)
            value = int(entry.value) + 1 if entry is not None else 1
            write = Set(COUNTER, str(value).encode(), cas=entry.modify_index if entry is not None else 0)
            at = now()
            await self.store.commit([CheckSession(KEY, leadership.session), write])
        except Conflict as error:
            if any(failed.reason in {"session", "missing"} for failed in error.failed):
                raise NotLeader("lost the fence") from error
        except StoreError:
            return
        else:
            leadership.proved(at)
            self.fleet.counted.append((now(), self.name, value))

    def speaks(self) -> bool:
        leadership = self.election.leadership
        return leadership is not None and leadership.may_speak()


class Fleet:
    def __init__(self) -> None:
        self.consul = MemoryConsul()
        self.daemons: list[Daemon] = []
        self.counted: list[tuple[float, str, int]] = []

    async def add(self, count: int = 1, tuning: Tuning | None = None) -> None:
        for _ in range(count):
            self.daemons.append(Daemon(self, f"d{len(self.daemons)}", tuning))
            await asyncio.sleep(0.01)

    async def leader(self, but: Daemon | None = None, timeout: float = 60.0) -> Daemon:
        """Who speaks, once somebody (else than ``but``) does."""
        async with asyncio.timeout(timeout):
            while True:
                for daemon in self.daemons:
                    if daemon.speaks() and daemon is not but:
                        return daemon
                await asyncio.sleep(0.01)

    def others(self, daemon: Daemon) -> list[Daemon]:
        return [other for other in self.daemons if other is not daemon]

    async def end(self) -> None:
        for daemon in self.daemons:
            daemon.task.cancel()
        await asyncio.gather(*(daemon.task for daemon in self.daemons), return_exceptions=True)

    def heal(self) -> None:
        """Turns every fault off."""
        self.consul.faults.heal()
        for daemon in self.daemons:
            daemon.store.faults.heal()
            self.consul.set_check("local", daemon.check, "passing")

"""How long nobody leads after a leader was killed or asked to stop, and when its waiting agents are connected again."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from typing import TYPE_CHECKING

import msgspec

from rebootd.agent.client import Backoff, Coordinators, NoCoordinator
from rebootd.agent.loop import IDLE_PAUSE, SPACING
from rebootd.agent.settings import AgentSettings
from rebootd.consul.settings import ConsulSettings
from rebootd.core.errors import RebootdError
from rebootd.store.consul import ConsulStore
from tests.bench.figures import Figure, ms, percentile
from tests.bench.fleet import PREFIX, fleet
from tests.bench.machine import IDLE, Machine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tests.bench.fleet import Daemon, Fleet

RACKS = 10
KILLED = 2.0
STOPPED = 0.3
PATIENCE = 60.0


class _Client(Coordinators):
    """The agent's own client, which notes when it last sent something, and where to."""

    sent_at = 0.0
    sent_to = ""

    async def _send(
        self, url: str, path: str, body: bytes, timeout: float, tried: dict[str, str], *, trusted: bool
    ) -> tuple[int, dict[str, str], bytes]:
        self.sent_at, self.sent_to = time.monotonic(), url
        return await super()._send(url, path, body, timeout, tried, trusted=trusted)


class _Agent:
    """A machine in service whose agent waits, with the agent's own client and pauses."""

    def __init__(self, number: int, urls: Sequence[str]) -> None:
        async def find() -> AsyncIterator[list[str]]:
            shuffled = list(urls)
            random.shuffle(shuffled)
            yield shuffled

        self.machine = Machine(number, "", 0)
        self.machine.reboot()
        self.machine.check_passed()
        self.client = _Client(AgentSettings(mark="none"), find)
        self.backoff = Backoff(random.Random())

    async def run(self) -> None:
        """Reports, waits and obeys, for ever."""
        m = self.machine
        while True:
            try:
                answer = await self.client.report(m.name, m.made(IDLE))
            except RebootdError as error:
                asked = error.retry_after if isinstance(error, NoCoordinator) else 0.0
                await asyncio.sleep(self.backoff.next(IDLE_PAUSE, asked))
            else:
                self.backoff.reset()
                m.index, m.state = answer.index, answer.state
                m.obey(answer)
                await asyncio.sleep(SPACING)


class _Gap(msgspec.Struct, frozen=True):
    """Seconds from the end of one leader: to the next one's first commit, and to each agent's waiting there."""

    commit: float
    agents: list[float]


def run(rounds: int = 12, agents: int = 200) -> list[Figure]:
    """Kills and stops leaders in turns."""
    with fleet(agents, RACKS) as found:
        found.wait_synced()
        found.start()
        killed, stopped = asyncio.run(_rounds(found, rounds, agents))
    return [
        *_figures(killed, "SIGKILL of the leader", KILLED, agents),
        *_figures(stopped, "graceful stop of the leader (SIGTERM)", STOPPED, agents),
    ]


def _figures(gaps: Sequence[_Gap], what: str, goal: float, agents: int) -> list[Figure]:
    commits = [g.commit for g in gaps]
    back = [s for g in gaps for s in g.agents]
    return [
        Figure(
            what=f"{what} to the next leader's first fenced commit ({len(gaps)} rounds)",
            value=f"p50 {ms(percentile(commits, 0.5))}, p99 {ms(percentile(commits, 0.99))}, most {ms(max(commits))}",
            beside=f"{agents} waiting agents connected again: p50 {ms(percentile(back, 0.5))}, "
            f"p99 {ms(percentile(back, 0.99))}, most {ms(max(back))}",
            limit=f"at most {goal:g} s",
            met=max(commits) <= goal,
        )
    ]


async def _rounds(found: Fleet, rounds: int, count: int) -> tuple[list[_Gap], list[_Gap]]:
    agents = [_Agent(n, [d.url for d in found.daemons]) for n in range(count)]
    tasks = [asyncio.create_task(a.run()) for a in agents]
    killed, stopped = [], []
    try:
        for _ in range(rounds):
            killed.append(await _round(found, agents, signal.SIGKILL))
            stopped.append(await _round(found, agents, signal.SIGTERM))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(a.client.close() for a in agents))
    return killed, stopped


async def _round(found: Fleet, agents: Sequence[_Agent], number: signal.Signals) -> _Gap:
    old = await asyncio.to_thread(found.leader)
    await _all_wait(old, agents)
    for agent in agents:
        agent.backoff.reset()  # as an answer would have: leaders last longer than a round
    others = [d for d in found.daemons if d is not old]
    store = ConsulStore.open(ConsulSettings(address=others[0].consul.url))
    try:
        epoch = PREFIX + "epoch"
        [entry], index = await store.list(epoch, consistent=True)
        began = time.monotonic()
        old.process.signal(number)
        async with asyncio.timeout(PATIENCE):
            now = entry.modify_index
            while now == entry.modify_index:
                seen, index = await store.watch(epoch, index, 10.0)
                now = seen[0].modify_index
        commit = time.monotonic() - began
    finally:
        await store.close()
    new = await asyncio.to_thread(found.leader, but=old.id)
    await _all_wait(new, agents)
    # A request that the next leader had parked before it led is with it from its first commit on.
    back = [max(a.client.sent_at - began, commit) for a in agents]
    await asyncio.to_thread(_again, old)
    return _Gap(commit, back)


async def _all_wait(daemon: Daemon, agents: Sequence[_Agent]) -> None:
    async with asyncio.timeout(PATIENCE):
        while (await asyncio.to_thread(daemon.metrics))["rebootd_waiting_agents"] < len(agents) or any(
            a.client.sent_to != daemon.url for a in agents
        ):
            await asyncio.sleep(0.25)


def _again(daemon: Daemon) -> None:
    """Starts an ended daemon again and waits until it competes."""
    sessions = daemon.log_text().count("session-created")
    daemon.process.end()
    daemon.restart()
    daemon.wait_log("session-created", sessions + 1)

"""One cycle through a fleet that does at once what it is told: hand-offs, and what each machine costs Consul."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from datetime import datetime
from typing import TYPE_CHECKING

from rebootd.consul.settings import ConsulSettings
from rebootd.core.wire import DirectiveKind
from rebootd.store.consul import ConsulStore
from rebootd.store.port import CheckNotExists, Set
from tests.bench.figures import Figure, ms, percentile
from tests.bench.fleet import fleet
from tests.bench.machine import IDLE, Machine

if TYPE_CHECKING:
    from tests.bench.fleet import Daemon

RACKS = 4
COMMITS = 3.0
SAMPLE_EVERY = 0.03
PATIENCE = 120.0


def run(machines: int = 120) -> list[Figure]:
    """A cycle of one machine after the other, with single commits timed beside it."""
    with fleet(machines, RACKS) as found:
        leader = found.start()
        heard, commits, counts = asyncio.run(_cycle(leader, machines))
        handoffs = _handoffs(leader.log_text(), heard)
    p50, p99, c50, c99 = (percentile(v, s) for v in (handoffs, commits) for s in (0.5, 0.99))
    transactions, operations, most = (n / machines for n in counts)
    return [
        Figure(
            what="hand-off: from the commit that puts a machine back to the next one's drain directive "
            f"({len(handoffs)} times)",
            value=f"p50 {p50 / c50:.2f}, p99 {p99 / c99:.2f} commits ({ms(p50)}, {ms(p99)})",
            beside=f"one Consul commit, 3 servers with disks, at the same time: p50 {ms(c50)}, p99 {ms(c99)} "
            f"({len(commits)})",
            limit=f"at most {COMMITS:.0f} commits",
            met=p50 <= COMMITS * c50 and p99 <= COMMITS * c99,
        ),
        Figure(
            what="Consul transactions for one machine in one cycle",
            value=f"{transactions:.2f}",
            beside=f"{operations:.1f} operations in them: records, fences, guards, rack locks and event chunks; "
            f"{most:.2f} decisions",
        ),
    ]


async def _cycle(leader: Daemon, machines: int) -> tuple[list[float], list[float], tuple[float, float, float]]:
    """Times (Unix epoch) at which drain directives came, seconds of commits, and what the cycle added to the counts."""
    heard: list[float] = []
    commits: list[float] = []
    fleet_ = [Machine(n, "127.0.0.1", leader.port) for n in range(machines)]
    for m in fleet_:
        m.reboot()
    await asyncio.gather(*(m.come_back(checked=True) for m in fleet_))
    agents = [asyncio.create_task(_live(m, heard)) for m in fleet_]
    await asyncio.sleep(1.0)  # until the last of the way back has been written
    before = await asyncio.to_thread(leader.metrics)
    sampler = asyncio.create_task(_sample(leader.consul.url, commits))
    try:
        await asyncio.to_thread(_post, leader, "/v1/cycles", {"id": "bench", "selector": "*", "reason": "b", "by": "b"})
        deadline = time.monotonic() + PATIENCE
        while (shown := await asyncio.to_thread(_get, leader, "/v1/cycles/bench"))["cycle"]["state"] == "running":
            if time.monotonic() > deadline:
                raise TimeoutError(f"the cycle did not end: {shown['counts']}, {shown['blockers']}")
            await asyncio.sleep(0.3)
        assert shown["counts"]["rebooted"] == machines, shown["counts"]
    finally:
        for task in (*agents, sampler):
            task.cancel()
        await asyncio.gather(*agents, sampler, return_exceptions=True)
        for m in fleet_:
            m.close()
    after = await asyncio.to_thread(leader.metrics)
    names = ("rebootd_commit_seconds_count", "rebootd_commit_operations_sum", "rebootd_decide_seconds_count")
    a, b, c = (after[name] - before[name] for name in names)
    return heard, commits, (a, b, c)


async def _live(m: Machine, heard: list[float]) -> None:
    """Obeys at once, for ever; its checks after a boot pass after its first report."""
    while True:
        answer = await m.report(IDLE)
        directive = answer.directive
        if directive is not None and directive.kind is DirectiveKind.DRAIN:
            heard.append(time.time())
        if directive is not None and directive.kind is DirectiveKind.REBOOT:
            permit = await m.permit(directive.id, directive.epoch)
            if permit is not None and permit.granted:
                m.reboot()
                await m.report(IDLE)
                m.check_passed()
        else:
            m.obey(answer)


async def _sample(url: str, commits: list[float]) -> None:
    """Times single small transactions, as long as it is left to."""
    store = ConsulStore.open(ConsulSettings(address=url))
    try:
        while True:
            began = time.perf_counter()
            await store.commit([CheckNotExists("bench/absent"), Set("bench/commit", b"x" * 600)])
            commits.append(time.perf_counter() - began)
            await asyncio.sleep(SAMPLE_EVERY)
    finally:
        await store.close()


def _handoffs(log: str, heard: list[float]) -> list[float]:
    """Seconds from each landed return to the next drain directive at its agent; the last return has none."""
    landed = []
    for line in log.splitlines():
        if '"in-service"' in line and '"enabling"' in line:
            said = json.loads(line)
            if said.get("to") == "in-service":
                landed.append(datetime.fromisoformat(said["timestamp"]).timestamp())
    drains = sorted(heard)
    landed = sorted(at for at in landed if at > drains[0])[: len(drains) - 1]
    return [drain - at for at, drain in zip(landed, drains[1:], strict=True)]


def _get(leader: Daemon, path: str) -> dict[str, dict[str, object]]:
    with urllib.request.urlopen(leader.url + path, timeout=10) as answer:
        return json.loads(answer.read())  # type: ignore[no-any-return]


def _post(leader: Daemon, path: str, body: dict[str, str]) -> None:
    request = urllib.request.Request(leader.url + path, data=json.dumps(body).encode(), method="POST")
    request.add_header("Content-Type", "application/json")
    urllib.request.urlopen(request, timeout=10).close()

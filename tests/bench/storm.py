"""The boot storm, and what a leader with ten thousand waiting agents costs afterwards."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from tests.bench.crowd import Crowd, Storm
from tests.bench.figures import Figure, mb
from tests.bench.fleet import bare, fleet, pause
from tests.support.cluster import wait_for

if TYPE_CHECKING:
    from tests.bench.fleet import Daemon, Fleet

RACKS = 40
TIMES = 4.0
MEMORY = 300e6


def run(machines: int = 10_000, idle: float = 60.0) -> list[Figure]:
    """The storm beside the bare handler before and after it, then the idle minute."""
    with fleet(machines, RACKS) as found, Crowd(machines) as crowd:
        seconds = [_bare(found, crowd)]
        leader = found.start()
        crowd.order("meet", host="127.0.0.1", port=leader.port)
        first = _together(crowd.order("storm", reboot=True, checked=True))
        epoch = found.epoch()
        before = leader.metrics()
        storm = _together(crowd.order("storm", reboot=True, checked=False))
        after = leader.metrics()
        same = found.epoch() == epoch and leader.process.running
        waiting = _idle(found, leader, crowd, machines, idle)
        crowd.order("leave")
        found.stop()
        seconds.append(_bare(found, crowd))
    plain = statistics.mean(seconds)
    took = storm.ended - storm.began
    commits = after["rebootd_commit_seconds_count"] - before["rebootd_commit_seconds_count"]
    ops = after["rebootd_commit_operations_sum"] - before["rebootd_commit_operations_sum"]
    whole = storm.back == machines and not storm.refused and not storm.lost
    return [
        Figure(
            what=f"boot storm: {machines} machines report a new boot, are verified and enabled "
            f"({storm.requests} requests)",
            value=f"{took / plain:.2f} x ({took:.1f} s)",
            beside=f"bare handler, same requests, before and after: {seconds[0]:.1f} s and {seconds[1]:.1f} s",
            limit=f"at most {TIMES:.0f} x",
            met=took <= TIMES * plain,
        ),
        Figure(
            what="boot storm: requests lost, requests refused, changes of leadership",
            value=f"{storm.lost}, {storm.refused}, {0 if same else 'some'}",
            beside=f"{storm.back} of {machines} in service at its end",
            limit="0, 0, 0",
            met=whole and same,
        ),
        Figure(
            what="boot storm: Consul operations for one machine",
            value=f"{ops / machines:.2f} in {commits:.0f} transactions for all",
            beside="3 record writes for each machine; the rest are fences and event chunks",
        ),
        Figure(
            what=f"first contact: {machines} machines without a record, as many requests in service",
            value=f"{(first.ended - first.began) / plain:.2f} x ({first.ended - first.began:.1f} s)",
            beside=f"{first.requests} requests, {first.lost} lost, {first.refused} refused",
        ),
        *waiting,
    ]


def _bare(found: Fleet, crowd: Crowd) -> float:
    with bare(found.folder) as plain:
        crowd.order("meet", host="127.0.0.1", port=plain.port)
        storm = _together(crowd.order("storm", reboot=True, checked=False))
        crowd.order("leave")
    return storm.ended - storm.began


def _together(shares: list[Storm]) -> Storm:
    return Storm(
        min(s.began for s in shares),
        max(s.ended for s in shares),
        sum(s.requests for s in shares),
        sum(s.refused for s in shares),
        sum(s.lost for s in shares),
        sum(s.back for s in shares),
    )


def _idle(found: Fleet, leader: Daemon, crowd: Crowd, machines: int, seconds: float) -> list[Figure]:
    crowd.order("idle")
    wait_for(lambda: leader.metrics()["rebootd_waiting_agents"] >= machines, "all agents to wait", 60)
    pause(2.0)  # the last tick of the storm has ended by then
    writes, commits, cpu = found.writes(), leader.metrics()["rebootd_commit_seconds_count"], leader.process.cpu()
    pause(seconds)
    used = (leader.process.cpu() - cpu) / seconds
    asked = leader.metrics()
    committed = int(asked["rebootd_commit_seconds_count"] - commits)
    now = found.writes()
    return [
        Figure(
            what=f"memory of the leader with {machines} waiting agents, most since its start (the storm included)",
            value=mb(leader.process.memory("VmHWM")),
            beside=f"{mb(leader.process.memory())} at the end; {asked['rebootd_waiting_agents']:.0f} agents waiting",
            limit=f"below {mb(MEMORY)}",
            met=leader.process.memory("VmHWM") < MEMORY,
        ),
        Figure(
            what=f"CPU of the leader with {machines} waiting agents",
            value=f"{100 * used:.0f} % of a core",
            beside=f"over {seconds:.0f} s, each agent reporting once a minute",
        ),
        Figure(
            what=f"Consul writes in {seconds:.0f} s of {machines} idle agents",
            value=f"{committed} transactions",
            beside="no key under the prefix and no session changed" if now == writes else f"changed: {writes} -> {now}",
            limit="0",
            met=committed == 0 and now == writes,
        ),
    ]

"""``decide()`` on 10,000 machines in 40 racks that all wait, with every reason, and nothing cached."""

from __future__ import annotations

import gc
import statistics
import time
from typing import TYPE_CHECKING

from msgspec.structs import replace

from rebootd.cli.collector import spare
from rebootd.core import selectors, windows
from rebootd.core.amounts import Amount
from rebootd.core.decide import decide
from rebootd.core.gates import Firing, Instances, Reading, Samples, Servers, Value
from rebootd.core.model import Cycle, Hold, Machine, Observation, RackLock, Snapshot, State
from rebootd.core.policy import Limit, Policy, parse_policy
from rebootd.core.selectors import parse_selector
from rebootd.core.windows import CalendarWindow
from rebootd.core.wire import Report
from tests.bench.figures import Figure, ms, percentile

if TYPE_CHECKING:
    from collections.abc import Callable

MACHINES = 10_000
RACKS = 40
TIMES = 15
GOAL = 0.040
GOAL_OF_ALL = 0.060
"""Seconds; the second one is for all gates and limits together."""
NOW = 1_800_000_000.0
ROLES = ("web", "db", "cache", "queue", "batch")
ALL = "all gates and limits"
SELECTORS = ("role=web", "role=db,site=a", "role in (cache,queue)", "kernel=6.1*", "site!=b")
EVERYTHING = """
    racks: {open: 9, unavailable: 50%}
    windows: {required: true, calendar: [{name: nights, start: 0 2 * * *, duration: 4h, timezone: Europe/Berlin}]}
    failures: {breaker: {failures: 6}}
    limits:
      - {name: web, selector: role=web, max: 1}
      - {name: db, selector: "role=db,site=a", max: 1}
      - {name: behind, selector: "role in (cache,queue)", max: 1}
      - {name: kernel, selector: kernel=6.1*, max: 1}
      - {name: site, selector: site!=b, max: 1}
    waves: [{machines: role=batch, soak: 1h}, {size: 10%, soak: 1h}, {size: 100%}]
    quorums:
      - {name: brokers, selector: "role=queue,site=a"}
      - {name: lockers, selector: "name in (m00001,m00251,m00501)"}
    gates:
      - {name: shop, kind: consul-service, service: shop, minimum: 90%}
      - {name: servers, kind: consul-quorum}
      - {name: load, kind: prometheus, address: "http://prom:9090", query: load, holds_when: "< 1", covers: role=db}
      - {name: alerts, kind: alertmanager, address: "http://alerts:9093", matchers: 'severity="page"'}
"""


def fleet(policy: Policy, *, away: int = 0, locked: bool = False, failed: bool = False) -> Snapshot:
    """New records for every machine. The last ``away`` of each rack are held (``failed``: quarantined instead).

    ``locked``: others hold a rack.
    """
    machines, observed, holds = {}, {}, {}
    each, gone = MACHINES // RACKS, State.QUARANTINED if failed else State.HELD
    for n in range(MACHINES):
        name, rack, place = f"m{n:05d}", f"r{n // each:02d}", n % each
        labels = {"role": ROLES[n % len(ROLES)], "site": "ab"[n % 2]}
        m = Machine(
            name=name,
            rack=rack,
            state=gone if place >= each - away else State.IN_SERVICE,
            since=NOW - 1e5,
            boot_id=f"{name}-b1",
            machine_id=f"id-{name}",
            kernel=f"6.1.{n % 3}",
            labels=labels,
        )
        machines[name] = m
        if m.state is State.HELD:
            holds[name] = Hold(kind="machine", name=name, since=NOW - 1e5)
        said = Report(
            name=name,
            machine_id=m.machine_id,
            boot_id=m.boot_id,
            rack=rack,
            kernel=f"6.1.{n % 3}",
            labels=dict(labels),
            in_service=True,
        )
        observed[name] = Observation(report=said, at=NOW - n % 60)
    return Snapshot(
        now=NOW,
        epoch=3,
        policy=policy,
        machines=machines,
        observed=observed,
        cycles={"kernel": Cycle(id="kernel", selector="*", created=NOW - 600, target="kernel=6.12")},
        machine_holds=holds,
        rack_holds={},
        racks={"r99": RackLock(holder="other", session="s", node="n")} if locked else {},
        leading_since=NOW - 3600,
    )


def closed() -> Snapshot:
    """No window is open."""
    nights = CalendarWindow("nights", "0 2 * * *", 14400, "Europe/Berlin")
    return fleet(Policy(windows=(nights,), window_required=True))


def limited() -> Snapshot:
    """Five limits by selector, all of them reached."""
    limits = tuple(Limit(f"limit-{i}", parse_selector(text), Amount(1)) for i, text in enumerate(SELECTORS))
    return fleet(Policy(open_racks=9, rack_unavailable=Amount(50, True), limits=limits), away=5)


def full() -> Snapshot:
    """Every rack has as many unavailable machines as it may have, and no rack may be opened."""
    return fleet(Policy(), away=1, locked=True)


def everything() -> Snapshot:
    """Waves, windows, gates, quorum groups, limits and breakers at once, and every one of them blocks somebody."""
    policy = parse_policy(EVERYTHING)
    snapshot = fleet(policy, away=5, failed=True)
    web = [m.name for m in snapshot.machines.values() if m.labels["role"] == "web"]
    values: tuple[Value, ...] = (
        Instances(passing=dict.fromkeys(web[: len(web) // 2], 1), total=len(web), nodes=frozenset(web)),
        Servers(members={"m00001": "", "m00251": "raft says that it is behind", "m00501": ""}, tolerance=0),
        Samples((("db", 3.0),)),
        Firing(("page: disk is full",)),
    )
    readings = {g.name: Reading(gate=g, at=NOW - 1, value=v) for g, v in zip(policy.gates, values, strict=True)}
    return replace(snapshot, readings=readings)


SCENES: dict[str, Callable[[], Snapshot]] = {
    "window closed": closed,
    "5 limits by selector": limited,
    "racks full": full,
    ALL: everything,
}


def measure(scene: Callable[[], Snapshot], times: int = TIMES) -> list[float]:
    """Seconds of CPU (it does nothing but compute) of each decision, on records that were never looked at before."""
    took = []
    for _ in range(times):
        snapshot = scene()
        selectors._parse.cache_clear()
        windows._spells.cache_clear()
        gc.collect()
        begin = time.thread_time()
        decision = decide(snapshot)
        took.append(time.thread_time() - begin)
        waiting = sum(1 for m in snapshot.machines.values() if m.state is State.IN_SERVICE)
        told = sum(1 for name, why in decision.reasons.items() if why and why[0].kind not in {"hold", "quarantine"})
        if decision.steps or told != waiting:
            raise AssertionError(
                f"{len(decision.steps)} steps, {told} of {waiting} told why: not what is to be measured"
            )
    return took


def run() -> list[Figure]:
    """One figure for each scene: the median beside the quickest and the slowest, in CPU time of this process."""
    spare()  # as the daemon does
    figures = []
    for what, scene in SCENES.items():
        took, goal = measure(scene), GOAL_OF_ALL if what == ALL else GOAL
        median = statistics.median(took)
        figures.append(
            Figure(
                what=f"decide() on {MACHINES:,} machines in {RACKS} racks, all waiting: {what}",
                value=ms(median),
                beside=f"quickest and slowest of {len(took)}: {ms(min(took))}, {ms(percentile(took, 1.0))}",
                limit=ms(goal),
                met=median <= goal,
            )
        )
    return figures

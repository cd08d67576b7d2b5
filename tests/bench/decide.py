"""``decide()`` on 10,000 machines in 40 racks that all wait, with every reason, and nothing cached."""

from __future__ import annotations

import gc
import statistics
import time
from typing import TYPE_CHECKING

from rebootd.core import selectors, windows
from rebootd.core.amounts import Amount
from rebootd.core.decide import decide
from rebootd.core.model import Cycle, Hold, Machine, Observation, RackLock, Snapshot, State
from rebootd.core.policy import Limit, Policy
from rebootd.core.selectors import parse_selector
from rebootd.core.windows import CalendarWindow
from rebootd.core.wire import Report
from tests.bench.figures import Figure, ms, percentile

if TYPE_CHECKING:
    from collections.abc import Callable

MACHINES = 10_000
RACKS = 40
TIMES = 9
GOAL = 0.040
"""Seconds."""
NOW = 1_800_000_000.0
ROLES = ("web", "db", "cache", "queue", "batch")
SELECTORS = ("role=web", "role=db,site=a", "role in (cache,queue)", "kernel=6.1*", "site!=b")


def fleet(policy: Policy, *, away: int = 0, locked: bool = False) -> Snapshot:
    """New records for every machine. The last ``away`` of each rack are held; ``locked``: others hold a rack."""
    machines, observed, holds = {}, {}, {}
    each = MACHINES // RACKS
    for n in range(MACHINES):
        name, rack, place = f"m{n:05d}", f"r{n // each:02d}", n % each
        labels = {"role": ROLES[n % len(ROLES)], "site": "ab"[n % 2]}
        m = Machine(
            name=name,
            rack=rack,
            state=State.HELD if place >= each - away else State.IN_SERVICE,
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


SCENES: dict[str, Callable[[], Snapshot]] = {
    "window closed": closed,
    "5 limits by selector": limited,
    "racks full": full,
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
        told = sum(1 for name, why in decision.reasons.items() if why and why[0].kind != "hold")
        if decision.steps or told != waiting:
            raise AssertionError(
                f"{len(decision.steps)} steps, {told} of {waiting} told why: not what is to be measured"
            )
    return took


def run() -> list[Figure]:
    """One figure for each scene: the median beside the slowest."""
    figures = []
    for what, scene in SCENES.items():
        took = measure(scene)
        median = statistics.median(took)
        figures.append(
            Figure(
                what=f"decide() on {MACHINES:,} machines in {RACKS} racks, all waiting: {what}",
                value=ms(median),
                beside=f"slowest of {len(took)}: {ms(percentile(took, 1.0))}",
                limit=ms(GOAL),
                met=median <= GOAL,
            )
        )
    return figures

"""The forecast of a large cycle, taken in this process alone."""

from __future__ import annotations

import time

from rebootd.core.decide import decide
from rebootd.core.forecast import run as forecast
from rebootd.core.model import Cycle, Machine, Observation, Snapshot, State
from rebootd.core.policy import Policy, parse_policy
from rebootd.core.wire import Report
from tests.bench.figures import Figure, ms

NOW = 1_800_000_000.0
RACKS = 40
GOAL = 5.0
"""Seconds."""
POLICIES = {
    "one machine after another": "{}",
    "2 racks, 10% of each, limits, waves, nightly windows": """
        racks: {open: 2, unavailable: 10%}
        limits: [{name: db, selector: role=db, max: 2}]
        windows: {required: true, calendar: [{name: night, start: 0 22 * * *, duration: 6h}]}
        waves: [{size: 5, soak: 30m}, {size: 10%, soak: 1h}, {size: 100%}]
    """,
}


def world(machines: int, policy: Policy) -> Snapshot:
    """A fleet in service that one cycle waits for."""
    records = [
        Machine(
            name=f"m{n:05d}",
            rack=f"r{n % RACKS:02d}",
            state=State.IN_SERVICE,
            since=NOW - 600,
            boot_id=f"boot-{n}",
            machine_id=f"id-{n}",
            labels={"role": "db" if n % 10 == 0 else "web"},
        )
        for n in range(machines)
    ]
    return Snapshot(
        now=NOW,
        epoch=1,
        policy=policy,
        machines={m.name: m for m in records},
        observed={
            m.name: Observation(
                Report(name=m.name, machine_id=m.machine_id, boot_id=m.boot_id, rack=m.rack, labels=m.labels), NOW
            )
            for m in records
        },
        cycles={"k1": Cycle(id="k1", selector="*", created=NOW)},
        machine_holds={},
        rack_holds={},
        leading_since=NOW - 3600,
    )


def run(machines: int = 10_000) -> list[Figure]:
    """How long the forecast of a cycle over so many machines takes, under an easy and a busy policy."""
    figures = []
    for name, text in POLICIES.items():
        snapshot = world(machines, parse_policy(text))
        began = time.perf_counter()
        decide(snapshot)
        once = time.perf_counter() - began
        began = time.perf_counter()
        found = forecast(snapshot, "k1")
        took = time.perf_counter() - began
        if len(found.planned) != machines or found.never:
            raise RuntimeError(f"only {len(found.planned)} of {machines} machines were planned")
        windows = f", {found.windows} windows" if found.windows else ""
        figures.append(
            Figure(
                what=f"forecast of a cycle of {machines} machines in {RACKS} racks ({name})",
                value=f"{took:.2f} s",
                beside=f"{((found.last or NOW) - NOW) / 86400:.1f} days{windows}; one decision takes {ms(once)}",
                limit=f"{GOAL:.0f} s",
                met=took <= GOAL,
            )
        )
    return figures

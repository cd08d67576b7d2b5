"""A small fleet that is left alone for long: a standing cycle, a window each night, seldom a fault.

What goes on all the time in the real code (proofs of leadership, agents that call again, watches that come back with
nothing) is most of what such a run costs. ``tempo`` is by how much these chores are slowed down; 1.0 is as they are.
"""

from __future__ import annotations

import random
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING
from unittest import mock

import yaml

from rebootd.agent import outmark
from rebootd.consul.leadership import Tuning
from rebootd.coordinator import audit, follow, forecasts, peers
from rebootd.core import directives
from tests.sim.features import STANDING, Features
from tests.sim.fleets import FLEET, whole_fleet
from tests.sim.plan import Fault, Plan, make_plan

if TYPE_CHECKING:
    from collections.abc import Iterator

MONTH = "month"
DAY = 86400.0
NEEDS_EVERY = 5 * DAY
"""Seconds after which, on average, a machine needs a reboot."""
TROUBLE_EVERY = DAY / 2
"""Seconds between two faults, on average."""
TROUBLE = (
    ("kill-leader", ""),
    ("stop-leader", ""),
    ("hand-over", ""),
    ("power-cut", ""),
    ("kill-agent", ""),
    ("cut-machine", ""),
    ("store-away", ""),
    ("hold", ""),
    ("halt", ""),
    ("hook-fails", ""),
)
CHORES = (
    (audit, "LOOK_EVERY"),
    (follow, "WATCH_WAIT"),
    (follow, "CATALOG_WAIT"),
    (forecasts, "LOOK"),
    (peers, "LOOK"),
    (outmark, "_REASSERT"),
    (directives, "IDLE_WAIT"),
)
"""Pauses of the real code between two looks at what has not changed."""


def month_plan(seed: int, *, days: float = 30.0, tempo: float = 30.0) -> Plan:
    """Six machines in three racks and three daemons; with ``tempo`` times the pauses."""
    rng = random.Random(f"month {seed}")
    racks = {f"r{r}": [f"m{r}{chr(97 + i)}" for i in range(2)] for r in range(1, 4)}
    names = [name for members in racks.values() for name in members]
    policy = {
        "racks": {"open": 1, "unavailable": "1"},
        "settle": "60s",
        "unreachable_after": f"{150 * tempo:.0f}s",
        "failure_budget": 100,
        "standing": {"enabled": True, "id": STANDING, "selector": "*", "every": "2d"},
        "windows": {
            "required": True,
            "calendar": [{"name": "nightly", "start": "0 2 * * *", "duration": "3h", "timezone": "UTC"}],
        },
    }
    end = days * DAY
    needs = [name for name in names for _ in range(int(end / NEEDS_EVERY))]
    faults = [Fault(rng.uniform(600.0, end), "reboot-required", name) for name in needs]
    for _ in range(int(end / TROUBLE_EVERY)):
        kind, target = rng.choice(TROUBLE)
        faults.append(Fault(rng.uniform(600.0, end), kind, target or rng.choice(names), rng.uniform(5.0, 600.0)))
    return Plan(
        seed=seed,
        profile=MONTH,
        racks=racks,
        labels={name: {"role": "web"} for name in names},
        daemons=["ctl1", "ctl2", "ctl3"],
        policy=yaml.safe_dump(policy, sort_keys=False),
        faults_for=end,
        faults=sorted(faults, key=lambda f: (f.at, f.kind, f.target)),
        tick=3.0 * tempo,
        tuning=Tuning(
            ttl=10.0 * tempo,
            proof_every=2.0 * tempo,
            proof_timeout=1.5 * tempo,
            deadline=8.0 * tempo,
            renew_every=5.0 * tempo,
            watch_wait=15.0 * tempo,
        ),
        settle_for=2 * DAY,
        features=Features(standing=True),
        tempo=tempo,
    )


def plan_of(seed: int, profile: str = "") -> Plan:
    """The plan of a seed; a month and a whole fleet are never drawn, only asked for."""
    if profile == FLEET:
        return whole_fleet(seed)
    return month_plan(seed) if profile == MONTH else make_plan(seed, profile=profile)


@contextmanager
def paced(plan: Plan) -> Iterator[None]:
    """The chores of the real code at the plan's tempo."""
    with ExitStack() as stack:
        if plan.tempo != 1.0:
            for where, name in CHORES:
                stack.enter_context(mock.patch.object(where, name, getattr(where, name) * plan.tempo))
        yield

"""Whole fleets: 30 to 120 machines, cycle after cycle, several racks open, policy, features and faults by the seed.

Most of such a run is spent in reboots, so that a million of them are a matter of hours. Faults come in bursts: as many
at once as no other profile has, and between them time in which coming back may not be delayed by anything (S5).
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import yaml

from tests.sim.features import draw_features, equip, kinds_of
from tests.sim.plan import AMBUSHES, HOSTS, NETWORK, PROCESSES, RARE, STORE, Fault, Plan, draw, draw_tuning

if TYPE_CHECKING:
    from collections.abc import Iterator

FLEET = "fleet"
BLOCK = 900.0
"""Seconds from one burst of faults to the next."""
BURST = 400.0
EVERY = 30.0
"""Seconds for each fault, taken over the whole time."""
LONGEST = 60.0
"""Seconds that a fault lasts at most: what stands still for long reboots nobody."""
CARE_EVERY = 300.0
"""Seconds after which people put right what they can: a fleet with a hundred quarantined machines reboots nobody."""
AGAIN = 20.0
"""Seconds after which somebody looks whether it is time for the next cycle."""
PEOPLE = ("halt", "raw-halt", "hold", "hold-rack", "pause", "rack-lock", "end-lock-session", "policy", "edit-record")
KINDS = (*NETWORK, *STORE, *PROCESSES, *HOSTS, *AMBUSHES, *RARE, *PEOPLE, "maintenance", "by-hand", "clear")


def whole_fleet(seed: int) -> Plan:
    """The plan of a seed; the same at every call."""
    rng = random.Random(f"fleet {seed}")
    racks = {}
    left, number = rng.randint(30, 120), 0
    while left > 0:
        number += 1
        size = min(left, rng.randint(4, 20))
        racks[f"r{number}"] = [f"m{number}x{i}" for i in range(size)]
        left -= size
    names = [name for members in racks.values() for name in members]
    labels = {name: {"role": rng.choice(["web"] * 19 + ["db"])} for name in names}
    for rack in list(racks)[:3]:
        labels[racks[rack][0]]["role"] = "consul"
    coarse = rng.choice([1.0, 2.0, 5.0])
    plan = Plan(
        seed=seed,
        profile=FLEET,
        racks=racks,
        labels=labels,
        daemons=rng.sample(names, 3) if rng.random() < 0.6 else ["ctl1", "ctl2", "ctl3"],
        policy="",
        faults_for=rng.choice([2, 3, 4]) * BLOCK,
        boot_seconds=rng.choice([(2.0, 5.0), (2.0, 10.0), (10.0, 40.0)]),
        hook_seconds=rng.choice([0.1, 0.5, 2.0]),
        latency=rng.choice([0.0005, 0.005, 0.05]),
        store_latency=rng.choice([0.001, 0.005, 0.03]),
        tick=rng.choice([2.0, 5.0, 10.0]),
        tuning=draw_tuning(rng, coarse),
        hang_seconds=rng.choice([60.0, 400.0]),
        settle_for=24 * 3600.0,
        features=replace(draw_features(seed, FLEET), forecast=False),
    )
    policy = _policy(rng, len(racks))
    equip(plan, policy)
    plan.policy = yaml.safe_dump(policy, sort_keys=False)
    plan.faults = sorted(_faults(rng, plan), key=lambda f: (f.at, f.kind, f.target))
    return plan


def _policy(rng: random.Random, racks: int) -> dict[str, Any]:
    policy: dict[str, Any] = {
        "racks": {
            "open": min(racks - 1, rng.choice([2, 2, 3, 4])),
            "unavailable": rng.choice(["25%", "50%", "50%", "100%"]),
        },
        "deadlines": {
            **{state: rng.choice(["2m", "5m"]) for state in ("draining", "rebooting", "verifying", "enabling")},
            "drained": rng.choice(["2m", "5m"]),
        },
        "soak": rng.choice(["0s", "0s", "5s"]),
        "permit": {"valid": rng.choice(["10s", "30s", "60s"])},
        "settle": rng.choice(["0s", "20s"]),
        "failure_budget": 1000,
    }
    limits: list[dict[str, Any]] = []
    if rng.random() < 0.5:
        limits.append({"name": "quorum", "selector": "role=consul", "max": 1})
    if rng.random() < 0.5:
        limits.append({"name": "web", "selector": "role=web", "max": rng.choice(["10%", "25%"])})
    if limits:
        policy["limits"] = limits
    if rng.random() < 0.2:
        hourly = {"name": "hourly", "start": "0 * * * *", "duration": "50m", "timezone": "UTC"}
        policy["windows"] = {"required": True, "calendar": [hourly]}
    return policy


def _faults(rng: random.Random, plan: Plan) -> Iterator[Fault]:
    kinds = KINDS + kinds_of(plan.features)
    for block in range(int(plan.faults_for / BLOCK)):
        for _ in range(int(BLOCK / EVERY)):
            fault = draw(rng, plan, rng.choice(kinds))
            at = round(block * BLOCK + rng.uniform(20.0, BURST), 3)
            yield replace(fault, at=at, seconds=min(fault.seconds, LONGEST))
    for number in range(1, int(plan.faults_for / AGAIN)):
        yield Fault(AGAIN * number, "again")
    for number in range(1, int(plan.faults_for / CARE_EVERY)):
        yield Fault(CARE_EVERY * number, "care")

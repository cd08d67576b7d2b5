"""What a seed has beside a plain fleet: gates, controllers, waves, a standing cycle, quorum groups, forecasts.

All of it is drawn from a source of chance of its own, so that the fleet and the faults of a seed stay what they are.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.sim.plan import Fault, Plan

PROMETHEUS = "http://prometheus.test:9090"
ALERTS = "http://alerts.test:9093"
NOMAD = "http://nomad.test:4646"
CONTROLLERS = "https://{name}.bmc.test"
STANDING = "standing"
SERVERS = 3
"""Servers that a quorum needs to lose one of them; fewer get no gate, or the fleet could never be done."""


@dataclass(frozen=True)
class Features:
    """``gates`` are kinds of gates. ``sight`` is whether leaders see Consul's node checks and gates at all."""

    sight: bool = False
    gates: tuple[str, ...] = ()
    power: bool = False
    credentials: bool = True
    waves: bool = False
    standing: bool = False
    quorums: bool = False
    forecast: bool = False


def draw_features(seed: int, profile: str) -> Features:
    """The features of a seed; each profile of their own kind has them for sure."""
    rng = random.Random(f"features {seed}")
    sight = rng.random() < 0.5 or profile in {"gates", "pace"}
    some = rng.sample(GATES, rng.choice([1, 1, 2, 3]))
    gates = tuple(some) if sight and (rng.random() < 0.5 or profile == "gates") else ()
    return Features(
        sight=sight,
        gates=gates,
        power=rng.random() < 0.3 or profile == "power",
        credentials=rng.random() < 0.95 or profile == "power",
        waves=rng.random() < (0.7 if profile == "pace" else 0.25),
        standing=rng.random() < (0.7 if profile == "pace" else 0.2),
        quorums=rng.random() < (0.7 if profile in {"pace", "gates"} else 0.35),
        forecast=rng.random() < (0.4 if profile == "pace" else 0.1),
    )


GATES = ("prometheus", "alertmanager", "consul-service", "consul-quorum", "nomad-quorum")


def equip(plan: Plan, policy: dict[str, Any]) -> None:
    """Writes the plan's features into ``policy``, and what they need into the plan."""
    features, rng = plan.features, random.Random(f"equip {plan.seed}")
    names = [n for members in plan.racks.values() for n in members]
    roles = {role: [n for n in names if plan.labels[n]["role"] == role] for role in ("web", "db", "consul")}
    plan.nomad = rng.sample(names, SERVERS)
    gates = [made for kind in features.gates if (made := _gate(rng, kind, roles))]
    if gates:
        policy["gates"] = gates
    if features.quorums:
        groups = [
            {"name": role, "selector": f"role={role}", "allow_outage": len(roles[role]) < SERVERS}
            for role in ("consul", "db")
            if roles[role]
        ]
        policy["quorums"] = groups
    if features.waves:
        policy["waves"] = rng.choice(WAVES)
        policy["racks"]["order"] = rng.choice(["name", "smallest-first", list(plan.racks)[1:][::-1]])
    if features.standing:
        every = rng.choice(["10m", "20m", "2h"])
        policy["standing"] = {"enabled": True, "id": STANDING, "selector": "*", "every": every}
        plan.required = {n for n in names if rng.random() < 0.4}
    if features.power:
        policy["failures"] = {"power": _power(rng)}
        for state in ("rebooting", "verifying"):
            policy["deadlines"][state] = rng.choice(["2m", "3m"])
    if "windows" in policy:
        # With a window each hour, a long cycle takes its time.
        plan.settle_for = 24 * 3600.0
    if plan.profile == "power":
        policy["racks"]["unavailable"] = rng.choice(["2", "100%"])
        plan.faults_for = max(plan.faults_for, 1500.0)


WAVES: tuple[list[dict[str, Any]], ...] = (
    [
        {"name": "canary", "machines": "role in (db, consul)", "soak": "60s"},
        {"name": "half", "size": "50%", "soak": "30s"},
        {"name": "rest", "size": "100%"},
    ],
    [{"name": "first", "racks": ["r1"], "soak": "45s"}, {"name": "rest", "machines": "*"}],
    [{"name": "one", "size": 1, "soak": "2m"}, {"name": "two", "size": 2}, {"name": "rest", "size": "100%"}],
)


def _gate(rng: random.Random, kind: str, roles: dict[str, list[str]]) -> dict[str, Any] | None:
    gate: dict[str, Any] = {"name": kind, "kind": kind, "max_age": rng.choice(["15s", "30s", "60s"])}
    covers = rng.choice(["", "", "role=web"])
    if covers:
        gate["covers"] = covers
    if kind == "prometheus":
        gate |= {"address": PROMETHEUS, "query": "errors", "holds_when": "< 5"}
    elif kind == "alertmanager":
        gate |= {"address": ALERTS, "matchers": 'severity="page"'}
    elif kind == "consul-service":
        gate.pop("covers", None)
        if len(roles["web"]) < 2:
            return None
        gate |= {"service": "web", "minimum": rng.choice([len(roles["web"]) - 1, 1, "50%"])}
    elif kind == "nomad-quorum":
        gate |= {"address": NOMAD}
    elif len(roles["consul"]) < SERVERS:
        return None
    return gate


def _power(rng: random.Random) -> dict[str, Any]:
    return {
        "address": CONTROLLERS,
        "after": rng.choice(["5s", "60s"]),
        "at_once": rng.choice([1, 1, 2]),
        "per_hour": rng.choice([1, 2, 6, 6]),
    }


GATE_FAULTS = (
    "gate-blocks",
    "gate-blocks",
    "gate-flaps",
    "gate-away",
    "gate-hangs",
    "gate-slow",
    "gate-odd",
    "service-thin",
    "sight-away",
    "node-check",
    "ambush-gate",
    "emergency",
)
POWER_FAULTS = (
    "stuck",
    "stuck",
    "all-stuck",
    "controller-away",
    "controller-late",
    "controller-deaf",
    "controller-silent",
    "cut-long",
    "ambush-power",
    "ambush-power",
    "ambush-power",
)
PACE_FAULTS = (
    "reboot-required",
    "reboot-required",
    "detection-breaks",
    "still-required",
    "emergency",
    "start",
    "small-group",
    "member-down",
)
LEAP_FAULTS = ("clock-leap", "clock-leap", "clock-leap", "start", "hold", "post-boot-fails")
RECORD_FAULTS = ("spoil", "spoil", "spoil", "edit-stamps")
ODD_FAULTS = (*GATE_FAULTS, *POWER_FAULTS, *PACE_FAULTS, *LEAP_FAULTS, *RECORD_FAULTS)


def kinds_of(features: Features) -> tuple[str, ...]:
    """The faults that go with a seed's features; anybody's clock may leap, and any record be spoilt."""
    kinds: tuple[str, ...] = ("spoil", "clock-leap", "edit-stamps", "emergency")
    if features.sight:
        kinds += GATE_FAULTS if features.gates else ("sight-away", "node-check")
    if features.power:
        kinds += POWER_FAULTS
    if features.waves or features.standing or features.quorums:
        kinds += PACE_FAULTS
    return kinds


def more_faults(plan: Plan) -> list[Fault]:
    """What goes wrong with the features of a seed whose profile is about something else."""
    from tests.sim.plan import draw

    if plan.profile == "locks":
        # What foreign locks may not delay shows only where nothing else may have.
        return []
    rng = random.Random(f"more faults {plan.seed}")
    kinds = kinds_of(plan.features)
    return [draw(rng, plan, rng.choice(kinds)) for _ in range(rng.choice([0, 0, 2, 5]))]

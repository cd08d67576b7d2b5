"""What a seed stands for: the fleet, its policy, the times of everything, and an explicit list of faults.

All of it is drawn up front, so that a run can be replayed with some of its faults left out.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import yaml

from rebootd.consul.leadership import Tuning
from tests.sim import features as extra
from tests.sim.ambushes import LAG
from tests.sim.features import Features, draw_features, equip, more_faults
from tests.sim.lock_plan import FLEETLOCK, LOCK_FAULTS, draw_clients

START = 1_800_000_000.0
"""The true time, seconds since the Unix epoch, at which every run begins (a Friday morning, UTC)."""
PROFILES = (
    "quiet", "operators", "ambushes", "clocks", "locks", "network", "store", "processes", "hosts", "everything",
    "gates", "power", "pace", "leaps", "records",
)  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong, or that a person does, at ``at`` seconds, on ``target``, for ``seconds``."""

    at: float
    kind: str
    target: str = ""
    seconds: float = 0.0
    value: float = 0.0

    def __str__(self) -> str:
        parts = [f"{self.at:8.1f} s  {self.kind}"]
        parts += [self.target] if self.target else []
        parts += [f"for {self.seconds:.1f} s"] if self.seconds else []
        parts += [f"({self.value:.3g})"] if self.value else []
        return " ".join(parts)


@dataclass
class Plan:
    """The whole seed. Times are seconds."""

    seed: int
    profile: str
    racks: dict[str, list[str]]
    labels: dict[str, dict[str, str]]
    daemons: list[str]
    """The box that each daemon runs on: a machine's name, or a name that is no machine."""
    policy: str
    faults_for: float
    faults: list[Fault] = field(default_factory=list)
    cycle_at: float = 20.0
    target: str = ""
    new_kernel: str = "6.12.9"
    failure_budget: int = 100
    boot_seconds: tuple[float, float] = (5.0, 40.0)
    hook_seconds: float = 2.0
    hang_seconds: float = 400.0
    reboot_timeout: float = 120.0
    latency: float = 0.002
    store_latency: float = 0.002
    tick: float = 2.0
    tuning: Tuning = field(default_factory=Tuning)
    settle_for: float = 4 * 3600.0
    """How long the liveness phase may last."""
    features: Features = field(default_factory=Features)
    nomad: list[str] = field(default_factory=list)
    """Machines that are Nomad servers."""
    tempo: float = 1.0
    """By how much the pauses between looks at what has not changed are stretched (see :mod:`tests.sim.month`)."""
    required: set[str] = field(default_factory=set)
    """Machines that require a reboot from the beginning."""
    lock_clients: dict[str, str] = field(default_factory=dict)
    """Machines with a FleetLock client in place of an agent: what it calls itself."""
    staged: list[tuple[float, str]] = field(default_factory=list)
    """When an update comes to which of them, which then want to reboot."""


def make_plan(seed: int, *, profile: str = "") -> Plan:
    """The plan of a seed; the same at every call."""
    rng = random.Random(f"plan {seed}")
    profile = profile or rng.choice(PROFILES)
    racks: dict[str, list[str]] = {}
    labels: dict[str, dict[str, str]] = {}
    for r in range(rng.randint(2, 4)):
        rack = f"r{r + 1}"
        racks[rack] = [f"m{r + 1}{chr(97 + i)}" for i in range(rng.randint(2, 5))]
        for name in racks[rack]:
            labels[name] = {"role": rng.choice(["web", "web", "web", "db"])}
    if rng.random() < 0.5:
        for rack in list(racks)[:3]:
            labels[racks[rack][0]]["role"] = "consul"
    names = [n for members in racks.values() for n in members]
    count = rng.choice([2, 3, 3])
    on_machines = rng.random() < 0.6
    daemons = rng.sample(names, count) if on_machines else [f"ctl{i + 1}" for i in range(count)]
    coarse = rng.choice([1.0, 2.0, 5.0])
    policy = _policy(rng)
    plan = Plan(
        seed=seed,
        profile=profile,
        racks=racks,
        labels=labels,
        daemons=daemons,
        policy="",
        faults_for=rng.choice([400.0, 900.0, 1800.0]),
        target=rng.choice(["", "kernel=6.12.9"]),
        boot_seconds=rng.choice([(2.0, 10.0), (10.0, 60.0), (60.0, 240.0)]),
        hook_seconds=rng.choice([0.1, 2.0, 10.0]),
        latency=rng.choice([0.0005, 0.005, 0.05]),
        store_latency=rng.choice([0.001, 0.005, 0.03]),
        tick=rng.choice([2.0, 5.0, 10.0]),
        tuning=draw_tuning(rng, coarse),
    )
    plan.features = draw_features(seed, profile)
    equip(plan, policy)
    draw_clients(plan, policy)
    plan.policy = yaml.safe_dump(policy, sort_keys=False)
    plan.faults = draw_faults(plan)
    return plan


def draw_tuning(rng: random.Random, coarse: float) -> Tuning:
    """How daemons hold their leadership; ``coarse`` is by how much proofs are slower than they could be."""
    return Tuning(
        lock_delay=rng.choice([0.0, 1.0]),
        proof_every=1.0 * coarse,
        proof_timeout=0.7 * coarse,
        deadline=4.0 * coarse,
        renew_every=rng.choice([3.0, 5.0]),
        abstain=rng.choice([2.0, 5.0]),
    )


def _policy(rng: random.Random) -> dict[str, Any]:
    policy: dict[str, Any] = {
        "racks": {
            "open": rng.choice([1, 1, 1, 2]),
            "unavailable": rng.choice(["1", "1", "2", "50%", "100%"]),
        },
        "deadlines": {
            **{state: rng.choice(["5m", "10m", "15m"]) for state in ("draining", "rebooting", "verifying", "enabling")},
            "drained": rng.choice(["2m", "5m"]),
        },
        "soak": rng.choice(["0s", "0s", "5s", "60s"]),
        "permit": {"valid": rng.choice(["10s", "30s", "60s"])},
        "settle": rng.choice(["0s", "20s", "60s"]),
        "failure_budget": 100,
    }
    limits: list[dict[str, Any]] = []
    if rng.random() < 0.5:
        limits.append({"name": "quorum", "selector": "role=consul", "max": 1})
    if rng.random() < 0.4:
        limits.append({"name": "web", "selector": "role=web", "max": rng.choice(["1", "2", "25%"])})
    if limits:
        policy["limits"] = limits
    if rng.random() < 0.4:
        # From START on: open for most of each hour.
        hourly = {"name": "hourly", "start": "0 * * * *", "duration": f"{rng.choice([20, 40, 50])}m", "timezone": "UTC"}
        policy["windows"] = {"required": True, "calendar": [hourly]}
    return policy


NETWORK = ("lossy", "slow", "repeats", "cut-agents", "cut-machine", "dns-away")
STORE = (
    "store-away",
    "store-cut",
    "store-late",
    "store-loses",
    "store-twice",
    "store-stale",
    "session-ended",
    "check-flaps",
)
PROCESSES = (
    "kill-daemon",
    "kill-daemon",
    "kill-leader",
    "kill-leader",
    "fuse-leader",
    "fuse-leader",
    "stop-leader",
    "stop-daemon",
    "kill-agent",
    "fuse-agent",
    "stop-agent",
    "cut-write",
    "hand-over",
)
HOSTS = (
    "power-cut",
    "flap",
    "hang",
    "never",
    "same-id",
    "other-rack",
    "disk-full",
    "bad-journal",
    "clock-jump",
    "hook-fails",
    "post-boot-fails",
    "local-consul-away",
    "rack-power",
)
PEOPLE = (
    "halt",
    "halt",
    "raw-halt",
    "hold",
    "hold",
    "hold-rack",
    "pause",
    "cancel",
    "start",
    "start",
    "policy",
    "window-close",
    "clear",
    "rack-lock",
    "rack-lock",
    "unlock",
    "end-lock-session",
    "edit-record",
    "maintenance",
    "by-hand",
)
AMBUSHES = (
    "ambush-halt",
    "ambush-halt",
    "ambush-hold",
    "ambush-cancel",
    "ambush-policy",
    "ambush-lock",
    "ambush-session",
    "ambush-stale",
    "ambush-kill",
    "ambush-kill",
    "ambush-lost",
    "ambush-lost",
    "ambush-late",
    "ambush-boot-id",
    "ambush-freeze",
    "ambush-forget",
    "ambush-answer",
)
"""What happens at the very moment at which a transaction of ours is about to land, or a permit is delivered."""
RARE = ("index-reset",)
KINDS = {
    "quiet": (),
    "operators": PEOPLE,
    "ambushes": (*AMBUSHES, "start", "kill-leader"),
    "network": NETWORK + PEOPLE,
    "store": (*STORE, "kill-leader", "halt", "rack-lock", "hold"),
    "processes": (*PROCESSES, "halt", "rack-lock"),
    "hosts": (*HOSTS, "kill-leader", "halt", "start"),
    "locks": (
        "rack-lock",
        "rack-lock",
        "rack-lock",
        "power-cut",
        "rack-power",
        "end-lock-session",
        "ambush-lock",
        "start",
    ),
    "clocks": ("clock-jump",) * 4 + ("start", "kill-leader"),
    "everything": NETWORK + STORE + PROCESSES + HOSTS + PEOPLE + AMBUSHES + RARE + extra.ODD_FAULTS,
    "gates": (*extra.GATE_FAULTS, "kill-leader", "power-cut", "start", "stop-leader", "store-late", "ambush-kill"),
    "power": (*extra.POWER_FAULTS, "kill-leader", "stop-leader", "hang", "never", "power-cut", "start", "store-late"),
    "pace": (*extra.PACE_FAULTS, "kill-leader", "power-cut", "hook-fails", "hold", "cancel", "pause", "never"),
    "leaps": (*extra.LEAP_FAULTS, "kill-leader", "rack-lock", "hand-over", "power-cut", "window-close", "stuck"),
    FLEETLOCK: LOCK_FAULTS,
    "records": (*extra.RECORD_FAULTS, "edit-record", "kill-leader", "start", "hold", "halt", "ambush-kill"),
}
LONG = (
    "halt", "raw-halt", "hold", "hold-rack", "pause", "rack-lock", "policy", "window-close", "clock-jump", "clock-leap",
    "disk-full",
    "cut-long", "client-away", "gate-blocks", "gate-away", "detection-breaks", "still-required", "spoil", "small-group",
    "controller-away", "controller-late", "controller-deaf", "controller-silent", "member-down",
)  # fmt: skip
NEXT_BOOT = frozenset({"hang", "never", "same-id", "other-rack", "stuck"})
"""What shows when a machine boots next; what waits for its moment is drawn early, while there is still one to come."""
SPOILT = (
    "cycle",
    "window",
    "hold",
    "hold-rack",
    "power",
    "rack-record",
    "durations",
    "policy",
    "halt",
    "machine",
    "machine",
    "machine",
)
"""Whose record an engineer makes unreadable; ``machine`` is one that contradicts itself."""
LEAPS = (60.0, 600.0, 3700.0, 86400.0, 31 * 86400.0, 366 * 86400.0, 3660 * 86400.0)
"""By how much a wall clock leaps, seconds: from a minute to ten years."""


def draw_faults(plan: Plan) -> list[Fault]:
    """The seed's faults, in the order of their times."""
    rng = random.Random(f"faults {plan.seed}")
    kinds = KINDS[plan.profile]
    if not kinds:
        return []
    count = rng.randint(3, 30)
    drawn = [draw(rng, plan, rng.choice(kinds)) for _ in range(count)] + more_faults(plan)
    return sorted(drawn, key=lambda f: (f.at, f.kind, f.target))


ONE_DAEMON = frozenset({"kill-daemon", "stop-daemon", "store-cut", "cut-agents", "check-flaps"})
ONE_MACHINE = frozenset(
    {
        *HOSTS, "cut-machine", "kill-agent", "fuse-agent", "stop-agent", "cut-write", "hold", "clear", "edit-record",
        "maintenance", "by-hand", "stuck", "cut-long", "node-check", "reboot-required", "detection-breaks",
        "still-required", "edit-stamps",
    }
)  # fmt: skip
ONE_RACK = frozenset({"hold-rack", "rack-lock", "unlock", "end-lock-session", "rack-power", "all-stuck"})
SHARES = frozenset({"lossy", "repeats", "slow", "store-late", "store-loses", "store-twice"})


def draw(rng: random.Random, plan: Plan, kind: str) -> Fault:
    """One fault of a kind, at some time of the plan's first phase."""
    early = kind in NEXT_BOOT or kind.startswith("ambush")
    at = round(rng.uniform(15.0, plan.faults_for / (2 if early else 1)), 3)
    seconds = round(rng.choice([rng.uniform(0.5, 8.0), rng.uniform(5.0, 60.0), rng.uniform(60.0, 300.0)]), 2)
    if kind in LONG:
        seconds = round(rng.uniform(5.0, 600.0), 2)
    if kind == "store-stale":
        seconds = min(seconds, LAG)
    return Fault(at, kind, _target(rng, plan, kind), seconds, _value(rng, kind))


def _target(rng: random.Random, plan: Plan, kind: str) -> str:
    names = [n for members in plan.racks.values() for n in members]
    if kind in ONE_DAEMON:
        return f"d{rng.randint(1, len(plan.daemons))}"
    if kind in ONE_RACK:
        return rng.choice(list(plan.racks))
    if kind.startswith("ambush"):
        return rng.choice(["draining", "rebooting", "rebooting", "any"])
    if kind == "clock-jump":
        return rng.choice([rng.choice(names), "leader", "daemons"])
    if kind == "clock-leap":
        return rng.choice([rng.choice(names), "leader", "leader", "daemons", "daemons"])
    if kind.startswith("gate-"):
        return rng.choice(plan.features.gates or ("prometheus",))
    if kind.startswith("controller-"):
        return rng.choice(["all", rng.choice(names)])
    if kind == "spoil":
        return rng.choice(SPOILT)
    if kind not in ONE_MACHINE:
        return ""
    # Whoever is out of service then: faults there hurt most.
    out = rng.random() < 0.5 and kind not in {"clear", "hold"}
    return "out" if out else rng.choice(names)


def _value(rng: random.Random, kind: str) -> float:
    if kind in SHARES:
        return round(rng.choice([0.05, 0.3, 0.8]), 2)
    if kind in {"fuse-leader", "fuse-agent"}:
        return float(rng.randint(1, 60))
    if kind == "clock-jump":
        return round(rng.choice([-1, 1]) * rng.choice([5.0, 25.0, 120.0, 3700.0]), 1)
    if kind == "clock-leap":
        return rng.choice([-1, 1]) * rng.choice(LEAPS)
    if kind in {"gate-odd", "emergency"}:
        return float(rng.randint(0, 5))
    return round(rng.random(), 3) if kind == "spoil" else 0.0

"""Machines that are judged together get what each of them would get alone."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from rebootd.core import roll
from rebootd.core.decide import decide
from rebootd.core.gates import Firing, Instances, Reading, Samples, Servers, Value
from rebootd.core.model import Blocker, Halt, Machine, Snapshot, State
from rebootd.core.policy import parse_policy
from rebootd.core.roll import Roll
from rebootd.core.wire import Tri
from tests.core.worlds import NOW, OTHER, OURS, cycle, hold, machine, seen, snapshot, window

SEEDS = range(60)
CLOSED = "windows: {required: true, calendar: [{name: nights, start: 0 2 * * *, duration: 4h}]}"
OPEN = "windows: {required: true, calendar: [{name: days, start: 0 6 * * *, duration: 2h30m}]}"
LIMITS = """
limits:
  - {name: web, selector: role=web, max: 1}
  - {name: site, selector: "site!=b,kernel=6.1*", max: 30%}
  - {name: first, selector: "name=m0*", max: 2}
  - {name: rack, selector: "rack in (r1,r2)", max: 3}
"""
WAVES = [
    "waves: [{machines: role=db}, {size: 20%, soak: 1h}, {size: 100%}]",
    "waves: [{racks: [r2, r9], soak: 1h}, {machines: kernel=6.2}, {size: 100%}]",
    "waves: [{size: 2}, {size: 100%}]",
    "",
]
QUORUMS = 'quorums: [{name: locks, selector: "role=db,site=a"}, {name: trio, selector: "name in (m01,m07,m13)"}]'
GATES = """
gates:
  - {name: shop, kind: consul-service, service: shop, minimum: 80%}
  - {name: servers, kind: consul-quorum}
  - {name: load, kind: prometheus, address: "http://prom:9090", query: load, holds_when: "< 1", covers: site=b}
  - {name: alerts, kind: alertmanager, address: "http://alerts:9093", matchers: 'severity="page"'}
"""
BREAKER = "failures: {breaker: {failures: 2, labels: [kernel, role, rack]}}"
STANDING = "standing: {enabled: true, selector: site=a, every: 1h}"


def some_world(rng: random.Random) -> Snapshot:
    """A fleet of which most machines are alike, some are not, and much is in the way of all."""
    parts = [rng.choice([CLOSED, OPEN, ""]), rng.choice([LIMITS, ""]), rng.choice(WAVES), rng.choice([QUORUMS, ""])]
    parts += [rng.choice([GATES, ""]), rng.choice([BREAKER, ""]), rng.choice([STANDING, ""])]
    parts.append(f"racks: {{open: {rng.choice([1, 3])}, unavailable: {rng.choice(['1', '50%'])}}}")
    policy = parse_policy("\n".join(part for part in parts if part))
    machines = [some_machine(rng, n) for n in range(36)]
    names = [m.name for m in machines]
    facts: dict[str, Any] = {}
    if rng.random() < 0.2:
        facts["halt"] = Halt(reason="drill", since=NOW - 5)
    if rng.random() < 0.4:
        facts["failing"] = {rng.choice(names): "disk full"}
    if rng.random() < 0.2:
        facts["conflicts"] = {rng.choice(names): "two machine-ids"}
    values: tuple[Value, ...] = (
        Instances(passing=dict.fromkeys(names[::3], 1) | {names[3]: 2}, total=14, nodes=frozenset(names[::3])),
        Servers(members=dict.fromkeys(names[1:4], rng.choice(["", "is behind"])), tolerance=rng.choice([0, 1])),
        Samples((("db", rng.choice([0.5, 3.0])),)),
        Firing(rng.choice([(), ("page: disk is full",)])),
    )
    read = zip(policy.gates, values, strict=False)
    facts["readings"] = {g.name: Reading(gate=g, at=NOW - 1, value=v) for g, v in read if rng.random() < 0.9}
    if rng.random() < 0.3:
        facts["windows"] = (window(NOW - 60, NOW + rng.choice([120.0, 3600.0])),)
    cycles = [cycle("k1", selector=rng.choice(["*", "role!=db", "site=a"]), target=rng.choice(["", "kernel=6.2"]))]
    cycles += [cycle("k2", created=NOW - 60, emergency=True, skip_gates=("shop",))] if rng.random() < 0.3 else []
    cycles += [cycle("k3", created=NOW - 90, waves=False, selector="site=b")] if rng.random() < 0.3 else []
    cycles += [cycle("standing", standing=True, selector="site=a", waves=False)] if policy.standing.enabled else []
    holds = [hold("machine", rng.choice(names))] if rng.random() < 0.5 else []
    holds += [hold("rack", f"r{rng.randrange(4)}")] if rng.random() < 0.3 else []
    return snapshot(
        *machines,
        policy=policy,
        cycles=cycles,
        holds=holds,
        silent=rng.sample(names, rng.choice([0, 2])),
        observed={n: seen(m, at=NOW - 500) for n, m in zip(names, machines, strict=True) if rng.random() < 0.03},
        racks={"r0": OURS, "r3": OTHER} if rng.random() < 0.4 else {},
        leader_node=rng.choice(names),
        **facts,
    )


def some_machine(rng: random.Random, n: int) -> Machine:
    facts: dict[str, Any] = {
        "labels": {"role": rng.choice(["web", "db", "cache"]), "site": rng.choice("ab")},
        "kernel": rng.choice(["6.1.0", "6.2"]),
        "since": NOW - rng.choice([1e5, 1e5, 30.0]),
    }
    if rng.random() < 0.2:
        facts["outcomes"] = {rng.choice(["k1", "k1", "standing"]): rng.choice(["rebooted", "failed: late"])}
        facts["ended"] = NOW - rng.choice([30.0, 7200.0])
    if rng.random() < 0.05:
        # No step of ours leaves that behind, but a person who writes records may.
        facts["cycle"] = "k1"
    if rng.random() < 0.3:
        facts |= {"reboot_required": Tri.YES, "reboot_reasons": ("kernel",), "required_since": NOW - 50}
    if rng.random() < 0.1:
        facts |= {"turned_back": 1, "turned_back_at": NOW - 20}
    if rng.random() < 0.1:
        facts["flag"] = "still required after a reboot: kernel"
    state = rng.choice([State.IN_SERVICE] * 12 + [State.QUARANTINED, State.HELD])
    return machine(f"m{n:02d}", rng.choice(["r0", "r1", "r2", "r3", ""]), state, **facts)


@pytest.mark.parametrize("seed", SEEDS)
def test_nobody_is_told_anything_else_for_being_in_a_crowd(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    world = some_world(random.Random(seed))
    together = decide(world)
    monkeypatch.setattr(roll, "quiet", lambda *_: False)
    assert not list(Roll(world).crowds())
    assert decide(world) == together


def test_these_worlds_have_crowds_and_every_kind_of_blocker() -> None:
    kinds: Counter[str] = Counter()
    crowds = 0
    for seed in SEEDS:
        world = some_world(random.Random(seed))
        crowds += sum(len(crowd.machines) > 1 for crowd in Roll(world).crowds())
        kinds.update({b.kind for why in decide(world).reasons.values() for b in why})
    assert crowds > 3 * len(SEEDS)
    expected = {"window", "halt", "limit", "racks", "gate", "quorum", "wave", "breaker", "hold", "unseen", "no-rack"}
    assert expected <= set(kinds), sorted(kinds)


def test_equal_reasons_are_shared() -> None:
    machines = [machine(f"m{n}", "r1", labels={"role": "web"}) for n in range(9)]
    told = decide(snapshot(*machines, cycles=[cycle()], halt=Halt(reason="drill")))
    assert len({id(why) for why in told.reasons.values()}) == 1
    assert all(isinstance(b, Blocker) for b in told.reasons["m0"])

"""A leader that sleeps until time changes something misses nothing: until then every decision is the last one again."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from rebootd.core.decide import decide
from rebootd.core.model import State
from rebootd.core.policy import DEFAULT_POLICY, parse_policy
from rebootd.core.wake import LONGEST, alike, idle, next_wake
from rebootd.core.wire import Tri
from tests.core import simulation
from tests.core.chaos import POLICIES, begin, disturb
from tests.core.simulation import Simulation
from tests.core.worlds import NOW, cycle, machine, out, seen, snapshot, window

if TYPE_CHECKING:
    from rebootd.core.decision import Decision
    from rebootd.core.model import Snapshot

SLOW = frozenset({"window-fit", "never"})
"""Kinds of reasons that tell how much of a window is left: they may be old by ``LONGEST``."""


def reasons(decision: Decision) -> dict[str, set[str]]:
    return {name: {b.kind for b in why} - SLOW for name, why in decision.reasons.items()}


@pytest.mark.parametrize("seed", range(10))
def test_nothing_changes_before_the_next_wake(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, slept = random.Random(seed), 0

    def watched(world: Snapshot) -> Decision:
        nonlocal slept
        decision = decide(world)
        wake = next_wake(world, world.now)
        assert wake <= world.now + LONGEST
        if idle(decision) and wake > world.now + 1.0:
            slept += 1
            later = decide(replace(world, now=rng.uniform(world.now, wake)))
            assert idle(later)
            assert reasons(later) == reasons(decision)
        return decision

    monkeypatch.setattr(simulation, "decide", watched)
    sim = Simulation(seed, POLICIES[seed % len(POLICIES)])
    begin(sim)
    for _ in range(400):
        disturb(sim)
        sim.round(sim.rng.choice([1.0, 3.0, 5.0, 20.0]))
    assert slept > 20


def test_it_wakes_when_a_machine_is_to_be_missed() -> None:
    world = snapshot(machine("m1"), observed={"m1": seen(machine("m1"), at=NOW - 140)})
    assert next_wake(world, NOW) == NOW - 140 + DEFAULT_POLICY.unreachable_after


def test_it_wakes_when_a_deadline_runs_out() -> None:
    rebooting = out(State.REBOOTING, since=NOW - 890)
    assert next_wake(snapshot(rebooting, leading_since=NOW - 3600), NOW) == NOW + 10


def test_it_wakes_when_a_window_opens_though_that_moment_is_over() -> None:
    policy = parse_policy("windows: {required: true}")
    world = snapshot(machine("m1"), policy=policy, windows=(window(NOW + 12, NOW + 99),), cycles=[cycle()])
    assert next_wake(replace(world, now=NOW + 13), NOW) == NOW + 12


def test_it_wakes_when_the_standing_cycle_may_take_a_machine_again() -> None:
    m = machine("m1", reboot_required=Tri.YES, ended=NOW - DEFAULT_POLICY.standing.every + 7)
    assert next_wake(snapshot(m), NOW) == NOW + 7


def test_what_comes_this_very_moment_is_still_to_come() -> None:
    rebooting = out(State.REBOOTING, since=NOW - 900)
    assert next_wake(snapshot(rebooting, leading_since=NOW - 3600), NOW) == NOW


def test_a_quiet_fleet_is_looked_at_in_the_end() -> None:
    world = snapshot(machine("m1"), observed={"m1": seen(machine("m1"), at=NOW)}, leading_since=NOW - 3600)
    assert next_wake(world, NOW) == NOW + LONGEST


def test_the_same_said_once_more_is_alike() -> None:
    m = machine("m1")
    before = snapshot(m, observed={"m1": seen(m, at=NOW)})
    assert alike(before, replace(before, now=NOW + 5, observed={"m1": seen(m, at=NOW + 5)}, clock_skew=3.0))
    assert not alike(before, replace(before, clock_skew=-31.0))
    assert not alike(before, replace(before, faults=("the store is away",)))
    assert not alike(before, replace(before, machines={"m1": replace(m, kernel="6.13")}))


def test_a_decision_that_answers_somebody_is_not_idle() -> None:
    assert not idle(decide(snapshot(machine("m1"), cycles=[cycle()])))
    assert idle(decide(snapshot(machine("m1"))))

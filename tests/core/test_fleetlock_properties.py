"""S1 to S8 and L1 where every second machine has a FleetLock client, and no agent (see test_decide_properties)."""

from __future__ import annotations

import pytest

from rebootd.core.model import Cycle, State
from tests.core.chaos import GENTLE, POLICIES, begin, disturb
from tests.core.lock_hosts import LockSimulation
from tests.core.test_decide_properties import GOOD_TIMES, comes_to_rest

SEEDS = [pytest.param(seed, marks=pytest.mark.slow if seed >= 8 else ()) for seed in range(40)]
ROUNDS = 300
ENOUGH = 2
"""A seed in which fewer of the 4 clients reboot in the chaos proves too little."""


def chaos(seed: int) -> LockSimulation:
    sim = LockSimulation(seed, POLICIES[seed % len(POLICIES)])
    begin(sim)
    for turn in range(6 * ROUNDS):
        if turn >= ROUNDS and len(by_clients(sim)) >= ENOUGH:
            break
        disturb(sim)
        sim.round(sim.rng.choice([1.0, 3.0, 3.0, 5.0, 20.0]))
    return sim


def by_clients(sim: LockSimulation) -> list[str]:
    names = {host.name for host in sim.clients}
    return [name for name in sim.permitted if name in names]


@pytest.mark.parametrize("seed", SEEDS)
def test_chaos_then_rest(seed: int) -> None:
    sim = chaos(seed)
    assert len(by_clients(sim)) >= ENOUGH, "this run proves nothing"
    sim.heal(GENTLE)
    sim.machine_holds.clear()
    sim.rack_holds.clear()
    sim.conflicts.clear()
    sim.cycles["last"] = Cycle(id="last", selector="*", created=sim.now, failure_budget=99)
    for host in sim.clients:
        host.staged = True
    before = len(sim.permitted)
    comes_to_rest(sim)
    assert {m.state for m in sim.machines.values()} == {State.IN_SERVICE}
    assert {host.name for host in sim.clients} <= set(sim.permitted[before:])
    assert not any(host.staged for host in sim.clients)


@pytest.mark.parametrize("seed", range(4))
def test_in_good_times_each_client_reboots_once_for_each_update(seed: int) -> None:
    sim = LockSimulation(seed, GOOD_TIMES[seed % len(GOOD_TIMES)], racks=4, per_rack=3)
    for _ in range(90):
        sim.round(3)
    assert {m.state for m in sim.machines.values()} == {State.IN_SERVICE}
    for number in (1, 2):
        for host in sim.clients:
            host.staged = True
        comes_to_rest(sim)
        assert sorted(by_clients(sim)) == sorted([host.name for host in sim.clients] * number)
    assert {host.name for host in sim.clients} == set(sim.permitted)
    assert {m.unplanned for m in sim.machines.values()} == {0}

"""S1 to S8, L1 and no livelock, on random worlds: chaos first, then everybody is good and everything must end.

Repeat one seed with ``pytest tests/core/test_decide_properties.py -k "chaos and 17"``.
"""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from rebootd.core.amounts import Amount
from rebootd.core.decide import decide
from rebootd.core.model import Cycle, CycleState, State
from tests.core.chaos import GENTLE, POLICIES, begin, clears_a_quarantine, disturb
from tests.core.simulation import Simulation

SEEDS = range(40)
ROUNDS = 300
GOOD_TIMES = (*POLICIES[:3], replace(GENTLE, soak=90))
ENOUGH_IN_CHAOS = 3
ENOUGH_AFTER = 3
"""A seed in which fewer of the 9 machines reboot by our hand proves too little."""


def chaos(seed: int) -> Simulation:
    """Rounds in which everything may go wrong; the invariants are checked in each."""
    sim = Simulation(seed, POLICIES[seed % len(POLICIES)])
    begin(sim)
    for turn in range(4 * ROUNDS):
        if turn >= ROUNDS and len(sim.permitted) >= ENOUGH_IN_CHAOS:
            break
        disturb(sim)
        sim.round(sim.rng.choice([1.0, 3.0, 3.0, 5.0, 20.0]))
    return sim


def comes_to_rest(sim: Simulation) -> int:
    """Rounds until nobody is on the way and every cycle has ended; people clear quarantines and resume cycles."""
    for turn in range(700):
        if sim.at_rest():
            return turn
        sim.round(3)
        if turn % 5 == 0:
            clears_a_quarantine(sim)
            sim.resumes()
            sim.reboots_by_hand()
    waiting = {m.name: (m.state.value, m.cause) for m in sim.machines.values() if m.state is not State.IN_SERVICE}
    reasons = {name: [b.what for b in blockers] for name, blockers in decide(sim.snapshot()).reasons.items()}
    cycles = [(c.id, c.state.value, c.why) for c in sim.cycles.values()]
    raise AssertionError(f"L1: no rest: {waiting}, {reasons}, cycles {cycles}, racks {sim.racks}")


@pytest.mark.parametrize("seed", SEEDS)
def test_chaos_then_rest(seed: int) -> None:
    sim = chaos(seed)
    by_then = len(sim.permitted)
    kept = list(sim.machine_holds)[: seed % 2]
    # A machine that stays held must not keep the others of its rack from going.
    sim.heal(replace(GENTLE, rack_unavailable=Amount(2)) if kept else GENTLE)
    sim.machine_holds = {name: sim.machine_holds[name] for name in kept}
    sim.rack_holds.clear()
    sim.cycles["last"] = Cycle(id="last", selector="*", created=sim.now, failure_budget=99)
    comes_to_rest(sim)

    for m in sim.machines.values():
        rests = {State.HELD} if m.name in kept else {State.IN_SERVICE, State.QUARANTINED}
        assert m.state in rests, f"L1: {m.name} rests as {m.state}"
    again = decide(sim.snapshot())
    assert [again.steps, again.locks, again.unlocks, again.cycles] == [(), (), (), ()], "L1: something is left to do"
    assert by_then >= ENOUGH_IN_CHAOS, f"only {by_then} reboots in the chaos: this run proves nothing"
    assert len(sim.permitted) - by_then >= ENOUGH_AFTER, f"only {len(sim.permitted) - by_then} reboots after the chaos"


@pytest.mark.parametrize("seed", range(12))
def test_in_good_times_every_machine_of_a_cycle_reboots_exactly_once(seed: int) -> None:
    sim = Simulation(seed, GOOD_TIMES[seed % len(GOOD_TIMES)], racks=4, per_rack=3)
    for _ in range(45):
        sim.round(3)
    assert all(m.state is State.IN_SERVICE for m in sim.machines.values())
    sim.cycles["k1"] = Cycle(id="k1", selector="*", target=["", "kernel=6.12"][seed % 2], created=sim.now)
    turns = comes_to_rest(sim)
    assert sorted(sim.permitted) == sorted(sim.hosts)
    assert sim.cycles["k1"].state is CycleState.DONE
    assert sim.cycles["k1"].totals == {"selected": 12, "rebooted": 12, "failed": 0, "skipped": 0}
    assert {m.outcomes["k1"] for m in sim.machines.values()} == {"rebooted"}
    assert {m.unplanned for m in sim.machines.values()} == {0}
    assert turns > 12

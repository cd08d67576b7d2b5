"""Machines that are deleted, from the catalog or from our records: who still counts, and what becomes of the lock."""

from __future__ import annotations

from typing import Any

import pytest

from rebootd.core.decide import decide
from rebootd.core.model import Snapshot, State
from rebootd.core.policy import Policy
from rebootd.core.states import WORKING
from tests.core.worlds import NOW, OURS, cycle, kinds, machine, out, seen, snapshot, step_of

LONG = Policy().forget_after + 1
OLD = NOW - 100 * LONG


def gone(m_state: State, for_: float, **facts: Any) -> Snapshot:
    """A silent machine that the catalog has not had for ``for_`` seconds, and one beside it in its rack."""
    m = machine(state=m_state, since=OLD, **facts) if m_state is State.IN_SERVICE else out(m_state, since=OLD, **facts)
    return snapshot(
        m,
        machine("m2"),
        cycles=[cycle()],
        silent=["m1"],
        gone={"m1": NOW - for_},
        leading_since=NOW - for_ - 100,
    )


@pytest.mark.parametrize("state", [State.HELD, State.QUARANTINED])
def test_who_waits_for_a_person_never_ages_out(state: State) -> None:
    for long in (LONG, 1000 * LONG):
        decision = decide(gone(state, long))
        step = step_of(decision)
        assert step is None or step.after is not None
        assert "limit" in kinds(decision, "m2"), "it counts in its rack for as long"


def test_who_is_in_service_stops_counting_after_the_set_time_and_not_before() -> None:
    early = decide(gone(State.IN_SERVICE, LONG - 2))
    assert step_of(early) is None
    assert "limit" in kinds(early, "m2")
    step = step_of(decide(gone(State.IN_SERVICE, LONG)))
    assert step is not None
    assert step.after is None


def test_who_still_calls_is_not_gone() -> None:
    world = gone(State.IN_SERVICE, LONG)
    called = snapshot(
        *world.machines.values(), cycles=[cycle()], observed={"m1": seen(world.machines["m1"])}, gone={"m1": OLD}
    )
    step = step_of(decide(called))
    assert step is None or step.after is not None


@pytest.mark.parametrize("state", sorted(WORKING))
def test_who_vanishes_on_its_way_is_quarantined_which_frees_the_lock_of_its_rack(state: State) -> None:
    world = gone(state, LONG)
    step = step_of(decide(world))
    assert step is not None
    assert step.after is not None
    assert step.after.state is State.QUARANTINED
    after = snapshot(
        step.after, machine("m2"), machine("m3", "r2"), cycles=[cycle()], racks={"r1": OURS}, silent=["m1"]
    )
    decision = decide(after)
    assert decision.unlocks == ("r1",)


def test_the_lock_of_a_rack_whose_machines_were_all_deleted_is_given_up() -> None:
    decision = decide(snapshot(machine("m3", "r2"), racks={"r1": OURS}))
    assert decision.unlocks == ("r1",)

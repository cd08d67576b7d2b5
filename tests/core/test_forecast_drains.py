"""Forecasts while machines are on their way whose Nomad clients rebootd has drained."""

from __future__ import annotations

import pytest

from rebootd.core.forecast import run
from rebootd.core.forecast_course import Course
from rebootd.core.model import State
from rebootd.core.nomad import NomadDrain, NomadSight
from rebootd.core.policy import parse_policy
from tests.core.worlds import NOW, cycle, machine, out, snapshot

DRAIN = NomadDrain(node="n1", mark="rebootd/m1/2", since=NOW - 5, eligible=True)
POLICY = parse_policy("drains: {nomad: {machines: '*'}}")
STATES = (State.DRAINING, State.DRAINED, State.REBOOTING, State.VERIFYING, State.ENABLING)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("state", STATES)
def test_a_drain_at_nomad_takes_the_time_of_its_phase_and_no_more(state: State) -> None:
    """What Nomad says does not change while a forecast is made: waited for, it would never come, and it hung here."""
    m1 = out(state, nomad=DRAIN, since=NOW - 1)
    world = snapshot(m1, machine("m2", "r1"), policy=POLICY, cycles=[cycle()], nomad=NomadSight(at=NOW))
    found = run(world, "k1")
    assert [p.machine for p in found.planned] == ["m1", "m2"]
    assert found.ends is not None


@pytest.mark.timeout(20)
def test_who_is_not_enabled_when_that_is_due_is_asked_again_later() -> None:
    """However a return is kept waiting, no soak and no progress must not be asked again at the same moment for ever."""
    world = snapshot(
        out(State.ENABLING, nomad=DRAIN, since=NOW - 1), policy=POLICY, cycles=[cycle()], nomad=NomadSight(at=NOW)
    )
    course = Course(world)
    assert all(at >= NOW for at in course.run())
    assert course.machines["m1"].state is State.IN_SERVICE, "its patience with a Nomad that does not answer is over"

"""A machine that is carried to another rack makes its old one smaller, and a limit by per cent with it."""

from __future__ import annotations

import pytest

from rebootd.core.amounts import Amount
from rebootd.core.decide import decide
from rebootd.core.decision import Lane
from rebootd.core.model import State
from rebootd.core.policy import Policy
from tests.core.worlds import OURS, cycle, machine, seen, snapshot


@pytest.mark.xfail(strict=True, reason="bug: a limit by per cent counts who leaves the rack by the same decision")
def test_who_leaves_a_rack_by_this_decision_is_no_member_of_it() -> None:
    """Found by ``tests/sim --profile fleet``, S2: of eight machines two may go (25 %), of seven only one."""
    members = [machine(f"m{i}") for i in range(8)]
    carried = {"m7": seen(members[7], rack="r2")}
    policy = Policy(rack_unavailable=Amount(25, True), open_racks=2)
    world = snapshot(*members, observed=carried, cycles=[cycle()], racks={"r1": OURS}, policy=policy)
    decision = decide(world)
    moved = [s.after for s in decision.steps if s.name == "m7" and s.lane is Lane.BACK and s.after is not None]
    assert [m.rack for m in moved] == ["r2"]
    gone = [s.name for s in decision.steps if s.after is not None and s.after.state is State.DRAINING]
    assert len(gone) == policy.rack_unavailable.of(len(members) - 1) == 1

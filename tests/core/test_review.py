"""What a reader of the core suspected."""

from __future__ import annotations

import pytest

from rebootd.core.decide import decide
from rebootd.core.model import State
from rebootd.core.policy import parse_policy
from rebootd.core.states import WORKING
from tests.core.worlds import OURS, cycle, machine, out, seen, snapshot, step_of


@pytest.mark.parametrize("failing", [True, False])
def test_a_failed_machine_that_boots_in_another_rack_counts_there_at_once(failing: bool) -> None:
    moved, other = machine("a1", "r1"), machine("a2", "r2")
    s = snapshot(
        moved,
        other,
        cycles=[cycle()],
        observed={"a1": seen(moved, boot_id="a1-b2", rack="r2", in_service=False)},
        failing={"a1": "serfHealth is critical"} if failing else {},
        racks={"r2": OURS},
    )
    decision = decide(s)
    assert step_of(decision, "a1").after.rack == "r2"
    assert step_of(decision, "a2") is None


def test_a_machine_that_is_out_and_changes_its_label_counts_in_its_new_limit_at_once() -> None:
    policy = parse_policy("racks: {unavailable: 9}\nlimits: [{name: new, selector: 'kernel=2', max: 1}]")
    back, other = out(State.REBOOTING, "a1", kernel="1"), machine("a2", kernel="2")
    s = snapshot(
        back,
        other,
        policy=policy,
        cycles=[cycle()],
        observed={"a1": seen(back, boot_id="a1-b2", kernel="2", in_service=False)},
        racks={"r1": OURS},
    )
    decision = decide(s)
    assert step_of(decision, "a1").after.state in WORKING
    assert step_of(decision, "a2") is None

"""What a reader of the core suspected."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rebootd.core.decide import decide
from rebootd.core.model import Retry, State
from rebootd.core.policy import parse_policy
from rebootd.core.states import WORKING
from tests.core.worlds import FAILED, NOW, OURS, cycle, machine, out, seen, snapshot, step_of

if TYPE_CHECKING:
    from rebootd.core.decision import Decision
    from rebootd.core.model import Machine


def after(decision: Decision, name: str = "m1") -> Machine:
    step = step_of(decision, name)
    assert step is not None
    assert step.after is not None
    return step.after


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
    assert after(decision, "a1").rack == "r2"
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
    assert after(decision, "a1").state in WORKING
    assert step_of(decision, "a2") is None


def test_a_stamp_from_the_future_does_not_stop_a_deadline() -> None:
    away = out(State.VERIFYING, since=NOW + 1e9)
    decision = decide(snapshot(away, cycles=[cycle()], silent=["m1"], leading_since=NOW - 99_999))
    assert after(decision).state is State.QUARANTINED


@pytest.mark.parametrize(("at", "goes"), [(NOW + 5, False), (NOW - 5, True), (NOW + 1e6, True), (NOW + 1e300, True)])
def test_a_retry_is_never_further_away_than_its_pause(at: float, goes: bool) -> None:
    tried = machine(retry=Retry("drain", "k1", 1, at))
    assert (step_of(decide(snapshot(tried, cycles=[cycle()]))) is not None) is goes


def test_failed_checks_whose_second_look_is_stamped_in_the_far_future_are_judged() -> None:
    away = out(State.VERIFYING, retry=Retry("checks", "k1", 1, NOW + 1e300))
    decision = decide(snapshot(away, cycles=[cycle()], observed={"m1": seen(away, boot_check=FAILED)}))
    assert after(decision).state is State.QUARANTINED

"""Permits through decide(): every state with every request, and everything that keeps a drained machine from going."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from rebootd.core.amounts import Amount
from rebootd.core.decide import decide
from rebootd.core.decision import Guard, Lane
from rebootd.core.model import CycleState, Machine, Permit, State
from rebootd.core.policy import Limit, Policy
from rebootd.core.selectors import parse_selector
from rebootd.core.wire import CheckResult
from tests.core.worlds import (
    CLOSED,
    HALT,
    NOW,
    OTHER,
    OURS,
    asks,
    cycle,
    hold,
    kinds,
    machine,
    out,
    seen,
    snapshot,
    step_of,
)

if TYPE_CHECKING:
    from rebootd.core.model import Snapshot
    from rebootd.core.wire import PermitRequest

S = State
REQUESTS: dict[str, dict[str, Any]] = {
    "right": {},
    "other nonce": {"nonce": "nonce-2"},
    "other boot_id": {"boot_id": "m1-b0"},
    "other machine-id": {"machine_id": "id-clone"},
}
VALID = Permit("m1-b1", "nonce-1", NOW + 30, 3)
SPENT = replace(VALID, until=NOW - 1)


def world(m: Machine, request: PermitRequest | None = None, **facts: Any) -> Snapshot:
    given: dict[str, Any] = {"cycles": [cycle()], "racks": {"r1": OURS}, "asking": [request or asks(m)]}
    return snapshot(m, **(given | facts))


def drained(**facts: Any) -> Machine:
    return out(S.DRAINED, **facts)


WHERE = dict.fromkeys((S.DRAINING, S.VERIFYING, S.ENABLING), "must come back first")
NEVER = dict.fromkeys((S.IN_SERVICE, S.QUARANTINED), "not drained")
WRONG = {
    "other nonce": "one permit under another nonce",
    "other boot_id": "not the present one",
    "other machine-id": "not that of the record",
}


@pytest.mark.parametrize(("state", "asked"), list(product(State, REQUESTS)))
def test_every_state_with_every_request(state: State, asked: str) -> None:
    m = machine(outcomes={"k1": "rebooted"}) if state is S.IN_SERVICE else out(state, permit=VALID)
    decision = decide(world(m, asks(m, **REQUESTS[asked])))
    verdict, step = decision.permits["m1"], step_of(decision)
    if state in WHERE or state in NEVER:
        assert not verdict.granted
        assert (WHERE | NEVER)[state] in verdict.reason
        assert verdict.final == (state in NEVER)
        assert step is None
        return
    assert verdict.granted == (asked == "right")
    assert verdict.final == (asked != "right")
    assert WRONG.get(asked, "") in verdict.reason
    if asked == "right" and state is not S.REBOOTING:
        assert step is not None
        assert step.after is not None
        assert (step.after.state, step.after.booted, step.after.planned) == (S.REBOOTING, False, False)
    else:
        assert step is None
        assert decision.reasons["m1"]


def test_what_a_permit_is() -> None:
    decision = decide(world(drained(), policy=Policy(permit_valid=45)))
    step = step_of(decision)
    assert step is not None
    assert step.after is not None
    assert step.after.permit == Permit("m1-b1", "nonce-1", NOW + 45, 4)
    assert (step.lane, step.guards, step.lock, step.unlock) == (Lane.OUT, frozenset(Guard), "", "")
    assert [(e.frm, e.to, e.cause) for e in step.events] == [("drained", "rebooting", "permitted")]


def test_the_same_nonce_gets_the_same_answer_and_no_second_write() -> None:
    m = out(S.REBOOTING)
    decision = decide(world(m, halt=HALT, policy=CLOSED, racks={}))
    assert decision.permits["m1"].granted
    assert step_of(decision) is None
    assert kinds(decision) == ["agent"]


def test_a_permit_that_ran_out_is_renewed_for_its_nonce_after_the_same_checks() -> None:
    m = out(S.REBOOTING, permit=SPENT)
    decision = decide(world(m))
    step = step_of(decision)
    assert decision.permits["m1"].granted
    assert step is not None
    assert step.after == replace(m, permit=replace(SPENT, until=NOW + 60, epoch=4), epoch=4)
    assert (step.lane, step.guards) == (Lane.OUT, frozenset(Guard))
    assert step.events[0].cause == "permit renewed for the same nonce"
    in_the_way: list[dict[str, Any]] = [{"halt": HALT}, {"racks": {}}, {"holds": [hold("machine", "m1")]}]
    for facts in in_the_way:
        refused = decide(world(m, **facts))
        assert not refused.permits["m1"].granted
        assert not refused.permits["m1"].final
        assert step_of(refused) is None


def test_a_permit_with_more_time_than_is_ever_given_is_judged_anew() -> None:
    m = out(S.REBOOTING, permit=replace(VALID, until=NOW + 3600))
    assert not decide(world(m, halt=HALT)).permits["m1"].granted
    renewed = step_of(decide(world(m)))
    assert renewed is not None
    assert renewed.after is not None
    assert renewed.after.permit is not None
    assert renewed.after.permit.until == NOW + 60


@pytest.mark.parametrize("state", [S.DRAINED, S.QUARANTINED, S.VERIFYING, S.ENABLING])
def test_a_boot_id_keeps_its_one_permit_until_it_is_gone(state: State) -> None:
    """A failed reboot, a cleared quarantine and a way back into service do not earn a second one."""
    m = out(state, permit=SPENT, booted=False, planned=False)
    for _ in range(3):
        by_hand = seen(m, by_hand="no leader", in_service=True)
        step = step_of(decide(snapshot(m, observed={"m1": by_hand}, racks={"r1": OURS}, cycles=[cycle()])))
        if step is None or step.after is None:
            break
        m = step.after
    assert m.state is S.IN_SERVICE
    again = replace(m, state=S.DRAINED, cycle="k1", since=NOW - 5)
    other = decide(world(again, asks(again, nonce="nonce-2")))
    assert (other.permits["m1"].granted, other.permits["m1"].final) == (False, True)
    assert decide(world(again, asks(again))).permits["m1"].granted


def limited(maximum: int) -> Policy:
    return Policy(open_racks=2, rack_unavailable=Amount(9), limits=(Limit("db", parse_selector("*"), Amount(maximum)),))


IN_THE_WAY: dict[str, tuple[dict[str, Any], str]] = {
    "halt": ({"halt": HALT}, ""),
    "store": ({"faults": ("no answer",)}, "store"),
    "window": ({"policy": CLOSED}, ""),
    "clock": ({"clock_skew": -31.0}, ""),
    "paused": ({"cycles": [cycle(state=CycleState.PAUSED)]}, ""),
    "spent": ({"cycles": [cycle(failure_budget=-1)]}, ""),
    "gone": ({"cycles": []}, ""),
    "held": ({"holds": [hold("machine", "m1")]}, ""),
    "rack held": ({"holds": [hold("rack", "r1")]}, ""),
    "lock lost": ({"racks": {}}, "rack-lock"),
    "lock of others": ({"racks": {"r1": OTHER}}, "rack-lock"),
    "racks": ({"racks": {"r1": OURS, "r9": OTHER}}, "racks"),
    "conflict": ({"conflicts": {"m1": "two machine-ids report"}}, "conflict"),
}


@pytest.mark.parametrize("why", IN_THE_WAY)
def test_what_keeps_a_drained_machine_from_going(why: str) -> None:
    facts, kind = IN_THE_WAY[why]
    decision = decide(world(drained(), **facts))
    verdict, step = decision.permits["m1"], step_of(decision)
    assert not verdict.granted
    assert not verdict.final, "it may ask again when that is over"
    assert verdict.reason
    if kind:
        assert step is None
        assert kind in kinds(decision)
    else:
        assert step is not None
        assert step.after is not None
        assert step.after.state in {S.ENABLING, S.HELD}


@pytest.mark.parametrize(("maximum", "granted"), [(2, True), (1, False), (0, False)])
def test_limits_are_checked_again(maximum: int, granted: bool) -> None:
    m, lost = drained(), machine("m2", state=S.QUARANTINED, cycle="k0")
    decision = decide(
        snapshot(m, lost, cycles=[cycle()], racks={"r1": OURS}, asking=[asks(m)], policy=limited(maximum))
    )
    assert decision.permits["m1"].granted == granted
    step = step_of(decision)
    assert step is not None
    assert step.after is not None
    assert step.after.state is (S.REBOOTING if granted else S.ENABLING)


@pytest.mark.parametrize("asks_first", [True, False])
def test_a_crash_that_is_reported_in_the_same_tick_counts(asks_first: bool) -> None:
    m, fine = drained(name="m1" if asks_first else "m9"), machine("m5")
    crash = seen(fine, boot_id="m5-b2", boot_check=CheckResult())
    one = Policy(rack_unavailable=Amount(1))
    machines = [m, fine] if asks_first else [fine, m]
    decision = decide(
        snapshot(*machines, observed={"m5": crash}, cycles=[cycle()], racks={"r1": OURS}, asking=[asks(m)], policy=one)
    )
    assert not decision.permits[m.name].granted


def test_nobody_is_permitted_without_a_record_or_twice_in_one_walk() -> None:
    stranger = decide(snapshot(asking=[asks(machine("m9"))]))
    assert (stranger.permits["m9"].granted, stranger.permits["m9"].final) == (False, True)
    draining = out(S.DRAINING)
    decision = decide(world(draining))
    assert not decision.permits["m1"].granted


def test_a_new_leader_permits_who_asks_before_it_reports() -> None:
    m = drained()
    decision = decide(world(m, silent=["m1"]))
    assert decision.permits["m1"].granted
    refused = decide(world(m, silent=["m1"], halt=HALT))
    assert not refused.permits["m1"].granted


def test_a_released_machine_needs_the_lock_and_the_window_like_any_other() -> None:
    m = out(S.HELD)
    assert decide(world(m)).permits["m1"].granted
    ended = cycle(state=CycleState.DONE)
    in_the_way: list[dict[str, Any]] = [{"racks": {}}, {"policy": CLOSED}, {"halt": HALT}, {"cycles": [ended]}]
    for facts in in_the_way:
        decision = decide(world(m, **facts))
        step = step_of(decision)
        assert not decision.permits["m1"].granted
        assert step is not None
        assert step.after is not None
        assert step.after.state is S.ENABLING, "it does not wait in held for what nobody brings"


def test_a_permit_is_not_renewed_nor_given_to_one_unheard_once_the_window_has_closed() -> None:
    late = out(S.REBOOTING, permit=SPENT)
    for m, silent in ((late, ()), (late, ("m1",)), (out(S.DRAINED), ("m1",))):
        for policy, granted in ((Policy(), True), (CLOSED, False)):
            verdict = decide(world(m, policy=policy, silent=silent)).permits["m1"]
            assert verdict.granted is granted
            assert granted or "no maintenance window is open" in verdict.reason

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from rebootd.core.decide import decide
from rebootd.core.decision import Lane
from rebootd.core.errors import Refused
from rebootd.core.failures import STILL, UNDONE
from rebootd.core.model import Machine, Observation, Permit, Refusal, Retry, Snapshot, State
from rebootd.core.operations import clear_quarantine
from rebootd.core.operations_inputs import Because
from rebootd.core.policy import Policy
from rebootd.core.policy_failures import Failures, Flapping
from rebootd.core.policy_failures import Retry as RetryRule
from rebootd.core.wire import DirectiveKind, Tri
from tests.core.worlds import (
    FAILED,
    NOW,
    OURS,
    PASSED,
    asks,
    cycle,
    hold,
    kinds,
    machine,
    out,
    result,
    seen,
    snapshot,
    step_of,
)

if TYPE_CHECKING:
    from rebootd.core.decision import MachineStep

S = State
ALICE = Because(by="alice", reason="looked at it")
MINUTE = Policy(failures=Failures(retry=RetryRule(drains=1, checks=1, after=60.0)))
WHY = ("kernel 6.1 -> 6.12", "libssl")


def world(m: Machine, *others: Machine, heard: Observation | None = None, **facts: Any) -> Snapshot:
    given: dict[str, Any] = {"cycles": [cycle()], "racks": {"r1": OURS}, "policy": MINUTE}
    return snapshot(m, *others, observed={m.name: heard} if heard else {}, **(given | facts))


def next_of(m: Machine, heard: Observation | None = None, **facts: Any) -> tuple[Machine, MachineStep]:
    step = step_of(decide(world(m, heard=heard, **facts)))
    assert step is not None
    assert step.after is not None
    return step.after, step


# --- one bounded retry -------------------------------------------------------------------


@pytest.mark.parametrize(("state", "kind"), [(S.DRAINING, DirectiveKind.DRAIN), (S.DRAINED, DirectiveKind.REBOOT)])
def test_a_drain_that_failed_is_tried_once_more_after_a_pause(state: State, kind: DirectiveKind) -> None:
    m = out(state)
    back, _ = next_of(m, seen(m, result=result(m, kind, ok=False, detail="port 80 busy")))
    assert (back.state, back.outcomes) == (S.ENABLING, {})
    assert back.retry == Retry("drain", "k1", 1, NOW + 60)

    inside = replace(back, state=S.IN_SERVICE, cycle="")
    waiting = decide(world(inside))
    assert kinds(waiting) == ["retry"]
    assert "08:01:00Z" in waiting.reasons["m1"][0].what

    gone, step = next_of(inside, seen(inside, at=NOW + 59), now=NOW + 60)
    assert (gone.state, step.lane) == (S.DRAINING, Lane.OUT)
    failed, _ = next_of(gone, seen(gone, result=result(gone, DirectiveKind.DRAIN, ok=False, detail="again")))
    assert (failed.state, failed.outcomes, failed.retry) == (S.ENABLING, {"k1": "failed: drain failed"}, None)


def test_the_retry_of_one_cycle_is_not_that_of_another() -> None:
    m = machine(retry=Retry("drain", "k0", 1, NOW + 60))
    gone, _ = next_of(m)
    assert gone.state is S.DRAINING
    back, _ = next_of(gone, seen(gone, result=result(gone, DirectiveKind.DRAIN, ok=False)))
    assert back.retry == Retry("drain", "k1", 1, NOW + 60)


def test_who_is_wanted_for_a_hold_is_tried_again_and_again_with_pauses() -> None:
    m = out(S.DRAINING, cycle="", retry=Retry("drain", "", 7, NOW - 1))
    back, _ = next_of(m, seen(m, result=result(m, DirectiveKind.DRAIN, ok=False)), holds=[hold("machine", "m1")])
    assert back.retry == Retry("drain", "", 8, NOW + 60)
    inside = replace(back, state=S.IN_SERVICE)
    assert kinds(decide(world(inside, holds=[hold("machine", "m1")], cycles=[]))) == ["retry"]


def test_failed_checks_are_judged_once_more_before_quarantine() -> None:
    m = out(S.VERIFYING)
    waiting, step = next_of(m, seen(m, boot_check=FAILED))
    assert (waiting.state, waiting.version) == (S.VERIFYING, m.version)
    assert waiting.retry == Retry("checks", "k1", 1, NOW + 60)
    assert [(e.kind, e.to, e.detail) for e in step.events] == [("retry", "", FAILED.detail)]

    before = decide(world(waiting, heard=seen(waiting, boot_check=FAILED), now=NOW + 59))
    assert step_of(before) is None
    assert FAILED.detail in before.reasons["m1"][0].what
    given_up, _ = next_of(waiting, seen(waiting, boot_check=FAILED), now=NOW + 60)
    assert (given_up.state, given_up.cause) == (S.QUARANTINED, "checks after boot failed")
    repaired, _ = next_of(waiting, seen(waiting, boot_check=PASSED), now=NOW + 5)
    assert repaired.state is S.ENABLING


def test_a_cleared_quarantine_begins_anew() -> None:
    m = out(
        S.QUARANTINED, retry=Retry("checks", "k1", 1, NOW - 5), unplanned_at=(1.0, 2.0), flag="target not reached: x"
    )
    (step,) = clear_quarantine(world(m), "m1", ALICE).steps
    assert step.after is not None
    assert (step.after.state, step.after.retry, step.after.unplanned_at, step.after.flag) == (S.VERIFYING, None, (), "")


# --- a permit is given once --------------------------------------------------------------


@pytest.mark.parametrize("how", ["it says so", "deadline"])
def test_a_reboot_that_did_not_happen_gets_no_second_permit(how: str) -> None:
    m = out(
        S.REBOOTING, permit=Permit("m1-b1", "nonce-1", NOW - 5, 1), since=NOW - (5 if how == "it says so" else 1000)
    )
    said = result(m, DirectiveKind.REBOOT, ok=False, version=m.version - 1, detail="exit code 1")
    failed, _ = next_of(m, seen(m, result=said if how == "it says so" else None))
    assert failed.state is S.QUARANTINED
    assert failed.flag.startswith(UNDONE)

    (step,) = clear_quarantine(world(failed), "m1", ALICE).steps
    assert step.after is not None
    assert step.after.flag == failed.flag, "only a boot ends it"
    inside = replace(step.after, state=S.IN_SERVICE, cycle="")
    decision = decide(world(inside, cycles=[cycle("k2")]))
    assert [s for s in decision.steps if s.lane is Lane.OUT] == []
    assert "repeat" in kinds(decision)
    (ended,) = decision.cycles
    assert (ended[0].state.value, ended[0].totals["skipped"]) == ("done", 1), "no cycle waits for it"
    with pytest.raises(Refused, match="reboot it by hand"):
        clear_quarantine(world(inside), "m1", ALICE)

    drained = replace(inside, state=S.DRAINED, cycle="k2")
    asked = decide(world(drained, cycles=[cycle("k2")], asking=[asks(drained)]))
    assert not asked.permits["m1"].granted
    assert asked.permits["m1"].final

    booted, _ = next_of(inside, seen(inside, boot_id="m1-b2", boot_check=PASSED), cycles=[cycle("k2")])
    assert (booted.flag, booted.outcomes["k2"]) == ("", "rebooted")


def test_a_permit_that_was_refused_shows_in_explain() -> None:
    m = out(S.DRAINED)
    refused = {"m1": Refusal("m1-b1", "the store refused it: halted", NOW - 2)}
    blockers = decide(world(m, refusals=refused)).reasons["m1"]
    assert [b.kind for b in blockers] == ["permit", "agent"]
    assert "the store refused it: halted" in blockers[0].what
    old = {"m1": Refusal("m1-b0", "long ago", NOW - 2)}
    assert kinds(decide(world(m, refusals=old))) == ["agent"]


# --- reboots that changed nothing --------------------------------------------------------


def required(m: Machine, *reasons: str, **facts: Any) -> Observation:
    return seen(m, reboot_required=Tri.YES, reboot_reasons=reasons, **facts)


def test_the_same_reason_after_a_new_boot_is_flagged_and_not_repeated() -> None:
    m = out(S.REBOOTING, reboot_required=Tri.YES, reboot_reasons=WHY)
    booted, _ = next_of(m, seen(m, boot_id="m1-b2", reboot_required=Tri.UNKNOWN, reboot_reasons=()))
    assert (booted.required_before, booted.flag) == (WHY, "")
    known, _ = next_of(booted, required(booted, WHY[0], boot_check=PASSED))
    assert known.flag == STILL + WHY[0]
    assert known.state is S.ENABLING, "it comes back all the same (S5)"

    inside = replace(known, state=S.IN_SERVICE, cycle="", outcomes={})
    decision = decide(world(inside, cycles=[cycle("k2")]))
    assert not [s for s in decision.steps if s.lane is Lane.OUT]
    assert kinds(decision) == ["repeat"]
    again = replace(MINUTE, failures=replace(MINUTE.failures, repeat=True))
    assert next_of(inside, cycles=[cycle("k2")], policy=again)[0].state is S.DRAINING


@pytest.mark.parametrize(
    ("heard", "flag", "before"),
    [
        ({"reboot_required": Tri.NO, "reboot_reasons": ()}, "", ()),
        ({"reboot_required": Tri.YES, "reboot_reasons": ("kernel 6.12 -> 6.13",)}, "", WHY),
        ({"reboot_required": Tri.UNKNOWN, "reboot_reasons": ()}, STILL + WHY[0], WHY),
    ],
)
def test_the_flag_goes_when_what_is_required_changes(heard: dict[str, Any], flag: str, before: tuple[str, ...]) -> None:
    m = machine(reboot_required=Tri.YES, reboot_reasons=WHY[:1], required_before=WHY, flag=STILL + WHY[0])
    after, _ = next_of(m, seen(m, **heard), cycles=[])
    assert (after.flag, after.required_before) == (flag, before)


def test_an_operator_clears_the_flag_of_a_machine_in_service() -> None:
    m = machine(flag=STILL + "x", required_before=("x",), reboot_required=Tri.YES, reboot_reasons=("x",))
    (step,) = clear_quarantine(world(m), "m1", ALICE).steps
    assert step.after is not None
    assert (step.after.flag, step.after.required_before, step.after.state) == ("", (), S.IN_SERVICE)
    assert "by alice: looked at it" in step.events[0].detail
    assert next_of(step.after)[0].state is S.DRAINING
    with pytest.raises(Refused, match="nothing is held against it"):
        clear_quarantine(world(machine()), "m1", ALICE)


def test_a_missed_target_is_flagged_and_judged_once() -> None:
    m, cycles = out(S.VERIFYING), [cycle(target="kernel=6.12")]
    missed, _ = next_of(m, seen(m, boot_check=PASSED), cycles=cycles)
    assert (missed.state, missed.flag) == (S.QUARANTINED, "target not reached: cycle k1 wants kernel=6.12")
    (step,) = clear_quarantine(world(missed), "m1", ALICE).steps
    assert step.after is not None
    back, _ = next_of(step.after, seen(step.after, boot_check=PASSED), cycles=cycles)
    assert (back.state, back.flag) == (S.ENABLING, "")
    assert back.outcomes == {"k1": "failed: target not reached"}


# --- flapping and power losses -----------------------------------------------------------


def flapper(*ages: float, **facts: Any) -> Machine:
    return machine("m1", unplanned_at=tuple(NOW - a for a in ages), **facts)


def crowd(unplanned: int, of: int) -> list[Machine]:
    return [
        machine(f"x{n}", f"rx{n}", S.VERIFYING if n < unplanned else S.IN_SERVICE, booted=n < unplanned,
                unplanned_at=(NOW - 5,) if n < unplanned else (), cycle="")
        for n in range(of)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ages", "state"),
    [
        ((30, 20), S.ENABLING),
        ((30, 20, 10), S.QUARANTINED),
        ((4000, 20, 10), S.ENABLING),
        ((3600, 20, 10), S.QUARANTINED),
    ],
)
def test_too_many_unplanned_boots_are_quarantined_and_not_enabled(ages: tuple[float, ...], state: State) -> None:
    m = flapper(*ages)
    after = step_of(decide(world(m, *crowd(0, 20), heard=seen(m, boot_id="m1-b2", boot_check=PASSED))))
    assert after is not None
    assert after.after is not None
    assert after.after.state is state
    if state is S.QUARANTINED:
        assert after.after.cause == "flapping"
        assert "4 unplanned boots" in after.after.evidence


@pytest.mark.parametrize(("others", "state"), [(3, S.QUARANTINED), (4, S.ENABLING)])
def test_nobody_is_quarantined_for_flapping_in_a_power_loss(others: int, state: State) -> None:
    m = flapper(30, 20, 10)
    # 20 % of 20 machines is 4: one more is a power loss, the flapping machine itself included.
    world_ = world(m, *crowd(others, 19), heard=seen(m, boot_id="m1-b2", boot_check=PASSED), cycles=[])
    step = step_of(decide(world_))
    assert step is not None
    assert step.after is not None
    assert step.after.state is state


def test_planned_boots_and_the_switch_do_not_count() -> None:
    m = replace(out(S.REBOOTING), unplanned_at=(NOW - 3, NOW - 2, NOW - 1))
    booted, _ = next_of(m, seen(m, boot_id="m1-b2"))
    assert (booted.state, booted.planned, len(booted.unplanned_at)) == (S.VERIFYING, True, 3)
    off = replace(MINUTE, failures=replace(MINUTE.failures, flapping=Flapping(boots=0)))
    wild = flapper(*range(9, 0, -1))
    assert next_of(wild, seen(wild, boot_id="m1-b2"), policy=off)[0].state is S.ENABLING


def test_what_is_remembered_is_bounded() -> None:
    m = flapper(*range(40, 0, -1), state=S.QUARANTINED)
    after, _ = next_of(m, seen(m, boot_id="m1-b2"))
    assert len(after.unplanned_at) == 16
    assert after.unplanned_at[-1] == NOW


# --- explain -----------------------------------------------------------------------------


def test_both_holds_are_named() -> None:
    m = machine(state=S.HELD)
    blockers = decide(world(m, holds=[hold("machine", "m1"), hold("rack", "r1", by="bob")])).reasons["m1"]
    assert [b.kind for b in blockers] == ["hold", "hold"]
    assert "bob" in blockers[1].what
    assert "--rack r1" in blockers[1].clears


@pytest.mark.parametrize("state", [S.DRAINING, S.DRAINED, S.REBOOTING, S.VERIFYING, S.ENABLING])
def test_silence_is_named_in_every_state(state: State) -> None:
    m = out(state)
    assert "unseen" in kinds(decide(world(m, heard=seen(m, at=NOW - 1000))))

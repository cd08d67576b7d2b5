"""The way back, holds, first reports, identity conflicts and directives, through decide()."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from rebootd.core.decide import decide
from rebootd.core.decision import Lane
from rebootd.core.directives import directive_for
from rebootd.core.model import CycleState, Hold, State
from rebootd.core.wire import DirectiveKind
from tests.core.reports import KIND, OUT, S, subject, world
from tests.core.worlds import (
    CLOSED,
    FAILED,
    HALT,
    NOW,
    OTHER,
    PASSED,
    cycle,
    hold,
    kinds,
    machine,
    seen,
    snapshot,
    step_of,
)

# --- coming back, whatever is in the way (S5) ---------------------------------------------

HOSTILE: dict[str, dict[str, Any]] = {
    "halt": {"halt": HALT},
    "no window": {"policy": CLOSED},
    "foreign locks": {"racks": {"r1": OTHER, "r2": OTHER}},
    "mad clock": {"clock_skew": 1e6},
    "store in trouble": {"faults": ("cannot be watched",)},
    "cycle halted": {"cycles": [cycle(state=CycleState.HALTED, failure_budget=0)]},
    "cycle gone": {"cycles": []},
    "just elected": {"leading_since": NOW},
}


@pytest.mark.parametrize("why", HOSTILE)
@pytest.mark.parametrize(
    ("state", "said", "to"),
    [
        (S.VERIFYING, "passed", S.ENABLING),
        (S.ENABLING, "step ok", S.IN_SERVICE),
        (S.REBOOTING, "new boot passed", S.ENABLING),
        (S.IN_SERVICE, "new boot passed", S.ENABLING),
        (S.DRAINING, "step failed", S.ENABLING),
    ],
)
def test_nothing_delays_coming_back(why: str, state: State, said: str, to: State) -> None:
    step = step_of(decide(world(subject(state), said, **HOSTILE[why])))
    assert step is not None
    assert step.after is not None
    assert step.after.state is to
    assert (step.lane, step.guards, step.lock) == (Lane.BACK, frozenset(), "")


@pytest.mark.parametrize("why", ["halt", "cycle halted", "cycle gone"])
@pytest.mark.parametrize("state", [S.DRAINING, S.DRAINED])
def test_who_has_not_rebooted_yet_is_brought_back(state: State, why: str) -> None:
    step = step_of(decide(world(subject(state), "nothing new", **HOSTILE[why])))
    assert step is not None
    assert step.after is not None
    assert (step.after.state, step.after.outcomes) == (S.ENABLING, {})
    assert step.after.cause.startswith("brought back: ")


@pytest.mark.parametrize("why", ["no window", "mad clock"])
def test_only_a_drained_machine_is_brought_back_when_the_window_closes(why: str) -> None:
    assert step_of(decide(world(subject(S.DRAINING), "nothing new", **HOSTILE[why]))) is None
    step = step_of(decide(world(subject(S.DRAINED), "nothing new", **HOSTILE[why])))
    assert step is not None


# --- holds -------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [hold("machine", "m1"), hold("rack", "r1")], ids=["machine", "rack"])
@pytest.mark.parametrize(("state", "said"), [(S.DRAINED, "nothing new"), (S.VERIFYING, "passed")])
def test_a_hold_keeps_what_is_empty(which: Hold, state: State, said: str) -> None:
    decision = decide(world(subject(state), said, holds=[which]))
    step = step_of(decision)
    assert step is not None
    assert step.after is not None
    assert step.after.state is S.HELD
    kept = decide(world(step.after, "nothing new", holds=[which], cycles=[]))
    assert step_of(kept) is None
    assert kinds(kept) == ["hold"]
    assert "disk swap" in kept.reasons["m1"][0].what


def test_a_released_machine_comes_back() -> None:
    step = step_of(decide(world(subject(S.HELD), "nothing new", holds=[], racks={})))
    assert step is not None
    assert step.after is not None
    assert (step.after.state, step.after.cause) == (S.ENABLING, "released")


def test_a_released_machine_may_ask_for_its_reboot_while_its_rack_is_locked() -> None:
    decision = decide(world(subject(S.HELD), "nothing new", holds=[]))
    assert step_of(decision) is None
    assert kinds(decision) == ["agent"]


@pytest.mark.parametrize(("check", "back"), [("passed", True), ("nothing new", False), ("failed", False)])
def test_a_machine_that_booted_while_it_was_held_proves_itself_first(check: str, back: bool) -> None:
    m = replace(subject(S.HELD), booted=True)
    decision = decide(world(m, check, holds=[]))
    assert (step_of(decision) is not None) == back
    assert kinds(decision) == ["agent"]


def test_a_machine_that_was_on_its_way_to_a_hold_turns_round() -> None:
    m = machine(state=S.DRAINING, cycle="")
    step = step_of(decide(world(m, "nothing new", cycles=[])))
    assert step is not None
    assert step.after is not None
    assert step.after.cause == "brought back: the hold was released"
    assert step_of(decide(world(m, "nothing new", cycles=[], holds=[hold("rack", "r1")]))) is None


# --- first reports, facts, conflicts -----------------------------------------------------


@pytest.mark.parametrize(("check", "to"), [(PASSED, S.ENABLING), (FAILED, S.VERIFYING)])
def test_a_first_report_makes_a_record(check: Any, to: State) -> None:
    new = seen(machine("m9", kernel="6.1", labels={"role": "db"}), boot_check=check, index=0)
    decision = decide(snapshot(observed={"m9": new}))
    step = step_of(decision, "m9")
    assert step is not None
    assert step.before is None
    assert step.after is not None
    assert (step.after.state, step.after.boot_id, step.after.machine_id) == (to, "m9-b1", "id-m9")
    assert (step.after.rack, step.after.kernel, step.after.labels) == ("r1", "6.1", {"role": "db"})
    assert step.events[0].frm == ""


def test_facts_are_taken_over_without_a_transition() -> None:
    m = subject(S.IN_SERVICE)
    news = seen(m, kernel="6.12", labels={"role": "web"}, rack="r2")
    step = step_of(decide(snapshot(m, observed={"m1": news})))
    assert step is not None
    assert step.after == replace(m, kernel="6.12", labels={"role": "web"}, rack="r2")
    assert step.events == ()


@pytest.mark.parametrize("state", OUT)
def test_the_rack_is_frozen_until_the_machine_is_back(state: State) -> None:
    m = subject(state)
    step = step_of(decide(world(m, "silence", observed={"m1": seen(m, rack="r7")})))
    assert step is None or step.after is None or step.after.rack == "r1"


@pytest.mark.parametrize("state", OUT)
def test_of_two_machines_under_one_name_neither_moves(state: State) -> None:
    decision = decide(world(subject(state), "step ok", conflicts={"m1": "two machine-ids report as m1"}))
    assert step_of(decision) is None
    assert kinds(decision) == ["conflict"]


# --- directives --------------------------------------------------------------------------


@pytest.mark.parametrize("state", State)
def test_the_directive_of_every_state(state: State) -> None:
    m = subject(state)
    told = directive_for(m, m.boot_id, 4, held=state is S.HELD, conflict=False)
    asked = {**KIND, S.ENABLING: DirectiveKind.ENABLE}.get(state)
    assert (told.kind if told else None) is asked
    if told is not None:
        assert (told.boot_id, told.epoch, told.version, told.cycle) == ("m1-b1", 4, m.version, "k1")
    assert directive_for(m, "m1-b0", 4, held=False, conflict=False) is None
    assert directive_for(m, m.boot_id, 4, held=False, conflict=True) is None


def test_one_reboot_is_one_directive_from_drained_to_rebooting() -> None:
    drained = subject(S.DRAINED)
    rebooting = replace(drained, state=S.REBOOTING, version=drained.version + 1)
    before = directive_for(drained, "m1-b1", 4, held=False, conflict=False)
    after = directive_for(rebooting, "m1-b1", 5, held=False, conflict=False)
    assert before is not None
    assert after is not None
    assert before.id == after.id == "m1/7/reboot"


def test_a_held_machine_is_asked_to_reboot_only_after_its_release() -> None:
    m = subject(S.HELD)
    assert directive_for(m, m.boot_id, 4, held=True, conflict=False) is None
    assert directive_for(replace(m, booted=True), m.boot_id, 4, held=False, conflict=False) is None
    told = directive_for(m, m.boot_id, 4, held=False, conflict=False)
    assert told is not None
    assert told.kind is DirectiveKind.REBOOT

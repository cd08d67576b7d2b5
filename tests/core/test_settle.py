"""Every state with every kind of report, through decide(): what follows, why, and what is left to wait for."""

from __future__ import annotations

from itertools import product

import pytest
from msgspec.structs import replace

from rebootd.core.decide import decide
from rebootd.core.decision import Lane
from rebootd.core.model import CycleState, State
from rebootd.core.policy import Deadlines, Policy
from rebootd.core.states import WORKING
from rebootd.core.wire import DirectiveKind
from tests.core.reports import OUT, S, subject, world
from tests.core.worlds import (
    FAILED,
    NOW,
    ONCE,
    cycle,
    kinds,
    result,
    seen,
    step_of,
)

# For each kind of report the states that it moves, and along which states; all others stay.
MOVES: dict[str, dict[State, list[State]]] = {
    "silence": {},
    "nothing new": {},
    "step ok": {S.DRAINING: [S.DRAINED], S.ENABLING: [S.IN_SERVICE]},
    "step failed": {
        S.DRAINING: [S.ENABLING],
        S.DRAINED: [S.ENABLING],
        S.REBOOTING: [S.QUARANTINED],
        S.ENABLING: [S.QUARANTINED],
    },
    "other step failed": {},
    "other kind failed": {},
    "passed": {S.VERIFYING: [S.ENABLING]},
    "failed": {S.VERIFYING: [S.QUARANTINED]},
    "failed before": {},
    "by hand": {s: [S.IN_SERVICE] for s in OUT},
    "by hand before": {s: [S.IN_SERVICE] for s in OUT if s is not S.DRAINING},
    "out by its own word": {S.IN_SERVICE: [S.VERIFYING, S.ENABLING]},
    "out before": {},
    "new boot": {s: [S.VERIFYING] for s in WORKING | {S.IN_SERVICE}}
    | {S.HELD: [S.HELD], S.QUARANTINED: [S.QUARANTINED]},
    "new boot passed": {s: [S.VERIFYING, S.ENABLING] for s in WORKING | {S.IN_SERVICE}}
    | {S.HELD: [S.HELD], S.QUARANTINED: [S.QUARANTINED]},
    "new boot failed": {s: [S.VERIFYING] for s in WORKING | {S.IN_SERVICE}}
    | {S.HELD: [S.HELD], S.QUARANTINED: [S.QUARANTINED]},
    "new boot by hand": {s: [S.VERIFYING, S.IN_SERVICE] for s in WORKING | {S.IN_SERVICE}}
    | {S.HELD: [S.HELD, S.IN_SERVICE], S.QUARANTINED: [S.QUARANTINED, S.IN_SERVICE]},
    "superseded boot": {},
    "another machine": {},
}


@pytest.mark.parametrize(("state", "said"), list(product(State, MOVES)))
def test_every_state_with_every_report(state: State, said: str) -> None:
    m = subject(state)
    decision = decide(world(m, said, policy=ONCE))
    step, way = step_of(decision), MOVES[said].get(state, [])
    if not way:
        assert step is None or not step.events
        if state is not S.IN_SERVICE:
            assert decision.reasons["m1"]
        return
    assert step is not None
    assert step.after is not None
    assert [e.to for e in step.events] == [s.value for s in way]
    assert [e.frm for e in step.events] == [s.value for s in [state, *way[:-1]]]
    assert step.after.state is way[-1]
    assert step.after.version == m.version + len(way)
    assert (step.lane, step.guards, step.lock) == (Lane.BACK, frozenset(), "")
    assert all(e.boot_id == step.after.boot_id for e in step.events)


@pytest.mark.parametrize("said", [s for s in MOVES if s.startswith("new boot")])
@pytest.mark.parametrize("state", State)
def test_a_new_boot_is_planned_only_if_it_is_the_one_that_was_permitted(state: State, said: str) -> None:
    step = step_of(decide(world(subject(state), said)))
    assert step is not None
    assert step.after is not None
    planned = state is S.REBOOTING
    assert step.events[0].cause == ("planned boot" if planned else "unplanned boot")
    assert step.after.unplanned == (0 if planned else 1)
    assert (step.after.boot_id, step.after.boots, step.after.permit) == ("m1-b2", ("m1-b0", "m1-b1"), None)
    if step.after.state is S.IN_SERVICE:
        assert (step.after.booted, step.after.planned) == (False, False), "nothing of the way may be left on it"
    else:
        assert (step.after.booted, step.after.planned) == (True, planned)


@pytest.mark.parametrize("state", [S.DRAINING, S.DRAINED, S.REBOOTING, S.VERIFYING, S.ENABLING])
def test_a_proven_boot_serves_every_open_cycle_that_wanted_one(state: State) -> None:
    cycles = [
        cycle(),
        cycle("paused", state=CycleState.PAUSED),
        cycle("ended", state=CycleState.DONE),
        cycle("others", selector="rack=r2"),
        cycle("target", target="kernel=6.12"),
    ]
    step = step_of(decide(world(subject(state), "new boot passed", cycles=cycles)))
    assert step is not None
    assert step.after is not None
    assert step.after.outcomes == {"k1": "rebooted", "paused": "rebooted"}


@pytest.mark.parametrize("state", sorted(WORKING))
def test_a_boot_that_people_put_into_service_serves_the_cycle_too(state: State) -> None:
    step = step_of(decide(world(subject(state), "new boot by hand")))
    assert step is not None
    assert step.after is not None
    assert (step.after.outcomes, step.after.cycle) == ({"k1": "rebooted"}, "")


def test_enabled_by_hand_without_a_boot_is_still_to_be_rebooted() -> None:
    step = step_of(decide(world(subject(S.DRAINED), "by hand")))
    assert step is not None
    assert step.after is not None
    assert step.after.outcomes == {}


FAILURES = {
    S.DRAINING: ("step failed", "drain failed"),
    S.DRAINED: ("step failed", "reboot refused by its host"),
    S.REBOOTING: ("step failed", "reboot failed"),
    S.VERIFYING: ("failed", "checks after boot failed"),
    S.ENABLING: ("step failed", "enable failed"),
}


@pytest.mark.parametrize("state", FAILURES)
def test_a_failure_is_evidence_and_counts_in_its_cycle(state: State) -> None:
    said, cause = FAILURES[state]
    decision = decide(world(subject(state), said, policy=ONCE))
    step = step_of(decision)
    assert step is not None
    assert step.after is not None
    assert step.after.cause == cause
    assert step.after.outcomes == {"k1": f"failed: {cause}"}
    assert step.after.evidence.startswith(cause)
    detail = FAILED.detail if state is S.VERIFYING else "a hook failed"
    assert detail in step.after.evidence
    assert step.events[-1].detail == detail


def test_a_boot_that_does_not_reach_the_target_is_quarantined() -> None:
    m = subject(S.VERIFYING)
    decision = decide(world(m, "passed", cycles=[cycle(target="kernel=6.12.9")]))
    step = step_of(decision)
    assert step is not None
    assert step.after is not None
    assert (step.after.state, step.after.cause) == (S.QUARANTINED, "target not reached")
    reached = replace(m, kernel="6.12.9")
    step = step_of(decide(world(reached, "passed", cycles=[cycle(target="kernel=6.12.9")])))
    assert step is not None
    assert step.after is not None
    assert step.after.state is S.ENABLING


# --- deadlines ---------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["silence", "nothing new", "other step failed", "superseded boot", "another machine"])
@pytest.mark.parametrize("state", sorted(WORKING))
def test_a_deadline_quarantines_with_what_was_waited_for(state: State, said: str) -> None:
    limit = Deadlines().of(state)
    assert limit is not None
    late = replace(subject(state), since=NOW - limit - 1)
    step = step_of(decide(world(late, said)))
    assert step is not None
    assert step.after is not None
    assert (step.after.state, step.after.outcomes) == (S.QUARANTINED, {"k1": f"failed: {step.after.cause}"})
    assert step.after.cause == f"{state.value} for more than {limit:.0f} s"
    assert len(step.after.evidence) > len(step.after.cause), "the evidence says what was waited for"
    for in_time in (
        world(replace(late, since=NOW - limit), said),
        world(late, said, leading_since=NOW - limit),
    ):
        step = step_of(decide(in_time))
        assert step is None or not step.events


@pytest.mark.parametrize("state", [S.HELD, S.QUARANTINED])
def test_held_and_quarantined_have_no_deadline(state: State) -> None:
    assert step_of(decide(world(replace(subject(state), since=0.0), "silence"))) is None


def test_what_is_done_in_the_last_moment_is_not_late() -> None:
    late = replace(subject(S.DRAINING), since=NOW - 1e6)
    step = step_of(decide(world(late, "step ok")))
    assert step is not None
    assert step.after is not None
    assert step.after.state is S.DRAINED


# --- soak --------------------------------------------------------------------------------


@pytest.mark.parametrize(("enabled_at", "enough"), [(NOW - 99, False), (NOW - 100, True), (0.0, False)])
def test_the_soak_is_waited_for(enabled_at: float, enough: bool) -> None:
    m = subject(S.ENABLING)
    observation = seen(m, enabled_at=enabled_at, result=result(m, DirectiveKind.ENABLE))
    decision = decide(world(m, "silence", policy=Policy(soak=100), observed={"m1": observation}))
    assert (step_of(decision) is not None) == enough
    assert kinds(decision) == ([] if enough else ["soak"])


def test_a_soak_longer_than_the_deadline_is_no_failure() -> None:
    m = replace(subject(S.ENABLING), since=NOW - 1000)
    observation = seen(m, enabled_at=NOW - 900, result=result(m, DirectiveKind.ENABLE))
    soaking = world(m, "silence", policy=Policy(soak=3600), observed={"m1": observation})
    assert step_of(decide(soaking)) is None
    assert kinds(decide(soaking)) == ["soak"]
    late = replace(m, since=NOW - 601 - 3600)
    step = step_of(decide(world(late, "nothing new", policy=Policy(soak=3600), leading_since=0.0)))
    assert step is not None
    assert step.after is not None
    assert step.after.state is S.QUARANTINED

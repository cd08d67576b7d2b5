"""Who goes out, who waits and why, rack locks, and how cycles end, through decide()."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from rebootd.core.amounts import Amount
from rebootd.core.decide import decide
from rebootd.core.decision import Guard, Lane
from rebootd.core.model import Aside, CycleState, Machine, RackLock, State
from rebootd.core.operations_cycles import move_cycle
from rebootd.core.operations_inputs import Because
from rebootd.core.policy import Limit, Policy
from rebootd.core.selectors import parse_selector
from rebootd.core.wire import CheckResult, DirectiveKind
from tests.core.invariants import applied
from tests.core.worlds import (
    CLOSED,
    HALT,
    NOW,
    OTHER,
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
    window,
)

if TYPE_CHECKING:
    from rebootd.core.decision import Decision
    from rebootd.core.model import Snapshot

S = State
WIDE = Policy(open_racks=9, rack_unavailable=Amount(9))


def fleet(racks: int = 2, each: int = 2, **facts: Any) -> list[Machine]:
    return [machine(f"m{r}{n}", f"r{r}", **facts) for r in range(1, racks + 1) for n in range(1, each + 1)]


def world(*machines: Machine, **facts: Any) -> Snapshot:
    given: dict[str, Any] = {"cycles": [cycle()]}
    return snapshot(*(machines or fleet()), **(given | facts))


def taken(decision: Decision) -> list[str]:
    return sorted(s.name for s in decision.steps if s.lane is Lane.OUT)


# --- one after the other -----------------------------------------------------------------


def test_the_first_machine_goes_with_the_lock_of_its_rack() -> None:
    decision = decide(world())
    (step,) = decision.steps
    assert (step.name, step.lane, step.lock, step.unlock) == ("m11", Lane.OUT, "r1", "")
    assert step.guards == frozenset(Guard) - {Guard.RACK_LOCKED}, "the lock itself is the guard"
    assert step.after is not None
    assert (step.after.state, step.after.cycle, step.after.cause) == (S.DRAINING, "k1", "cycle k1")
    assert kinds(decision, "m12") == ["limit"]
    assert kinds(decision, "m21") == ["racks"]
    assert kinds(decision, "m22") == ["racks"]


def test_the_others_of_a_rack_go_once_its_lock_is_held() -> None:
    first = decide(world(*fleet(2, 4), policy=replace(WIDE, open_racks=1)))
    assert taken(first) == ["m11"]
    assert kinds(first, "m12") == ["next"]
    second = decide(applied(world(*fleet(2, 4), policy=replace(WIDE, open_racks=1)), first))
    assert taken(second) == ["m12", "m13", "m14"]
    assert all(s.guards == frozenset(Guard) and not s.lock for s in second.steps)


@pytest.mark.parametrize(("open_racks", "expected"), [(1, ["m11"]), (2, ["m11", "m21"]), (9, ["m11", "m21", "m31"])])
def test_as_many_racks_as_the_policy_says(open_racks: int, expected: list[str]) -> None:
    assert taken(decide(world(*fleet(3), policy=Policy(open_racks=open_racks)))) == expected


def test_an_open_rack_goes_on_before_another_is_opened() -> None:
    decision = decide(world(*fleet(3), racks={"r2": OURS}))
    assert taken(decision) == ["m21"]


def test_the_leaders_own_machine_is_the_last_of_its_rack() -> None:
    assert taken(decide(world(*fleet(1, 3), leader_node="m11"))) == ["m12"]
    done = [replace(m, outcomes={"k1": "rebooted"}) for m in fleet(1, 3)[1:]]
    assert taken(decide(world(fleet(1, 3)[0], *done, leader_node="m11"))) == ["m11"]


def test_limits_hold_across_racks_also_within_one_decision() -> None:
    policy = replace(WIDE, limits=(Limit("all", parse_selector("*"), Amount(2)),))
    decision = decide(world(*fleet(4), policy=policy))
    assert taken(decision) == ["m11", "m21"]
    assert kinds(decision, "m31") == ["limit"]
    assert "all" in decision.reasons["m31"][0].what


def test_never_means_never_and_says_so() -> None:
    policy = replace(WIDE, limits=(Limit("db", parse_selector("role=db"), Amount(0)),))
    machines = [machine("d1", labels={"role": "db"}), machine("w1", "r2")]
    decision = decide(world(*machines, policy=policy))
    assert taken(decision) == ["w1"]
    assert "never" in decision.reasons["d1"][0].what
    assert "policy" in decision.reasons["d1"][0].clears


# --- who is wanted -----------------------------------------------------------------------


def test_the_oldest_running_cycle_takes_a_machine() -> None:
    cycles = [
        cycle("a", created=NOW - 5),
        cycle("b", created=NOW - 9),
        cycle("c", created=NOW - 99, state=CycleState.PAUSED),
    ]
    step = step_of(decide(world(machine(), cycles=cycles)))
    assert step is not None
    assert step.after is not None
    assert step.after.cycle == "b"


@pytest.mark.parametrize(
    "facts",
    [
        {"cycles": [cycle(selector="rack=r9")]},
        {"cycles": [cycle(target="kernel=6.12")]},
        {"cycles": [cycle(state=CycleState.DONE)]},
        {"cycles": []},
    ],
)
def test_who_is_not_wanted_neither_goes_nor_waits(facts: dict[str, Any]) -> None:
    decision = decide(world(machine(kernel="6.12"), **facts))
    assert not decision.steps
    assert not decision.reasons


@pytest.mark.parametrize("outcome", ["rebooted", "failed: drain failed"])
def test_a_cycle_takes_nobody_twice(outcome: str) -> None:
    decision = decide(world(machine(outcomes={"k1": outcome}), cycles=[cycle(failure_budget=1)]))
    assert not decision.steps


def test_a_hold_takes_out_without_a_cycle_and_without_a_window() -> None:
    decision = decide(world(*fleet(), cycles=[], holds=[hold("machine", "m22")], policy=CLOSED))
    step = step_of(decision, "m22")
    assert step is not None
    assert step.after is not None
    assert (step.after.cycle, step.after.cause, step.events[0].detail) == ("", "hold", "disk swap")
    assert step.lock == "r2"
    assert step.guards == {Guard.NO_HALT, Guard.POLICY_UNCHANGED}


# --- what is in the way ------------------------------------------------------------------

IN_THE_WAY: dict[str, dict[str, Any]] = {
    "halt": {"halt": HALT},
    "store": {"faults": ("no answer",)},
    "window": {"policy": CLOSED},
    "clock": {"clock_skew": 31.0},
    "cycle": {"cycles": [cycle(state=CycleState.PAUSED)]},
    "rack-lock": {"racks": {"r1": OTHER}},
    "racks": {"racks": {"r9": OTHER}},
    "limit": {"policy": Policy(rack_unavailable=Amount(0))},
    "settle": {"leading_since": NOW - 1, "silent": ["m2"]},
    "unseen": {"silent": ["m1"]},
    "conflict": {"conflicts": {"m1": "two machine-ids report as m1"}},
}


@pytest.mark.parametrize("why", IN_THE_WAY)
def test_each_thing_in_the_way_blocks_and_is_named(why: str) -> None:
    decision = decide(world(machine("m1"), machine("m2", outcomes={"k1": "rebooted"}), **IN_THE_WAY[why]))
    assert not [s for s in decision.steps if s.lane is Lane.OUT]
    assert why in kinds(decision)


def test_all_that_is_in_the_way_is_named_at_once() -> None:
    everything: dict[str, Any] = {}
    for facts in IN_THE_WAY.values():
        everything |= facts
    everything |= {
        "policy": replace(CLOSED, rack_unavailable=Amount(0), limits=(Limit("x", parse_selector("*"), Amount(0)),)),
        "racks": {"r1": OTHER, "r9": OTHER},
        "silent": ["m1", "m2"],
    }
    decision = decide(world(machine("m1"), machine("m2", outcomes={"k1": "rebooted"}), **everything))
    told = ["halt", "store", "rack-lock", "settle", "racks", "limit", "clock", "window", "cycle", "limit", "conflict"]
    assert sorted(kinds(decision)) == sorted(told)


def test_a_machine_without_a_rack_is_explained_and_never_drained() -> None:
    decision = decide(world(machine(rack=""), policy=WIDE))
    assert not decision.steps
    assert kinds(decision) == ["no-rack"]


def test_an_unreadable_record_is_told_and_counts() -> None:
    aside = Aside(name="m2", rack="r1", error="invalid JSON", since=NOW - 9)
    decision = decide(world(machine("m1"), asides={"m2": aside}))
    assert not decision.steps
    assert kinds(decision, "m2") == ["aside"]
    assert kinds(decision, "m1") == ["limit"]


def test_more_open_racks_than_allowed_is_a_reason_in_an_open_rack_too() -> None:
    policy = replace(WIDE, open_racks=1)
    decision = decide(world(*fleet(2), racks={"r1": OURS, "r9": OTHER}, policy=policy))
    assert not taken(decision)
    assert kinds(decision, "m11") == ["racks"]


def test_a_new_leader_waits_for_the_rack_but_not_for_ever() -> None:
    silent: dict[str, Any] = {"silent": ["m12"], "policy": replace(WIDE, open_racks=1)}
    young = decide(world(*fleet(), leading_since=NOW - 59, **silent))
    assert taken(young) == ["m21"], "a rack whose machines have all called need not wait"
    assert kinds(young, "m11")[0] == "settle"
    assert taken(decide(world(*fleet(), leading_since=NOW - 60, **silent))) == ["m11"]


@pytest.mark.parametrize(
    ("start", "end", "opens"), [(-5, 3600, True), (0, 3600, True), (-5, 0, False), (1, 3600, False)]
)
def test_windows_begin_and_end(start: float, end: float, opens: bool) -> None:
    decision = decide(world(policy=CLOSED, windows=(window(NOW + start, NOW + end),)))
    assert bool(taken(decision)) == opens


# --- what else this very decision knows ---------------------------------------------------


def test_a_crash_reported_in_the_same_tick_counts_in_rack_limit_and_open_racks() -> None:
    crash = {"m11": seen(machine("m11"), boot_id="m11-b2", boot_check=CheckResult())}
    assert taken(decide(world(observed=crash))) == []
    both = decide(world(observed=crash, policy=Policy(open_racks=2)))
    assert taken(both) == ["m21"]
    limited = Policy(open_racks=2, limits=(Limit("all", parse_selector("*"), Amount(1)),))
    assert taken(decide(world(observed=crash, policy=limited))) == []


def test_a_first_report_opens_its_rack_in_the_same_tick() -> None:
    new = {"n1": seen(machine("n1", "r7"), boot_check=CheckResult())}
    assert taken(decide(world(observed=new))) == []
    assert taken(decide(world(observed=new, policy=Policy(open_racks=2)))) == ["m11"]


def test_a_release_opens_its_rack_in_the_same_tick() -> None:
    held = machine("h1", "r7", S.HELD)
    decision = decide(world(*fleet(), held))
    assert [s.name for s in decision.steps] == ["h1"]


def test_what_comes_back_counts_as_back_only_once_it_has_landed() -> None:
    back = out(S.ENABLING, "m11", outcomes={"k1": "rebooted"})
    done = {"m11": seen(back, result=result(back, DirectiveKind.ENABLE))}
    decision = decide(world(back, *fleet()[1:], observed=done, racks={"r1": OURS}))
    assert [s.name for s in decision.steps] == ["m11"]
    assert taken(decide(applied(world(back, *fleet()[1:], observed=done, racks={"r1": OURS}), decision))) == ["m12"]


# --- rack locks --------------------------------------------------------------------------


def test_the_lock_goes_with_the_last_machine_of_the_rack() -> None:
    back = out(S.ENABLING, "m11", outcomes={"k1": "rebooted"})
    done = {"m11": seen(back, result=result(back, DirectiveKind.ENABLE))}
    decision = decide(world(back, observed=done, racks={"r1": OURS}))
    (step,) = decision.steps
    assert (step.unlock, decision.unlocks) == ("r1", ())


def test_a_lock_that_nobody_needs_is_given_up() -> None:
    decision = decide(world(cycles=[], racks={"r1": OURS, "r2": OTHER}))
    assert (decision.unlocks, decision.locks, decision.steps) == (("r1",), (), ())


@pytest.mark.parametrize("state", [S.QUARANTINED, S.HELD, S.IN_SERVICE])
def test_what_is_left_of_a_planned_boot_asks_for_no_lock(state: State) -> None:
    """It once did, and the lock was taken and given up in turn for ever, and counted as an open rack."""
    m = machine(state=state, planned=True, booted=True)
    holds = [hold("machine", "m1")] if state is S.HELD else []
    assert decide(world(m, cycles=[], holds=holds)).locks == ()
    crashed = machine("m2", state=S.VERIFYING, booted=True)
    assert decide(world(m, crashed, cycles=[], holds=holds)).locks == ()
    assert decide(world(m, cycles=[], holds=holds, racks={"r1": OURS})).unlocks == ("r1",)


@pytest.mark.parametrize("state", [S.DRAINING, S.DRAINED, S.REBOOTING, S.VERIFYING, S.ENABLING])
def test_a_lock_that_was_lost_is_wanted_again_for_what_we_took_out(state: State) -> None:
    assert decide(world(out(state))).locks == ("r1",)
    assert decide(world(out(state), racks={"r1": RackLock()})).locks == ("r1",)
    assert decide(world(out(state), racks={"r1": OTHER})).locks == ()
    assert decide(world(machine(state=S.VERIFYING, booted=True), cycles=[])).locks == ()


@pytest.mark.parametrize("asking", [True, False])
def test_a_released_machine_that_sets_out_keeps_the_lock_that_is_there(asking: bool) -> None:
    held = out(S.HELD)
    decision = decide(world(held, racks={"r1": OURS}, asking=[asks(held)] if asking else []))
    assert bool(decision.steps) == asking
    assert decision.unlocks == (() if asking else ("r1",))


def test_nothing_goes_while_the_lock_of_an_open_rack_is_lost() -> None:
    others = [machine("m2"), machine("m3", "r2")]
    decision = decide(world(out(S.DRAINED), *others, policy=replace(WIDE, open_racks=1)))
    assert all(s.lock or Guard.RACK_LOCKED in s.guards for s in decision.steps if s.lane is Lane.OUT)


# --- cycles ------------------------------------------------------------------------------


def test_a_cycle_ends_with_its_totals() -> None:
    machines = [
        machine("a", outcomes={"k1": "rebooted"}),
        machine("b", outcomes={"k1": "failed: drain failed"}),
        machine("c", state=S.HELD),
        machine("d", state=S.QUARANTINED),
        machine("e", rack=""),
        machine("f", kernel="6.12"),
        machine("g", "r9", kernel="6.12"),
    ]
    asked = cycle(selector="rack!=r9", target="kernel=6.12", failure_budget=1)
    ((after, event),) = decide(world(*machines, cycles=[asked], holds=[hold("machine", "c")])).cycles
    assert (after.state, after.version, after.changed) == (CycleState.DONE, 2, NOW)
    assert after.totals == {"selected": 6, "rebooted": 1, "failed": 1, "skipped": 4}
    assert (event.kind, event.frm, event.to, event.cycle) == ("cycle", "running", "done", "k1")


@pytest.mark.parametrize("state", [S.DRAINING, S.DRAINED, S.REBOOTING, S.VERIFYING, S.ENABLING])
def test_a_cycle_does_not_end_while_one_of_its_machines_is_on_its_way(state: State) -> None:
    decision = decide(world(out(state, outcomes={"k1": "rebooted"}), racks={"r1": OURS}))
    assert decision.cycles == ()


def test_a_paused_cycle_waits_for_its_operator() -> None:
    assert decide(world(machine(outcomes={"k1": "rebooted"}), cycles=[cycle(state=CycleState.PAUSED)])).cycles == ()


def test_a_spent_failure_budget_halts_the_cycle_and_this_very_decision() -> None:
    bad = [machine(f"b{n}", "r8", outcomes={"k1": "failed: x"}) for n in (1, 2)]
    within = decide(world(*bad, *fleet(), cycles=[cycle(failure_budget=2)]))
    assert (within.cycles, taken(within)) == ((), ["m11"])
    beyond = decide(world(*bad, *fleet(), cycles=[cycle(failure_budget=1)]))
    ((after, _),) = beyond.cycles
    assert after.state is CycleState.HALTED
    assert "b1, b2" in after.why
    assert taken(beyond) == []
    assert "cycle" in kinds(beyond, "m11")


def test_who_resumes_a_halted_cycle_tolerates_what_has_failed_and_no_more() -> None:
    bad = [machine(f"b{n}", "r8", outcomes={"k1": "failed: x"}) for n in (1, 2)]
    halted = world(*bad, *fleet(), cycles=[cycle(state=CycleState.HALTED, why="2 failed")])
    (write,) = move_cycle(halted, "resume", "k1", Because(by="alice")).writes
    assert write.value is not None
    assert b'"failure_budget":2' in write.value
    resumed = cycle(failure_budget=2)
    assert decide(world(*bad, *fleet(), cycles=[resumed])).cycles == ()
    third = machine("b3", "r8", outcomes={"k1": "failed: x"})
    ((after, _),) = decide(world(*bad, third, *fleet(), cycles=[resumed])).cycles
    assert after.state is CycleState.HALTED


def test_a_release_in_the_middle_of_a_cycle_does_not_keep_the_cycle_from_ending() -> None:
    """The released machine once waited in held for the lock of its rack, and the rack for the machine."""
    held = out(S.HELD, "m11")
    decision = decide(world(held, *fleet()[1:], observed={"m11": seen(held, boot_check=PASSED)}))
    step = step_of(decision, "m11")
    assert step is not None
    assert step.after is not None
    assert step.after.state is S.ENABLING


def test_reasons_are_those_of_the_machines_own_rack() -> None:
    """They are shared between machines; once a rack's could be told to the machines of the next one."""
    machines = [
        machine(f"m{r}-{n}", f"r{r}", S.QUARANTINED if n == 0 else S.IN_SERVICE) for r in range(60) for n in range(3)
    ]
    short = window(NOW - 5, NOW + 30)
    decision = decide(world(*machines, policy=replace(CLOSED, open_racks=99), windows=(short,)))
    for m in machines:
        if m.state is S.IN_SERVICE:
            (full,) = (b for b in decision.reasons[m.name] if b.kind == "limit")
            assert full.what.startswith(f"rack {m.rack}: "), f"{m.name} of {m.rack} is told of {full.what}"
            assert len(decision.reasons[m.name]) == 2

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from rebootd.core.decide import decide
from rebootd.core.errors import Refused
from rebootd.core.model import Cycle, CycleState, Machine, State
from rebootd.core.operations_cycles import move_cycle, progress, start_cycle
from rebootd.core.operations_inputs import Because
from rebootd.core.policy import parse_policy
from rebootd.core.wire import CheckResult, DirectiveKind, Tri
from tests.core.worlds import NOW, OURS, cycle, machine, out, result, seen, snapshot, step_of

if TYPE_CHECKING:
    from rebootd.core.decision import Decision

DAY = 86400.0
POLICY = parse_policy(
    "standing: {enabled: true, every: 7d, selector: '!pinned'}\nwaves: [{size: 1, soak: 1d}, {size: 100%}]"
)
BECAUSE = Because(by="alice", reason="test")


def standing(**facts: Any) -> Cycle:
    given: dict[str, Any] = {"selector": "!pinned", "standing": True, "waves": False}
    return cycle("standing", **(given | facts))


def required(name: str = "m1", rack: str = "r1", since: float = NOW - 100, **facts: Any) -> Machine:
    given: dict[str, Any] = {"reboot_required": Tri.YES, "required_since": since}
    return machine(name, rack, **(given | facts))


def taken(decision: Decision) -> list[str]:
    return [s.name for s in decision.steps if s.after is not None and s.after.state is State.DRAINING]


def world(*machines: Machine, **facts: Any) -> Decision:
    given: dict[str, Any] = {"policy": POLICY, "cycles": [standing()]}
    return decide(snapshot(*machines, **(given | facts)))


def test_only_those_that_require_a_reboot_for_sure_are_taken() -> None:
    assert taken(world(required())) == ["m1"]
    for tri in (Tri.NO, Tri.UNKNOWN):
        assert taken(world(required(reboot_required=tri))) == []
    assert taken(world(required(labels={"pinned": ""}))) == []


def test_the_oldest_requirement_goes_first_across_racks() -> None:
    machines = [required("m1", "r1", NOW - 5), required("m2", "r1", NOW - 50), required("m3", "r2", NOW - 99)]
    assert taken(world(*machines)) == ["m3"]
    assert taken(world(*machines[:2])) == ["m2"]


@pytest.mark.parametrize(("ago", "goes"), [(6.9, []), (7.1, ["m1"])])
def test_at_most_once_in_the_set_time(ago: float, goes: list[str]) -> None:
    again = required(outcomes={"standing": "rebooted"}, ended=NOW - ago * DAY)
    assert taken(world(again)) == goes


def test_a_machine_that_had_its_reboot_lately_is_told_so() -> None:
    lately = required(ended=NOW - DAY)
    (blocker,) = world(lately).reasons["m1"]
    assert (blocker.kind, blocker.since) == ("standing", NOW - DAY)
    assert "7d" in blocker.what
    assert "m1" not in world(lately, cycles=[]).reasons
    assert "m1" not in world(replace(lately, reboot_required=Tri.UNKNOWN)).reasons
    # What else it waits for is said as before.
    assert [b.kind for b in world(lately, cycles=[standing(), cycle("k9", state=CycleState.PAUSED)]).reasons["m1"]] == [
        "cycle"
    ]


def test_it_obeys_what_every_cycle_obeys() -> None:
    assert taken(world(required(), cycles=[standing(state=CycleState.PAUSED)])) == []
    closed = replace(POLICY, window_required=True)
    assert taken(world(required(), policy=closed)) == []
    assert taken(world(required(), required("m2"))) == ["m1"]


def test_another_cycle_comes_first() -> None:
    decision = world(required(), cycles=[standing(created=NOW - 9e6), cycle("k1", waves=False)])
    step = step_of(decision)
    assert step is not None
    assert step.after is not None
    assert step.after.cycle == "k1"


def test_its_record_follows_the_policy() -> None:
    [(made, event)] = world(machine(), cycles=[]).cycles
    assert (made.id, made.state, made.standing, made.waves, made.selector) == (
        "standing",
        CycleState.RUNNING,
        True,
        False,
        "!pinned",
    )
    assert (event.kind, event.to) == ("cycle", "running")
    assert world(machine(), cycles=[made]).cycles == ()
    [(ended, _)] = world(machine(), cycles=[made], policy=parse_policy("{}")).cycles
    assert ended.state is CycleState.CANCELLED
    [(again, _)] = world(machine(), cycles=[ended]).cycles
    assert again.state is CycleState.RUNNING
    other = parse_policy("standing: {enabled: true, selector: role=web}")
    [(renewed, _)] = world(machine(), cycles=[replace(made, state=CycleState.PAUSED)], policy=other).cycles
    assert (renewed.selector, renewed.state) == ("role=web", CycleState.PAUSED)
    assert world(machine(), cycles=[cycle("standing", state=CycleState.PAUSED)]).cycles == ()


def test_it_never_ends() -> None:
    assert world(machine(), cycles=[standing()]).cycles == ()


def test_a_reboot_for_it_is_noted_once_and_the_requirement_goes() -> None:
    m = out(State.VERIFYING, cycle="standing", reboot_required=Tri.YES, required_since=NOW - 50,
            outcomes={"standing": "rebooted"}, ended=NOW - 9 * DAY)  # fmt: skip
    said = seen(m, boot_check=CheckResult("passed"), reboot_required=Tri.NO)
    step = step_of(world(m, observed={"m1": said}, racks={"r1": OURS}))
    assert step is not None
    assert step.after is not None
    assert (step.after.outcomes, step.after.ended, step.after.required_since) == ({"standing": "rebooted"}, NOW, 0.0)


def test_a_crash_serves_other_cycles_and_leaves_the_standing_one_alone() -> None:
    m = out(State.VERIFYING, cycle="", planned=False)
    said = seen(m, boot_check=CheckResult("passed"))
    step = step_of(world(m, observed={"m1": said}, cycles=[standing(), cycle("k1")]))
    assert step is not None
    assert step.after is not None
    assert step.after.outcomes == {"k1": "rebooted"}


def test_what_is_brought_back_undone_may_go_again_at_once() -> None:
    m = out(
        State.ENABLING, cycle="standing", booted=False, planned=False, reboot_required=Tri.YES, required_since=NOW - 5
    )
    step = step_of(world(m, observed={"m1": seen(m, result=result(m, DirectiveKind.ENABLE))}))
    assert step is not None
    assert step.after is not None
    assert (step.after.state, step.after.ended) == (State.IN_SERVICE, 0.0)


@pytest.mark.parametrize(
    ("before", "said", "since"),
    [
        ((Tri.NO, 0.0), Tri.YES, NOW), ((Tri.UNKNOWN, 0.0), Tri.YES, NOW), ((Tri.YES, NOW - 9), Tri.UNKNOWN, NOW - 9),
        ((Tri.UNKNOWN, NOW - 9), Tri.YES, NOW - 9), ((Tri.YES, NOW - 9), Tri.NO, 0.0),
    ],
)  # fmt: skip
def test_since_when_it_is_required(before: tuple[Tri, float], said: Tri, since: float) -> None:
    m = machine(reboot_required=before[0], required_since=before[1])
    step = step_of(decide(snapshot(m, observed={"m1": seen(m, reboot_required=said)})))
    assert step is not None
    assert step.after is not None
    assert (step.after.reboot_required, step.after.required_since) == (said, since)


def test_a_new_machine_that_requires_a_reboot() -> None:
    m = machine(reboot_required=Tri.YES)
    step = step_of(decide(snapshot(observed={"m1": seen(m)})))
    assert step is not None
    assert step.after is not None
    assert step.after.required_since == NOW


def test_people_pause_and_resume_it_and_do_not_cancel_it() -> None:
    s = snapshot(required(), policy=POLICY, cycles=[standing()])
    assert move_cycle(s, "pause", "standing", BECAUSE).writes
    with pytest.raises(Refused, match=r"standing\.enabled: false"):
        move_cycle(s, "cancel", "standing", BECAUSE)
    with pytest.raises(Refused, match="standing cycle"):
        start_cycle(replace(s, cycles={}), cycle_id="standing", selector="*", because=BECAUSE)


def test_its_numbers_are_of_those_that_count() -> None:
    machines = [
        required("m1", ended=NOW - 9 * DAY, outcomes={"standing": "rebooted"}),
        machine("m2", outcomes={"standing": "rebooted"}),
        machine("m3", "r1", State.QUARANTINED, outcomes={"standing": "failed: x"}),
        out(State.DRAINING, "m4", cycle="standing", outcomes={"standing": "rebooted"}, reboot_required=Tri.YES),
        machine("m5"),
    ]
    counts, _ = progress(standing(), machines)
    assert (counts.selected, counts.waiting, counts.rebooted, counts.failed, counts.out) == (4, 1, 1, 1, 1)

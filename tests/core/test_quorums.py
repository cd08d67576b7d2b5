"""Quorum groups (S7), capacity that Consul takes away, and machines that are gone for good."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebootd.core.amounts import Amount
from rebootd.core.decide import decide
from rebootd.core.errors import InvalidInput
from rebootd.core.model import Aside, Machine, Snapshot, State
from rebootd.core.operations_inputs import Because
from rebootd.core.operations_policy import apply_policy, diff_policy
from rebootd.core.policy import Limit, Policy, parse_policy
from rebootd.core.policy_gates import Quorum
from rebootd.core.selectors import parse_selector
from tests.core.worlds import NOW, OURS, asks, cycle, hold, kinds, machine, out, seen, snapshot, step_of

ETCD = Quorum(name="etcd", selector=parse_selector("role=etcd"))


def member(name: str, **facts: Any) -> Machine:
    state = facts.pop("state", State.IN_SERVICE)
    build = machine if state is State.IN_SERVICE else out
    if build is machine:
        return machine(name, labels={"role": "etcd"}, **facts)
    return out(state, name, labels={"role": "etcd"}, **facts)


def world(*machines: Machine, quorum: Quorum = ETCD, **facts: Any) -> Snapshot:
    policy = Policy(quorums=(quorum,), rack_unavailable=Amount(9), open_racks=9)
    given_: dict[str, Any] = {"cycles": [cycle()], "racks": {"r1": OURS}, "policy": policy}
    return snapshot(*machines, **(given_ | facts))


def taken(s: Snapshot) -> list[str]:
    return [step.name for step in decide(s).steps if step.after is not None and step.after.state is State.DRAINING]


def test_one_member_goes_and_the_others_wait_for_it() -> None:
    s = world(*(member(f"m{n}") for n in range(1, 4)))
    assert taken(s) == ["m1"]
    assert kinds(decide(s), "m2") == ["quorum"]
    assert "m1" in decide(s).reasons["m2"][0].what


@pytest.mark.parametrize(
    "third",
    [
        member("m3", state=State.QUARANTINED),
        member("m3", state=State.HELD),
        member("m3", state=State.VERIFYING),
        member("m3", state=State.DRAINED),
    ],
)
def test_none_goes_while_the_group_is_not_whole(third: Machine) -> None:
    s = world(member("m1"), member("m2"), third, holds=[hold("machine", "m3")] if third.state is State.HELD else [])
    assert taken(s) == []
    assert "quorum" in kinds(decide(s), "m1")


@pytest.mark.parametrize(
    "facts",
    [
        {"silent": ["m3"]},
        {"failing": {"m3": "serfHealth is critical"}},
        {"conflicts": {"m3": "two of them"}},
        {"asides": {"m3b": Aside("m3b", "r1", "broken", NOW)}},
    ],
)
def test_a_member_in_service_that_nobody_can_count_on_shuts_the_group(facts: dict[str, Any]) -> None:
    assert taken(world(*(member(f"m{n}") for n in range(1, 4)), **facts)) == []


def test_a_hold_takes_no_second_member_either() -> None:
    s = world(member("m1"), member("m2"), member("m3"), cycles=[], holds=[hold("machine", "m1"), hold("machine", "m2")])
    assert taken(s) == ["m1"]


def test_a_drained_member_comes_back_when_another_is_lost_and_may_go_when_it_is_alone() -> None:
    first = member("m1", state=State.DRAINED)
    alone = world(first, member("m2"), member("m3"), asking=[asks(first)])
    assert decide(alone).permits["m1"].granted
    lost = world(first, member("m2"), member("m3"), asking=[asks(first)], failing={"m2": "serfHealth is critical"})
    step = step_of(decide(lost))
    assert step is not None
    assert step.after is not None
    assert step.after.state is State.ENABLING


def test_a_crash_in_the_same_tick_keeps_the_permit_back() -> None:
    first, second = member("m1", state=State.DRAINED), member("m2")
    crashed = {"m2": seen(second, boot_id="m2-b2")}
    s = world(first, second, member("m3"), asking=[asks(first)], observed=crashed)
    assert not decide(s).permits.get("m1", None) or not decide(s).permits["m1"].granted
    assert "m3" not in taken(s)


def test_small_groups_need_leave() -> None:
    s = world(member("m1"), member("m2"))
    assert taken(s) == []
    assert "allow_outage" in decide(s).reasons["m1"][0].clears
    assert taken(
        world(member("m1"), member("m2"), quorum=Quorum(name="e", selector=ETCD.selector, allow_outage=True))
    ) == ["m1"]


STATES = [State.IN_SERVICE, State.IN_SERVICE, State.IN_SERVICE, State.DRAINED, State.QUARANTINED, State.ENABLING]


@given(
    st.lists(st.tuples(st.sampled_from(STATES), st.booleans(), st.booleans()), min_size=1, max_size=7), st.booleans()
)
def test_never_two_by_our_hand(kinds_: list[tuple[State, bool, bool]], allow: bool) -> None:
    """S7 for any mixture of members that are in, out, silent or failing."""
    machines = [member(f"m{i}", state=state) for i, (state, _, _) in enumerate(kinds_)]
    silent = [f"m{i}" for i, (_, quiet, _) in enumerate(kinds_) if quiet]
    failing = {f"m{i}": "serfHealth is critical" for i, (_, _, bad) in enumerate(kinds_) if bad}
    asking = [asks(m) for m in machines if m.state is State.DRAINED]
    s = world(
        *machines,
        quorum=Quorum(name="e", selector=ETCD.selector, allow_outage=allow),
        silent=silent,
        failing=failing,
        asking=asking,
    )
    decision = decide(s)
    away = {m.name for m in machines if m.state is not State.IN_SERVICE} | set(silent) | set(failing)
    goes = taken(s)
    permitted = [n for n, v in decision.permits.items() if v.granted]
    assert len(goes) <= (0 if away or (len(machines) < 3 and not allow) else 1)
    for name in permitted:
        assert away <= {name}
        assert len(machines) >= 3 or allow


# ------------------------------------------------------------------------------------------------------ policy


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("{name: a}", "quorums[0].selector"),
        ("{name: a, selector: role=x, allow_outage: maybe}", "quorums[0].allow_outage"),
        ("{name: a, selector: role=x}, {name: a, selector: role=y}", "quorums[1].name"),
        ("{name: a, selector: 'role=x'}, {name: b, selector: 'role = x'}", "quorums[1].selector"),
        ("{name: a, selector: role=x}, {name: b, selector: role=x, allow_outage: true}", "quorums[1].allow_outage"),
        ("{name: a, selector: 'a=1,b=2'}, {name: b, selector: 'b=2, a=1'}", "quorums[1].selector"),
    ],
)
def test_contradictory_groups_are_refused(text: str, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_policy(f"quorums: [{text}]")
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("{name: a, selector: 'name in (m1,m2)'}", "quorums[0].allow_outage"),
        (
            "{name: a, selector: 'name in (m1,m2,m3)'}, {name: b, selector: 'name in (m3,m4)', allow_outage: true}",
            "quorums[1].allow_outage",
        ),
    ],
)
def test_groups_that_could_never_go_are_refused_where_the_fleet_is_known(text: str, field: str) -> None:
    s = world(*(member(f"m{n}") for n in range(1, 5)))
    text = f"quorums: [{text}]"
    for attempt in (lambda: apply_policy(s, text, Because("me", "why")), lambda: diff_policy(s, text)):
        with pytest.raises(InvalidInput) as caught:
            attempt()
        assert caught.value.field == field
    assert not diff_policy(world(), text).warnings


def test_what_is_hardly_meant_is_warned_of() -> None:
    s = world(*(member(f"m{n}") for n in range(1, 5)))
    text = (
        "gates: [{name: g, kind: consul-quorum, covers: role=none}]\n"
        "quorums: [{name: a, selector: role=none}, {name: b, selector: role=etcd, allow_outage: true},"
        " {name: c, selector: 'role=etcd, rack=r1', allow_outage: true}]"
    )
    fields = [w.partition(":")[0] for w in diff_policy(s, text).warnings]
    assert fields == [
        "gates[0].covers",
        "quorums[0].selector",
        "quorums[1].allow_outage",
        "quorums[2].allow_outage",
        "quorums[2].selector",
    ]


# ---------------------------------------------------------------------------------------------------- capacity


def test_what_consul_says_has_failed_counts_everywhere_and_is_not_taken_out() -> None:
    limit = Limit("all", parse_selector("*"), Amount(1))
    s = snapshot(
        machine("m1"),
        machine("m2", rack="r2"),
        cycles=[cycle()],
        policy=Policy(limits=(limit,)),
        failing={"m1": "serfHealth is critical"},
        failing_since={"m1": NOW - 40},
    )
    decision = decide(s)
    assert not decision.steps
    (blocker,) = decision.reasons["m2"]
    assert (blocker.kind, blocker.since) == ("limit", NOW - 40)
    assert "m1: serfHealth is critical" in blocker.what
    assert "failing" in kinds(decision, "m1")
    alone = snapshot(machine("m1"), cycles=[cycle()], policy=Policy(rack_unavailable=Amount(2)), failing=s.failing)
    assert kinds(decide(alone), "m1") == ["failing"]


@pytest.mark.parametrize(
    ("facts", "gone"),
    [
        ({}, True),
        ({"silent": []}, False),
        ({"gone": {"m1": NOW - 86399}}, False),
        ({"gone": {}}, False),
        ({"holds": [hold("machine", "m1")]}, False),
        ({"holds": [hold("rack", "r1")]}, False),
    ],
)
def test_a_machine_that_is_gone_for_good_is_forgotten(facts: dict[str, Any], gone: bool) -> None:
    given_: dict[str, Any] = {"silent": ["m1"], "gone": {"m1": NOW - 86400}}
    step = step_of(decide(snapshot(machine("m1"), machine("m2"), **(given_ | facts))))
    assert (step is not None) == gone
    if step is not None:
        assert step.after is None
        assert [e.kind for e in step.events] == ["forgotten"]


@pytest.mark.parametrize("state", [s for s in State if s is not State.IN_SERVICE])
def test_other_states_never_age_out_and_keep_no_rack_for_ever(state: State) -> None:
    m = out(state, since=NOW - 90_000)
    s = snapshot(
        m,
        machine("m2"),
        silent=["m1"],
        gone={"m1": NOW - 90_000},
        racks={"r1": OURS},
        leading_since=NOW - 90_000,
        cycles=[cycle()],
        holds=[hold("machine", "m1")] if state is State.HELD else [],
    )
    step = step_of(decide(s))
    if state in {State.HELD, State.QUARANTINED}:
        assert step is None
        assert m.name in s.machines
    else:
        assert step is not None
        assert step.after is not None
        assert step.after.state is State.QUARANTINED

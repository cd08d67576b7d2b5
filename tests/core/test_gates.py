"""Gates: what a reading means for one machine, and what the decision makes of it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from rebootd.core.amounts import Amount
from rebootd.core.decide import decide
from rebootd.core.gates import Firing, Held, Instances, Reading, Samples, Servers, Value, Word, judge, overdue
from rebootd.core.model import Machine, Snapshot, State
from rebootd.core.policy import Policy
from rebootd.core.policy_gates import (
    Comparison,
    ConsulQuorum,
    ConsulService,
    Gate,
    NoAlerts,
    NomadQuorum,
    PrometheusQuery,
    Quorum,
)
from rebootd.core.second_look import resting
from rebootd.core.selectors import parse_selector
from tests.core.worlds import NOW, OURS, asks, cycle, hold, kinds, machine, out, snapshot, step_of

ADDRESS = "http://127.0.0.1:9"
SERVICE = Gate(name="web", test=ConsulService(service="web", minimum=Amount(2)))
QUERY = Gate(name="errors", test=PrometheusQuery(address=ADDRESS, query="errors", holds_when=Comparison("<", 5)))
ALERTS = Gate(name="pages", test=NoAlerts(address=ADDRESS, matchers=('severity="page"',)))
SERVERS = Gate(name="servers", test=ConsulQuorum())
GOOD = Samples((("", 1.0),))
BAD = Samples((("", 9.0),))


def read(gate: Gate, value: Value | None, at: float = NOW - 1, error: str = "") -> Reading:
    return Reading(gate=gate, at=at, value=value, error=error)


def word(gate: Gate, value: Value, **facts: Any) -> Word:
    return judge(gate, read(gate, value), now=NOW, **facts).word


def instances(*nodes: str, total: int = 0) -> Instances:
    return Instances(passing=dict.fromkeys(nodes, 1), total=total or len(nodes), nodes=frozenset(nodes))


# ------------------------------------------------------------------------------------------------ one reading


@pytest.mark.parametrize(
    ("reading", "changed", "said"),
    [
        (None, 0.0, "not been read"),
        (read(QUERY, None, error="refused"), 0.0, "cannot be read: refused"),
        (read(QUERY, GOOD, at=NOW - 61), 0.0, "61 s old"),
        (read(QUERY, GOOD, at=NOW + 30), 0.0, "old"),
        (read(QUERY, GOOD), NOW - 0.5, "before a machine that it covers changed"),
        (read(QUERY, GOOD), NOW - 1, "before a machine that it covers changed"),
        (read(replace(QUERY, max_age=9.0), GOOD), 0.0, "not been read"),
        (read(QUERY, Firing(())), 0.0, "another kind"),
    ],
)
def test_what_is_not_known_is_unknown(reading: Reading | None, changed: float, said: str) -> None:
    verdict = judge(QUERY, reading, now=NOW, changed=changed)
    assert verdict.word is Word.UNKNOWN
    assert said in verdict.what


def test_an_instance_less_must_still_be_enough() -> None:
    assert word(SERVICE, instances("m1", "m2", "m3"), leaving="m1") is Word.PASS
    assert word(SERVICE, instances("m1", "m2"), leaving="m1") is Word.BLOCK
    assert word(SERVICE, instances("m1", "m2"), leaving="m9") is Word.PASS
    assert word(SERVICE, instances("m1", "m2", "m3"), leaving="m1", away={"m2"}) is Word.BLOCK
    assert word(SERVICE, instances("m1", "m2", "m3"), leaving="m1", away={"m1"}) is Word.PASS
    assert word(SERVICE, Instances(passing={}, total=0)) is Word.UNKNOWN


@given(
    st.dictionaries(st.sampled_from([f"m{n}" for n in range(8)]), st.integers(0, 3), min_size=1),
    st.sets(st.sampled_from([f"m{n}" for n in range(8)])),
    st.integers(1, 100),
    st.booleans(),
)
def test_a_service_never_falls_below_its_minimum(
    passing: dict[str, int], away: set[str], least: int, percent: bool
) -> None:
    total = sum(passing.values()) + 1
    gate = replace(SERVICE, test=ConsulService(service="web", minimum=Amount(least, percent)))
    value = Instances(passing=passing, total=total, nodes=frozenset(passing))
    for name in passing:
        left = sum(n for node, n in passing.items() if node not in away and node != name)
        needed = math.ceil(total * least / 100) if percent else least
        assert (word(gate, value, leaving=name, away=away) is Word.PASS) == (left >= needed)


@pytest.mark.parametrize(
    ("members", "tolerance", "leaving", "away", "expected"),
    [
        ({"a": "", "b": "", "c": ""}, 1, "a", set(), Word.PASS),
        ({"a": "", "b": "", "c": ""}, 0, "a", set(), Word.BLOCK),
        ({"a": "", "b": "", "c": ""}, 0, "w", set(), Word.PASS),
        ({"a": "", "b": "not healthy", "c": ""}, 1, "w", set(), Word.BLOCK),
        ({"a": "", "b": "", "c": ""}, 1, "a", {"b"}, Word.BLOCK),
        ({"a": "", "b": "", "c": ""}, 1, "a", {"a"}, Word.PASS),
        ({}, 1, "a", set(), Word.UNKNOWN),
    ],
)
def test_servers_go_one_at_a_time_and_only_while_all_are_well(
    members: dict[str, str], tolerance: int, leaving: str, away: set[str], expected: Word
) -> None:
    value = Servers(members=members, tolerance=tolerance)
    for gate in (SERVERS, Gate(name="n", test=NomadQuorum(address=ADDRESS))):
        assert word(gate, value, leaving=leaving, away=away) is expected


@pytest.mark.parametrize(
    ("series", "every", "expected"),
    [
        ([], True, Word.UNKNOWN),
        ([math.nan], True, Word.UNKNOWN),
        ([1.0, math.nan], False, Word.UNKNOWN),
        ([4.9], True, Word.PASS),
        ([5.0], True, Word.BLOCK),
        ([1.0, 9.0], True, Word.BLOCK),
        ([1.0, 9.0], False, Word.PASS),
        ([9.0, math.inf], False, Word.BLOCK),
        ([-math.inf], True, Word.PASS),
    ],
)
def test_a_query_is_held_against_its_comparison(series: list[float], every: bool, expected: Word) -> None:
    test = PrometheusQuery(address=ADDRESS, query="q", holds_when=Comparison("<", 5), every=every)
    assert word(replace(QUERY, test=test), Samples(tuple((f"s{i}", v) for i, v in enumerate(series)))) is expected


@given(st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_a_comparison_is_what_it_looks_like(operator: str, left: float, right: float) -> None:
    assert Comparison(operator, right).holds(left) is eval(f"left {operator} right")
    assert not Comparison(operator, right).holds(math.nan)


def test_an_alert_blocks() -> None:
    assert word(ALERTS, Firing(())) is Word.PASS
    assert word(ALERTS, Firing(("DiskFull",))) is Word.BLOCK


# --------------------------------------------------------------------------------------------------- decisions


def world(*gates: Gate, values: dict[str, Value | None] | None = None, at: float = NOW - 1, **facts: Any) -> Snapshot:
    """Four machines in one rack that we hold the lock of, all wanted by a cycle."""
    machines = facts.pop("machines", [machine(f"m{n}") for n in range(1, 5)])
    readings = {g.name: read(g, values[g.name], at=at) for g in gates if values and g.name in values}
    policy = facts.pop("policy", Policy(gates=gates, rack_unavailable=Amount(4)))
    given_: dict[str, Any] = {"cycles": [cycle()], "racks": {"r1": OURS}, "policy": policy, "readings": readings}
    return snapshot(*machines, **(given_ | facts))


def taken(s: Snapshot) -> list[str]:
    return [step.name for step in decide(s).steps if step.after is not None and step.after.state is State.DRAINING]


def test_a_gate_that_passes_lets_one_machine_go_and_is_read_again_before_the_next() -> None:
    s = world(QUERY, values={"errors": GOOD})
    assert taken(s) == ["m1"]
    decision = decide(s)
    assert kinds(decision, "m2") == ["gate"]
    assert "read again" in decision.reasons["m2"][0].what
    assert taken(world(values={})) == ["m1", "m2", "m3", "m4"]


@pytest.mark.parametrize("value", [BAD, Samples(()), None])
def test_block_and_unknown_keep_everybody_in_with_a_reason(value: Value | None) -> None:
    s = world(QUERY, values={"errors": value}, gate_since={"errors": Held("block", NOW - 50, NOW - 70)})
    decision = decide(s)
    assert not decision.steps
    for name in s.machines:
        (blocker,) = decision.reasons[name]
        assert (blocker.kind, "errors" in blocker.what) == ("gate", True)
        assert blocker.since in {NOW - 50, NOW - 70}
        assert "policy apply" in blocker.clears
    assert decision.gates["errors"].word is (Word.BLOCK if value is BAD else Word.UNKNOWN)


def test_a_gate_covers_whom_it_says() -> None:
    web = replace(QUERY, covers=parse_selector("role=web"))
    machines = [machine("m1", labels={"role": "web"}), machine("m2")]
    s = world(web, values={"errors": BAD}, machines=machines)
    assert taken(s) == ["m2"]
    assert kinds(decide(s), "m1") == ["gate"]
    # Without a selector, a service covers the machines that run it.
    s = world(SERVICE, values={"web": instances("m1", "m2")})
    assert taken(s) == ["m3", "m4"]


def test_a_reading_from_before_a_transition_of_a_member_is_unknown_and_others_do_not_matter() -> None:
    web = replace(QUERY, covers=parse_selector("role=web"))
    for role, goes in (("web", []), ("db", ["m1"])):
        machines = [
            machine("m1", labels={"role": "web"}),
            machine("m2", rack="r2", since=NOW - 0.5, labels={"role": role}),
        ]
        s = world(web, values={"errors": GOOD}, machines=machines)
        assert [n for n in taken(s) if n == "m1"] == goes


def test_a_server_that_the_gate_does_not_cover_goes_with_nobody_whom_it_covers() -> None:
    web = replace(SERVERS, covers=parse_selector("role=web"))
    value = Servers(members={"m1": "", "m2": "", "m3": ""}, tolerance=1)
    machines = [*(machine(f"m{n}") for n in (1, 2, 3)), machine("m4", labels={"role": "web"})]
    policy = Policy(gates=(web,), rack_unavailable=Amount(4), quorums=())
    s = world(web, values={"servers": value}, machines=machines, policy=policy)
    assert "m4" not in taken(s)
    assert "read again" in "; ".join(b.what for b in decide(s).reasons["m4"])
    # The next decision asks for a reading from after the server went.
    later = [*machines[:2], machine("m3", since=NOW - 0.5, outcomes={"k1": "rebooted"}), machines[3]]
    alone = world(web, values={"servers": value}, machines=later, policy=policy, cycles=[cycle(selector="role=web")])
    assert taken(alone) == []


def test_a_machine_that_is_out_already_opens_no_gate_for_the_others() -> None:
    # m1 has as many instances as any other, and leaving takes none of them along: it is gone.
    machines = [machine("m1", rack="r2", state=State.QUARANTINED), *(machine(f"m{n}") for n in (2, 3))]
    s = world(SERVICE, values={"web": instances("m1", "m2", "m3")}, machines=machines)
    assert taken(s) == []
    assert kinds(decide(s), "m2") == ["gate"]


def test_a_reading_from_before_a_transition_landed_is_unknown_although_it_began_after_its_decision() -> None:
    machines = [machine("m1", since=NOW - 2, outcomes={"k1": "rebooted"}), machine("m2")]
    s = world(QUERY, values={"errors": GOOD}, machines=machines)
    assert taken(s) == ["m2"]
    late = replace(s, gate_changed={"errors": NOW - 0.5})
    assert taken(late) == []
    assert decide(late).reasons["m2"][0].since == NOW - 0.5


def test_a_shut_gate_says_since_when_it_is_shut_whatever_it_says_meanwhile() -> None:
    for value in (BAD, None):
        s = world(QUERY, values={"errors": value}, gate_since={"errors": Held("block", NOW - 5, NOW - 70)})
        assert decide(s).reasons["m1"][0].since == NOW - 70


def test_a_hold_is_kept_in_by_gates_too_and_a_window_is_not_asked() -> None:
    policy = Policy(gates=(QUERY,), window_required=True)
    held: dict[str, Any] = {"holds": [hold("machine", "m1")], "cycles": [], "policy": policy}
    assert taken(world(QUERY, values={"errors": GOOD}, **held)) == ["m1"]
    assert taken(world(QUERY, values={"errors": BAD}, **held)) == []


def test_an_emergency_goes_past_named_gates_only() -> None:
    urgent = cycle(emergency=True, skip_gates=("errors",))
    gates = (QUERY, ALERTS)
    quiet: dict[str, Value | None] = {"errors": BAD, "pages": Firing(())}
    assert taken(world(*gates, values=quiet, cycles=[urgent])) == ["m1"]
    loud: dict[str, Value | None] = {"errors": BAD, "pages": Firing(("X",))}
    assert taken(world(*gates, values=loud, cycles=[urgent])) == []


def test_coming_back_asks_no_gate() -> None:
    """S5: machines in every other state move on whatever the gates say."""
    for state in (State.VERIFYING, State.ENABLING, State.REBOOTING, State.QUARANTINED):
        m = out(state)
        plain = decide(snapshot(m, cycles=[cycle()], racks={"r1": OURS}))
        gated = decide(world(QUERY, values={"errors": BAD}, machines=[m]))
        assert step_of(plain) == step_of(gated)
        assert "gate" not in kinds(gated)


# ------------------------------------------------------------------------------------------------- second look


def drained(**facts: Any) -> Machine:
    return out(State.DRAINED, **facts)


def test_a_drained_machine_gets_its_permit_while_the_gate_passes() -> None:
    m = drained()
    s = world(QUERY, values={"errors": GOOD}, machines=[m, machine("m2")], asking=[asks(m)])
    assert decide(s).permits["m1"].granted


def test_a_block_between_drain_and_permit_brings_the_machine_back_to_rest() -> None:
    m = drained()
    s = world(QUERY, values={"errors": BAD}, machines=[m, machine("m2")], asking=[asks(m)])
    step = step_of(decide(s))
    assert step is not None
    assert step.after is not None
    assert (step.after.state, step.after.turned_back) == (State.ENABLING, 1)
    assert "gate errors blocks" in step.after.cause


@pytest.mark.parametrize(
    ("age", "since", "back"), [(30, 30, False), (151, 5, False), (151, 11, True), (200, 160, True)]
)
def test_an_unknown_refuses_the_permit_and_brings_back_only_when_it_lasts(age: float, since: float, back: bool) -> None:
    m = drained(since=NOW - age)
    s = world(
        QUERY,
        values={"errors": None},
        machines=[m],
        asking=[asks(m)],
        gate_since={"errors": Held("unknown", NOW - since, NOW - since)},
    )
    decision = decide(s)
    step = step_of(decision)
    assert (step is not None) == back
    assert not decision.permits["m1"].granted
    assert not decision.permits["m1"].wait


def test_right_after_the_drain_the_request_is_kept_until_the_gate_is_read_again() -> None:
    m = drained(since=NOW - 0.5)
    s = world(QUERY, values={"errors": GOOD}, machines=[m], asking=[asks(m)])
    decision = decide(s)
    assert step_of(decision) is None
    assert (decision.permits["m1"].granted, decision.permits["m1"].wait) == (False, True)
    halted = world(
        QUERY,
        values={"errors": GOOD},
        machines=[m],
        asking=[asks(m)],
        policy=Policy(gates=(QUERY,), open_racks=1),
        racks={},
    )
    assert not decide(halted).permits["m1"].wait


def test_a_renewal_keeps_the_rack_lock_for_the_next_machine() -> None:
    fresh = [machine("m1", since=NOW - 0.5, outcomes={"k1": "rebooted"}), machine("m2")]
    assert decide(world(QUERY, values={"errors": GOOD}, machines=fresh)).unlocks == ()
    stale = [machine("m1", since=NOW - 0.5, outcomes={"k1": "rebooted"}), machine("m2")]
    assert decide(world(QUERY, values={"errors": BAD}, machines=stale, at=NOW - 0.1)).unlocks == ("r1",)


@given(st.integers(1, 60))
def test_a_machine_that_a_gate_turned_back_rests_longer_each_time_and_never_for_ever(times: int) -> None:
    m = machine(turned_back=times, turned_back_at=NOW)
    assert resting(m, NOW + 30) is not None
    assert resting(m, NOW + 3601) is None
    assert resting(m, NOW - 10_000) is None
    assert (resting(m, NOW + 61) is None) == (times == 1)


def test_a_resting_machine_says_so_and_others_go() -> None:
    machines = [machine("m1", turned_back=2, turned_back_at=NOW - 30), machine("m2")]
    s = world(QUERY, values={"errors": GOOD}, machines=machines)
    assert taken(s) == ["m2"]
    assert any("goes again in 90 s" in b.what for b in decide(s).reasons["m1"])


def test_a_gate_is_overdue_after_its_max_block() -> None:
    held = {"errors": Held("block", NOW - 10, NOW - QUERY.max_block - 1), "pages": Held("pass", NOW - 1e6)}
    assert overdue(world(QUERY, ALERTS, gate_since=held)) == {"errors": NOW - QUERY.max_block - 1}


def test_of_two_servers_that_are_well_none_goes() -> None:
    """Autopilot took the dead third one out of raft: what is left is well, and may not lose anybody."""
    left = Servers(members={"m1": "", "m2": ""}, tolerance=0)
    s = world(SERVERS, values={"servers": left}, machines=[machine("m1"), machine("m2")])
    assert not taken(s)
    assert kinds(decide(s), "m1") == kinds(decide(s), "m2") == ["gate"]
    assert "none of them may fail" in decide(s).reasons["m1"][0].what


def test_a_machine_that_left_the_catalog_is_unavailable_though_its_agent_reports() -> None:
    """The server that autopilot removed: its node is gone, and with it the check that said that it had failed."""
    group = (Quorum(name="consul", selector=parse_selector("role=consul")),)
    racked = {f"m{n}": f"r{n}" for n in (1, 2, 3)}
    machines = [machine(name, rack, labels={"role": "consul"}) for name, rack in racked.items()]
    s = world(machines=machines, policy=Policy(quorums=group), gone={"m2": NOW - 9}, racks={"r1": OURS})
    assert not taken(s)
    (blocker,) = (b for b in decide(s).reasons["m1"] if b.kind == "quorum")
    assert ("m2" in blocker.what, blocker.since) == (True, NOW - 9)
    assert "failing" in kinds(decide(s), "m2")
    s = world(policy=Policy(), gone={"m2": NOW - 9})
    assert not taken(s)
    assert "catalog does not have it" in decide(s).reasons["m1"][0].what

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from rebootd.core.decide import decide
from rebootd.core.decision import Guard, Lane
from rebootd.core.errors import InvalidInput
from rebootd.core.model import Cycle, CycleState, State
from rebootd.core.operations_cycles import start_cycle
from rebootd.core.operations_inputs import Because
from rebootd.core.policy import Policy, parse_policy
from tests.core.worlds import CLOSED, HALT, NOW, OTHER, OURS, asks, cycle, hold, kinds, machine, out, snapshot, step_of

S = State
ALICE = Because(by="alice", reason="CVE-2026-1")
URGENT: dict[str, Any] = {"emergency": True, "by": "alice", "reason": "CVE-2026-1", "skip_gates": ("errors",)}
GATES = parse_policy("""
windows: {required: true}
gates:
  - {name: errors, kind: prometheus, address: "http://127.0.0.1:9", query: up, holds_when: "== 1"}
  - {name: consul, kind: consul-quorum}
""")


def test_it_goes_outside_of_windows_and_with_a_mad_clock() -> None:
    world = snapshot(machine(), cycles=[cycle(**URGENT)], policy=CLOSED, clock_skew=999.0)
    step = step_of(decide(world))
    assert step is not None
    assert step.lane is Lane.OUT
    (event,) = step.events
    assert event.detail == "EMERGENCY by alice: CVE-2026-1; it skips windows and the gates errors"


def test_other_cycles_do_not() -> None:
    assert kinds(decide(snapshot(machine(), cycles=[cycle()], policy=CLOSED, clock_skew=999.0))) == ["clock", "window"]


def test_both_at_once() -> None:
    machines = [machine("m1", labels={"a": "1"}), machine("m2", labels={"a": "2"})]
    cycles = [cycle("calm", selector="a=1"), cycle("urgent", selector="a=2", **URGENT)]
    decision = decide(snapshot(*machines, cycles=cycles, policy=CLOSED))
    assert [s.name for s in decision.steps] == ["m2"]
    assert "window" in kinds(decision, "m1")


def test_it_does_not_wait_for_the_window_of_an_older_cycle_over_the_same_machines() -> None:
    cycles = [cycle("calm", created=NOW - 900), cycle("urgent", created=NOW, **URGENT)]
    step = step_of(decide(snapshot(machine(), cycles=cycles, policy=CLOSED)))
    assert step is not None
    assert step.after is not None
    assert step.after.cycle == "urgent"
    # One that is paused gives way to the others as any cycle does.
    paused = [cycles[0], msgspec.structs.replace(cycles[1], state=CycleState.PAUSED)]
    assert kinds(decide(snapshot(machine(), cycles=paused, policy=CLOSED))) == ["window"]


def test_its_permit_is_given_outside_of_windows_and_says_so() -> None:
    m = out(S.DRAINED)
    world = snapshot(m, cycles=[cycle(**URGENT)], policy=CLOSED, racks={"r1": OURS}, asking=[asks(m)])
    decision = decide(world)
    assert decision.permits["m1"].granted
    step = step_of(decision)
    assert step is not None
    assert step.guards == frozenset(Guard)
    assert step.events[-1].detail.startswith("EMERGENCY by alice: CVE-2026-1")


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        ({"halt": HALT}, "halt"),
        ({"faults": ("Consul is slow",)}, "store"),
        ({"racks": {"r1": OTHER}}, "rack-lock"),
        ({"racks": {"r9": OTHER}}, "racks"),
        ({"silent": ["m1"]}, "unseen"),
        ({"conflicts": {"m1": "two machines"}}, "conflict"),
        ({"policy": parse_policy("limits: [{name: all, selector: '*', max: 0}]")}, "limit"),
    ],
)
def test_it_passes_nothing_else(facts: dict[str, Any], kind: str) -> None:
    given: dict[str, Any] = {"cycles": [cycle(**URGENT)], "policy": CLOSED}
    decision = decide(snapshot(machine(), **(given | facts)))
    assert not [s for s in decision.steps if s.lane is Lane.OUT]
    assert kind in kinds(decision)


def test_a_pause_and_a_hold_stop_it_too() -> None:
    paused = decide(snapshot(machine(), cycles=[cycle(state=CycleState.PAUSED, **URGENT)], policy=CLOSED))
    assert kinds(paused) == ["cycle"]
    m = out(S.DRAINED)
    held = decide(
        snapshot(m, cycles=[cycle(**URGENT)], holds=[hold("rack", "r1")], racks={"r1": OURS}, asking=[asks(m)])
    )
    assert not held.permits["m1"].granted


def test_unread_gates_hold_back_unless_they_are_named() -> None:
    calm = decide(snapshot(machine(), cycles=[cycle()], policy=GATES))
    assert kinds(calm).count("gate") == 2
    named = decide(snapshot(machine(), cycles=[cycle(**URGENT)], policy=GATES))
    assert kinds(named) == ["gate"], "the quorum's gate stays"
    forged = decide(
        snapshot(machine(), cycles=[cycle(**(URGENT | {"skip_gates": ("errors", "consul")}))], policy=GATES)
    )
    assert kinds(forged) == ["gate"], "a quorum is never skipped, whatever the record says"


def started(because: Because = ALICE, **facts: Any) -> tuple[Cycle, str]:
    given: dict[str, Any] = {"cycle_id": "k9", "selector": "*", "emergency": True}
    change = start_cycle(snapshot(machine(), policy=GATES), because=because, **(given | facts))
    value = change.writes[0].value
    assert value is not None
    return msgspec.json.decode(value, type=Cycle), change.events[0].detail


def test_starting_one_is_told_with_who_and_why() -> None:
    made, told = started(skip_gates=["errors", "errors"])
    assert (made.emergency, made.skip_gates) == (True, ("errors",))
    assert "EMERGENCY by alice: CVE-2026-1; it skips windows and the gates errors" in told
    made, told = started(emergency=False)
    assert (made.emergency, made.skip_gates) == (False, ())
    assert "EMERGENCY" not in told


@pytest.mark.parametrize(
    ("facts", "because", "field"),
    [
        ({}, Because(by="alice"), "reason"),
        ({}, Because(by="alice", reason="   "), "reason"),
        ({"emergency": False, "skip_gates": ["errors"]}, ALICE, "skip_gates"),
        ({"skip_gates": ["eror"]}, ALICE, "skip_gates[0]"),
        ({"skip_gates": ["errors", "consul"]}, ALICE, "skip_gates[1]"),
        ({"skip_gates": ["../x"]}, ALICE, "skip_gates[0]"),
    ],
)
def test_what_it_must_say(facts: dict[str, Any], because: Because, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        started(because, **facts)
    assert caught.value.field == field


def test_a_cycle_of_before_decodes_as_calm() -> None:
    made = msgspec.json.decode(b'{"id":"k","selector":"*","created":1.0}', type=Cycle)
    assert (made.emergency, made.skip_gates) == (False, ())
    assert Policy().gates == ()

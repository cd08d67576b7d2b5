"""How machines reboot: what the policy and the cycle say, and what proves that it was done."""

from __future__ import annotations

from typing import Any

import pytest

from rebootd.core.decide import decide
from rebootd.core.directives import directive_for
from rebootd.core.errors import InvalidInput
from rebootd.core.model import Machine, Permit, State
from rebootd.core.operations_cycles import start_cycle
from rebootd.core.operations_inputs import Because
from rebootd.core.policy import parse_policy, render_policy
from tests.core.worlds import NOW, cycle, machine, out, seen, snapshot, step_of

POLICY = parse_policy("reboot: {methods: [{machines: role=web, method: soft-reboot}, {machines: '*', method: kexec}]}")


def taken_out(m: Machine, **cycle_facts: Any) -> Machine:
    step = step_of(decide(snapshot(m, cycles=[cycle(**cycle_facts)], policy=POLICY)))
    assert step is not None
    assert step.after is not None
    return step.after


@pytest.mark.parametrize(
    ("role", "asked", "method"),
    [("web", "", "soft-reboot"), ("db", "", "kexec"), ("web", "reboot", "reboot"), ("db", "custom", "custom")],
)
def test_the_cycle_decides_then_the_first_rule_that_fits(role: str, asked: str, method: str) -> None:
    m = taken_out(machine(labels={"role": role}), method=asked)
    assert m.method == method
    for state in (State.DRAINING, State.DRAINED, State.REBOOTING):
        told = directive_for(out(state, method=m.method), "m1-b1", 4, held=False, conflict=False)
        assert told is not None
        assert told.method == method


def test_without_a_rule_each_host_does_as_it_is_set_up() -> None:
    step = step_of(decide(snapshot(machine(), cycles=[cycle()])))
    assert step is not None
    assert step.after is not None
    assert step.after.method == ""


@pytest.mark.parametrize(
    ("method", "boot", "state"),
    [
        ("reboot", "m1-b2", State.VERIFYING),
        ("kexec", "m1-b2", State.VERIFYING),
        ("reboot", "m1-b1+1", State.QUARANTINED),
        ("kexec", "m1-b1+1", State.QUARANTINED),
        ("soft-reboot", "m1-b1+1", State.VERIFYING),
        ("soft-reboot", "m1-b2", State.VERIFYING),
        ("custom", "m1-b1+1", State.VERIFYING),
        ("", "m1-b1+1", State.VERIFYING),
    ],
)
def test_a_boot_proves_the_method_that_was_asked_for(method: str, boot: str, state: State) -> None:
    m = out(State.REBOOTING, method=method)
    step = step_of(decide(snapshot(m, cycles=[cycle()], observed={"m1": seen(m, boot_id=boot, index=0)})))
    assert step is not None
    assert step.after is not None
    assert (step.after.state, step.after.boot_id) == (state, boot)


def test_a_second_soft_reboot_is_told_from_the_first() -> None:
    m = out(State.REBOOTING, boot_id="b+1", permit=Permit("b+1", "nonce-1", NOW + 30, 1), method="soft-reboot")
    step = step_of(decide(snapshot(m, cycles=[cycle()], observed={"m1": seen(m, boot_id="b+2", index=0)})))
    assert step is not None
    assert step.after is not None
    assert (step.after.state, step.after.planned) == (State.VERIFYING, True)


def start(**facts: Any) -> None:
    start_cycle(snapshot(machine()), cycle_id="k", selector="*", because=Because("a", "b"), **facts)


def test_a_cycle_names_a_method_that_exists_and_can_reach_its_target() -> None:
    start(method="kexec", target="kernel=6.12.9")
    start(method="soft-reboot", target="role=web")
    with pytest.raises(InvalidInput, match="a method that starts a kernel"):
        start(method="soft-reboot", target="kernel=6.12.9")
    with pytest.raises(InvalidInput, match="one of reboot, kexec"):
        start(method="hard")


def test_the_policy_is_written_as_it_was_read() -> None:
    assert parse_policy(render_policy(POLICY)) == POLICY
    with pytest.raises(InvalidInput) as error:
        parse_policy("reboot: {methods: [{machines: '*', method: hard}]}")
    assert error.value.field == "reboot.methods[0].method"

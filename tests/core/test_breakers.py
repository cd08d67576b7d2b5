from __future__ import annotations

from typing import Any

import pytest

from rebootd.core.breakers import Breakers
from rebootd.core.decide import decide
from rebootd.core.decision import Lane
from rebootd.core.errors import InvalidInput
from rebootd.core.model import Machine, State
from rebootd.core.operations import clear_quarantine
from rebootd.core.operations_inputs import Because
from rebootd.core.policy import Policy, parse_policy
from rebootd.core.policy_failures import Breaker, Failures
from tests.core.worlds import NOW, OURS, PASSED, asks, cycle, hold, kinds, machine, out, seen, snapshot, step_of

S = State
ALICE = Because(by="alice", reason="new firmware")


def broken(name: str, at: float = NOW - 60, **facts: Any) -> Machine:
    """A machine that went to quarantine at a time; in a rack of its own, so that racks are not shared."""
    given: dict[str, Any] = {"labels": {"model": "x1"}, "since": at, "evidence": "it did not come back"}
    return machine(name, f"rack-{name}", S.QUARANTINED, **(given | facts))


def policy(**facts: Any) -> Policy:
    given: dict[str, Any] = {"failures": 3, "within": 600.0}
    return Policy(failures=Failures(breaker=Breaker(**(given | facts))))


def three(**facts: Any) -> list[Machine]:
    return [broken(f"f{n}", NOW - 100 * n, **facts) for n in (1, 2, 3)]


def test_failures_that_share_a_value_hold_back_that_value_and_no_other() -> None:
    alike, other = machine("m1", labels={"model": "x1"}), machine("m2", "r2", labels={"model": "x2"})
    bare = machine("m3", "r3")
    decision = decide(snapshot(*three(), alike, other, bare, policy=policy(), cycles=[cycle()]))
    assert step_of(decision, "m1") is None
    assert "breaker" in kinds(decision, "m1")
    assert "breaker" not in kinds(decision, "m2")
    assert "breaker" not in kinds(decision, "m3")
    blocker = next(b for b in decision.reasons["m1"] if b.kind == "breaker")
    assert "model=x1" in blocker.what
    assert all(f"f{n}" in blocker.what for n in (1, 2, 3))
    assert "quarantine clear f3" in blocker.clears
    assert blocker.since == NOW - 100
    assert [s.name for s in decision.steps if s.lane is Lane.OUT] == ["m2"]


@pytest.mark.parametrize("spread", [299, 300, 301])
def test_they_must_have_failed_within_the_time(spread: float) -> None:
    failed = [broken("f1", NOW - 1000), broken("f2", NOW - 900), broken("f3", NOW - 1000 + 2 * spread)]
    assert bool(Breakers(snapshot(*failed, policy=policy())).open) == (2 * spread <= 600)


def test_it_does_not_age_while_the_machines_are_quarantined() -> None:
    failed = [broken(f"f{n}", NOW - 30 * 86400 - n) for n in (1, 2, 3)]
    assert [b.value for b in Breakers(snapshot(*failed, policy=policy())).open] == ["x1"]
    assert not Breakers(snapshot(*failed, policy=policy(lasts=86400.0))).open
    assert Breakers(snapshot(*failed, policy=policy(lasts=31 * 86400.0))).open


def test_clearing_one_of_them_closes_it() -> None:
    world = snapshot(*three(), machine(labels={"model": "x1"}), policy=policy(), cycles=[cycle()])
    assert Breakers(world).open
    (step,) = clear_quarantine(world, "f2", ALICE).steps
    assert step.after is not None
    cleared = snapshot(
        *(step.after if m.name == "f2" else m for m in world.machines.values()), policy=policy(), cycles=[cycle()]
    )
    assert not Breakers(cleared).open


@pytest.mark.parametrize("label", ["kernel", "chassis"])
def test_kernel_and_chassis_are_the_machines_own(label: str) -> None:
    failed = three(**{label: "same"})
    found = Breakers(snapshot(*failed, policy=policy(labels=(label,)))).open
    assert [(b.label, b.value, b.failed) for b in found] == [(label, "same", ("f3", "f2", "f1"))]


def test_a_value_that_is_absent_is_shared_with_nobody() -> None:
    assert not Breakers(snapshot(*three(labels={}), policy=policy())).open


def test_no_labels_and_no_breaker() -> None:
    assert not Breakers(snapshot(*three(), policy=policy(labels=()))).open


def test_a_drained_machine_comes_back_instead_of_rebooting() -> None:
    m = out(S.DRAINED, labels={"model": "x1"})
    world = snapshot(*three(), m, policy=policy(), cycles=[cycle()], racks={"r1": OURS}, asking=[asks(m)])
    decision = decide(world)
    step = step_of(decision)
    assert step is not None
    assert step.after is not None
    assert step.after.state is S.ENABLING
    assert "model=x1" in step.after.cause


def test_a_hold_is_not_held_back() -> None:
    m = machine(labels={"model": "x1"})
    step = step_of(decide(snapshot(*three(), m, policy=policy(), holds=[hold("machine", "m1")])))
    assert step is not None
    assert step.lane is Lane.OUT


def test_machines_that_are_out_come_back_all_the_same() -> None:
    m = out(S.VERIFYING, labels={"model": "x1"})
    world = snapshot(*three(), m, policy=policy(), cycles=[cycle()], observed={"m1": seen(m, boot_check=PASSED)})
    step = step_of(decide(world))
    assert step is not None
    assert step.after is not None
    assert step.after.state is S.ENABLING


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("failures: {breaker: {failures: 1}}", "failures.breaker.failures"),
        ("failures: {breaker: {labels: [a, b, a]}}", "failures.breaker.labels[2]"),
        ("failures: {breaker: {labels: [a b]}}", "failures.breaker.labels[0]"),
        ("failures: {breaker: {labels: kernel}}", "failures.breaker.labels"),
        ("failures: {breaker: {within: 0s}}", "failures.breaker.within"),
        ("failures: {retry: {drains: 6}}", "failures.retry.drains"),
        ("failures: {retry: {after: 0s}}", "failures.retry.after"),
        ("failures: {flapping: {boots: 16}}", "failures.flapping.boots"),
        ("failures: {power: {address: 'https://bmc'}}", "failures.power.address"),
        ("failures: {power: {address: 'https://{host}'}}", "failures.power.address"),
        ("failures: {power: {address: 'ftp://{name}'}}", "failures.power.address"),
        ("failures: {power: {address: 'https://{name}/x'}}", "failures.power.address"),
        ("failures: {power: {address: 'https://u:p@{name}'}}", "failures.power.address"),
        ("failures: {power: {at_once: 0}}", "failures.power.at_once"),
        ("failures: {power: {cap: 1}}", "failures.power.cap"),
        ("failures: {repeat: maybe}", "failures.repeat"),
        ("failures: {breakers: {}}", "failures.breakers"),
    ],
)
def test_bad_input_names_its_field(text: str, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_policy(text)
    assert caught.value.field == field

"""Who can clear what is in the way: named as it is, not as it mostly is (S8)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rebootd.core.decide import decide
from rebootd.core.model import State
from rebootd.core.policy import parse_policy
from tests.core.worlds import OTHER, OURS, cycle, machine, out, snapshot

if TYPE_CHECKING:
    from rebootd.core.model import Machine


def clears(kind: str, *more: Machine, policy: str = "{}", **facts: Any) -> str:
    """Who clears the blocker of that kind of the machine m1 in rack r1."""
    machines = [machine("m1", "r1"), machine("m2", "r2"), *more]
    reasons = decide(snapshot(*machines, cycles=[cycle()], policy=parse_policy(policy), **facts)).reasons
    [found] = [b for b in reasons["m1"] if b.kind == kind]
    return found.clears


def test_racks_that_others_hold_are_cleared_by_them() -> None:
    assert clears("racks", racks={"r2": OTHER}) == "whoever holds the lock of r2"
    assert clears("rack-lock", racks={"r1": OTHER}) == "whoever holds that lock"


def test_racks_that_we_work_on_are_cleared_by_time() -> None:
    busy = out(State.REBOOTING, "m3", "r3")
    assert clears("racks", busy, racks={"r3": OURS}) == "the open rack, when its last machine is back"
    said = clears("racks", busy, policy="racks: {open: 2}", racks={"r3": OURS, "r2": OTHER})
    assert said == "the open rack, when its last machine is back; or whoever holds the lock of r2"


def test_a_limit_that_means_never_is_cleared_by_another_policy_alone() -> None:
    assert clears("limit", policy="racks: {unavailable: 0}") == "an operator: rebootctl policy apply"
    assert clears("limit", machine("m4", "r1", State.HELD)) == "machines coming back"

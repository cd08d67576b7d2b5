from __future__ import annotations

from msgspec.structs import replace

from rebootd.coordinator.lull import Lull
from rebootd.core.model import State
from rebootd.core.wake import LONGEST
from tests.core.worlds import NOW, machine, out, seen, snapshot

M1 = machine("m1")
QUIET = snapshot(M1, observed={"m1": seen(M1, at=NOW)}, leading_since=NOW - 3600)


def lull() -> Lull:
    made = Lull()
    made.judged(QUIET, idle=True)
    return made


def test_it_begins_with_a_decision_that_changes_nothing() -> None:
    made = Lull()
    assert not made.lasts(QUIET)
    made.judged(QUIET, idle=False)
    assert not made.lasts(QUIET)
    made.judged(QUIET, idle=True)
    assert made.lasts(replace(QUIET, now=NOW + 1))


def test_it_ends_with_any_news() -> None:
    made = lull()
    assert not made.lasts(replace(QUIET, now=NOW + 1, machines={"m1": replace(M1, state=State.HELD)}))
    assert not made.lasts(replace(QUIET, now=NOW + 1, faults=("the watch broke",)))
    made.end()
    assert not made.lasts(replace(QUIET, now=NOW + 1))


def test_it_ends_by_itself() -> None:
    assert not lull().lasts(replace(QUIET, now=NOW + LONGEST))


def test_who_calls_again_in_time_is_not_missed() -> None:
    silent = replace(QUIET, observed={"m1": seen(M1, at=NOW - QUIET.policy.unreachable_after + 10)})
    made = Lull()
    made.judged(silent, idle=True)
    assert made.lasts(replace(silent, now=NOW + 5))
    assert not made.lasts(replace(silent, now=NOW + 11))
    assert made.lasts(replace(silent, now=NOW + 12, observed={"m1": seen(M1, at=NOW + 11)}))


def test_a_deadline_ends_it_to_the_second() -> None:
    rebooting = out(State.REBOOTING, since=NOW - 880)
    world = snapshot(rebooting, leading_since=NOW - 3600)
    made = Lull()
    made.judged(world, idle=True)
    assert made.lasts(replace(world, now=NOW + 19))
    assert not made.lasts(replace(world, now=NOW + 20))

"""Every fact that a report has and its record not is taken over, by machines in service and by those that are out."""

from __future__ import annotations

from typing import Any

import pytest

from rebootd.core.decide import decide
from rebootd.core.hearing import facts_of
from rebootd.core.model import State
from rebootd.core.wire import Tri
from tests.core.worlds import machine, out, report, seen, snapshot

NEWS: dict[str, Any] = {
    "kernel": "6.99.0",
    "chassis": "another",
    "labels": {"role": "news"},
    "reboot_required": Tri.YES,
    "reboot_reasons": ("a new kernel",),
    "announced": True,
}


def test_all_facts_are_here() -> None:
    assert facts_of(report(machine())).keys() == NEWS.keys()


@pytest.mark.parametrize("state", [State.IN_SERVICE, State.HELD, State.VERIFYING, State.QUARANTINED])
@pytest.mark.parametrize("fact", sorted(NEWS))
def test_each_fact_is_taken_over(fact: str, state: State) -> None:
    m = machine("m1") if state is State.IN_SERVICE else out(state, "m1")
    decision = decide(snapshot(m, observed={"m1": seen(m, **{fact: NEWS[fact]})}))
    (step,) = [s for s in decision.steps if s.name == "m1"]
    assert step.after is not None
    assert getattr(step.after, fact) == NEWS[fact]

"""Which cycles wait for a record that cannot be read: those that may still want its machine."""

from __future__ import annotations

import pytest

from rebootd.core.decide import decide
from rebootd.core.model import Aside, CycleState, Machine, State
from tests.core.worlds import NOW, cycle, machine, out, snapshot

DONE = {"k1": "rebooted"}
CASES: dict[str, tuple[Machine | None, dict[str, str], bool]] = {
    "never read": (None, {}, True),
    "in service, not done": (machine("a"), {}, True),
    "done": (machine("a", outcomes=DONE), {}, False),
    "on its way": (out(State.DRAINED, "a"), {}, True),
    "on its way back": (out(State.ENABLING, "a", outcomes=DONE), {}, True),
    "not selected": (machine("a"), {"selector": "role=web"}, False),
    "selected": (machine("a", labels={"role": "web"}), {"selector": "role=web"}, True),
    "at the target": (machine("a", kernel="6.1"), {"target": "kernel=6.1"}, False),
    "quarantined": (machine("a", state=State.QUARANTINED), {}, True),
    "paused": (machine("a"), {"state": CycleState.PAUSED}, True),
}


@pytest.mark.parametrize("case", CASES)
def test_who_is_waited_for(case: str) -> None:
    last, facts, waits = CASES[case]
    k1 = cycle(**facts)
    aside = Aside(name="a", rack="r1", error="oops", since=NOW - 9, last=last)
    decision = decide(snapshot(machine("m1", outcomes=DONE), cycles=[k1], asides={"a": aside}))
    ended = [c.id for c, _ in decision.cycles if c.state is CycleState.DONE]
    [told] = decision.reasons["a"]
    assert ended == ([] if waits or k1.state is CycleState.PAUSED else ["k1"])
    assert ("cycle k1 waits for it" in told.what) is waits
    assert "consul kv put" in told.clears
    assert told.since == NOW - 9

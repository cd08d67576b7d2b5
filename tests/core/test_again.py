"""What saves a decision: nothing can follow from most steps, and nothing from what was said before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from rebootd.core.again import leads_on
from rebootd.core.decide import decide
from rebootd.core.model import State
from rebootd.core.quiet import repeated
from tests.core import simulation
from tests.core.chaos import POLICIES, begin, disturb
from tests.core.simulation import Simulation
from tests.core.worlds import NOW, cycle, machine, out, report, seen, snapshot

if TYPE_CHECKING:
    from rebootd.core.decision import Decision
    from rebootd.core.model import Snapshot

ROUNDS = 400


def landed(world: Snapshot, decision: Decision) -> Snapshot:
    """The fleet once all steps are in the store and every question is answered."""
    machines = dict(world.machines) | {s.name: s.after for s in decision.steps if s.after is not None}
    return replace(world, machines=machines, asking={})


@pytest.mark.parametrize("seed", range(10))
def test_what_leads_to_nothing_leads_to_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    spared = 0

    def watched(world: Snapshot) -> Decision:
        nonlocal spared
        decision = decide(world)
        if decision.steps and not leads_on(decision):
            spared += 1
            after = decide(landed(world, decision))
            assert [*after.steps, *after.locks, *after.unlocks, *after.cycles, *after.power, *after.prune] == []
        return decision

    monkeypatch.setattr(simulation, "decide", watched)
    sim = Simulation(seed, POLICIES[seed % len(POLICIES)])
    begin(sim)
    for _ in range(ROUNDS):
        disturb(sim)
        sim.round(sim.rng.choice([1.0, 3.0, 5.0, 20.0]))
    assert spared > 0


@pytest.mark.parametrize("state", [State.ENABLING, State.REBOOTING])
def test_who_is_back_or_failed_leads_to_more(state: State) -> None:
    sent = out(state)
    others = machine("m2", "r1")
    done = seen(sent, boot_id="m1-b1", in_service=True, by_hand="console") if state is State.ENABLING else seen(sent)
    world = snapshot(sent, others, observed={"m1": done}, cycles=[cycle()], now=NOW + 5000, leading_since=NOW - 3600)
    decision = decide(world)
    assert [s.after.state for s in decision.steps if s.after is not None] != [state]
    assert leads_on(decision)


def test_a_first_machine_leads_to_the_next_ones_of_its_rack() -> None:
    decision = decide(snapshot(machine("m1"), machine("m2"), cycles=[cycle()]))
    assert [s.lock for s in decision.steps] == ["r1"]
    assert leads_on(decision)


def test_a_report_is_repeated_whatever_its_clock_says_and_whichever_step_it_has_heard_of() -> None:
    said = report(out(State.DRAINING))
    assert repeated(said, replace(said, clock=said.clock + 60, index=said.index + 1, wait=5.0))
    assert repeated(said, replace(said, doing="drain: drain.d", in_service=not said.in_service))


@pytest.mark.parametrize(
    "news",
    [
        {"boot_id": "b2"},
        {"kernel": "6.13"},
        {"in_service": True, "by_hand": "console"},
        {"announced": "reboot"},
        {"by_hand": "console"},
        {"labels": {"role": "db"}},
    ],
)
def test_news_are_not_repeated(news: dict[str, object]) -> None:
    said = report(out(State.DRAINING))
    assert not repeated(said, replace(said, **news))

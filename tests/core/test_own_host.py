"""The leader's own host goes last, and after somebody else leads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rebootd.core.decide import decide
from rebootd.core.forecast import run
from rebootd.core.model import State
from tests.core.worlds import OURS, cycle, machine, snapshot

if TYPE_CHECKING:
    from rebootd.core.decision import Decision

MACHINES = (machine("m1"), machine("m2", "r2"))


def decided(successors: frozenset[str] | None, **facts: object) -> Decision:
    given = {"leader_node": "m1", "successors": successors, "cycles": [cycle(selector="name=m1")]} | facts
    return decide(snapshot(*MACHINES, **given))  # type: ignore[arg-type]


def test_it_is_handed_over_before_the_own_host_goes() -> None:
    decision = decided(frozenset({"m2"}))
    assert (decision.hand_over, decision.steps) == ("m1", ())
    assert "m1" in decision.reasons


def test_nothing_happens_before_it_is_known_who_could_lead() -> None:
    decision = decided(None)
    assert (decision.hand_over, decision.steps) == ("", ())


@pytest.mark.parametrize("successors", [frozenset[str](), frozenset({"m1"})], ids=["nobody", "a-second-on-that-host"])
def test_without_a_successor_it_goes_while_it_leads(successors: frozenset[str]) -> None:
    decision = decided(successors)
    assert decision.hand_over == ""
    assert [step.name for step in decision.steps] == ["m1"]


def test_who_is_out_itself_is_no_successor() -> None:
    away = (machine("m1"), machine("m2", "r2", State.QUARANTINED))
    found = decide(snapshot(*away, leader_node="m1", successors=frozenset({"m2"}), cycles=[cycle(selector="name=m1")]))
    assert found.hand_over == ""


def test_as_long_as_others_go_first_nobody_hands_over() -> None:
    decision = decided(frozenset({"m2"}), cycles=[cycle()])
    assert decision.hand_over == ""
    assert [step.name for step in decision.steps] == ["m2"]


def test_what_keeps_the_own_host_in_keeps_leadership_where_it_is() -> None:
    decision = decided(frozenset({"m2"}), failing={"m1": "serfHealth is critical"})
    assert decision.hand_over == ""


def test_in_a_forecast_the_own_host_goes_like_any_other() -> None:
    world = snapshot(*MACHINES, leader_node="m1", successors=frozenset({"m2"}), cycles=[cycle()], racks={"r1": OURS})
    assert {planned.machine for planned in run(world).planned} == {"m1", "m2"}

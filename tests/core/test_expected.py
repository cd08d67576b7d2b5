"""Machines that Consul's catalog has and a new leader no record of: until it has settled they count as unavailable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from rebootd.core.amounts import Amount
from rebootd.core.decide import decide
from rebootd.core.policy import Limit, Policy
from rebootd.core.policy_gates import Quorum
from rebootd.core.selectors import parse_selector
from tests.core.worlds import NOW, cycle, machine, snapshot, step_of

if TYPE_CHECKING:
    from rebootd.core.model import Snapshot

DB = parse_selector("role=db")
LIMITED = Policy(limits=(Limit("db", DB, Amount(1)),))


def virgin(*, rack: str = "r1", leading: float = 5.0, **facts: Any) -> Snapshot:
    """A leader that has led for ``leading`` seconds and knows one of two machines."""
    given: dict[str, Any] = {"cycles": [cycle()], "leading_since": NOW - leading, "expected": {"m9": rack}}
    return snapshot(machine(labels={"role": "db"}), **(given | facts))


def test_its_rack_waits_for_it() -> None:
    world = virgin()
    decision = decide(world)
    assert step_of(decision) is None
    blockers = {b.kind: b for b in decision.reasons["m1"]}
    assert "m9" in blockers["settle"].what
    assert "m9" in blockers["limit"].what
    assert blockers["settle"].since == blockers["limit"].since == world.leading_since


def test_it_counts_in_every_limit_since_nobody_knows_its_labels() -> None:
    assert step_of(decide(virgin(rack="r2", policy=Policy()))) is not None
    decision = decide(virgin(rack="r2", policy=LIMITED))
    assert step_of(decision) is None
    assert [b.kind for b in decision.reasons["m1"]] == ["limit"]
    assert "m9" in decision.reasons["m1"][0].what


def test_it_may_be_a_member_of_a_quorum_group() -> None:
    servers = Policy(quorums=(Quorum(name="servers", selector=DB, allow_outage=True),))
    assert step_of(decide(virgin(rack="r2", policy=servers, expected={}))) is not None
    decision = decide(virgin(rack="r2", policy=servers))
    assert [b.kind for b in decision.reasons["m1"]] == ["quorum"]


@pytest.mark.parametrize("policy", [Policy(), LIMITED])
def test_once_the_leader_has_settled_it_counts_no_more(policy: Policy) -> None:
    assert step_of(decide(virgin(leading=policy.settle + 1, policy=policy))) is not None


def test_who_has_called_counts_by_what_it_said() -> None:
    new = machine("m9")
    world = virgin()
    seen = snapshot(world.machines["m1"], new).observed
    assert "settle" not in {b.kind for b in decide(replace(world, observed=seen)).reasons["m1"]}

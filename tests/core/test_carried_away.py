"""Machines whose rack or labels change by the same decision: racks, limits and quorum groups have other members."""

from __future__ import annotations

from rebootd.core.amounts import Amount
from rebootd.core.decide import decide
from rebootd.core.decision import Lane
from rebootd.core.model import State
from rebootd.core.policy import Limit, Policy
from rebootd.core.policy_gates import Quorum
from rebootd.core.selectors import parse_selector
from tests.core.worlds import OURS, cycle, machine, out, seen, snapshot


def test_who_leaves_a_rack_by_this_decision_is_no_member_of_it() -> None:
    """Found by ``tests/sim --profile fleet``, S2: of eight machines two may go (25 %), of seven only one."""
    members = [machine(f"m{i}") for i in range(8)]
    carried = {"m7": seen(members[7], rack="r2")}
    policy = Policy(rack_unavailable=Amount(25, percent=True), open_racks=2)
    world = snapshot(*members, observed=carried, cycles=[cycle()], racks={"r1": OURS}, policy=policy)
    decision = decide(world)
    moved = [s.after for s in decision.steps if s.name == "m7" and s.lane is Lane.BACK and s.after is not None]
    assert [m.rack for m in moved] == ["r2"]
    gone = [s.name for s in decision.steps if s.after is not None and s.after.state is State.DRAINING]
    assert len(gone) == policy.rack_unavailable.of(len(members) - 1) == 1


def test_who_loses_a_label_by_this_decision_counts_no_longer_for_its_limit() -> None:
    """As above: 25 % of eight databases are two, of seven only one."""
    members = [machine(f"m{i}", labels={"role": "db"}) for i in range(8)]
    turned = {"m7": seen(members[7], labels={"role": "web"})}
    limit = Limit("databases", parse_selector("role=db"), Amount(25, percent=True))
    policy = Policy(rack_unavailable=Amount(8), limits=(limit,))
    decision = decide(snapshot(*members, observed=turned, cycles=[cycle()], racks={"r1": OURS}, policy=policy))
    gone = [s.name for s in decision.steps if s.after is not None and s.after.state is State.DRAINING]
    # The one that is no database any more is bound by the rack alone.
    assert len([name for name in gone if name != "m7"]) == 1


ETCD = Policy(
    quorums=(Quorum(name="etcd", selector=parse_selector("role=etcd")),), rack_unavailable=Amount(9), open_racks=9
)


def test_who_leaves_a_quorum_group_by_this_decision_leaves_one_that_is_too_small() -> None:
    members = [machine(f"m{i}", labels={"role": "etcd"}) for i in range(3)]
    turned = {"m2": seen(members[2], labels={"role": "web"})}
    decision = decide(snapshot(*members, observed=turned, cycles=[cycle()], racks={"r1": OURS}, policy=ETCD))
    gone = [s.name for s in decision.steps if s.after is not None and s.after.state is State.DRAINING]
    assert gone in ([], ["m2"])
    assert "2 members" in decision.reasons["m0"][0].what


def test_who_joins_a_quorum_group_while_it_is_out_shuts_it() -> None:
    members = [machine(f"m{i}", labels={"role": "etcd"}) for i in range(3)]
    new = out(State.VERIFYING, "m3", labels={"role": "web"})
    turned = {"m3": seen(new, labels={"role": "etcd"})}
    decision = decide(snapshot(*members, new, observed=turned, cycles=[cycle()], racks={"r1": OURS}, policy=ETCD))
    assert [s.name for s in decision.steps if s.after is not None and s.after.state is State.DRAINING] == []
    assert "m3" in decision.reasons["m0"][0].what

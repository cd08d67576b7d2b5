"""Who counts as away, and which racks count as open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from rebootd.core.amounts import Amount
from rebootd.core.limits import Capacity, available, unheard
from rebootd.core.model import Aside, State
from rebootd.core.policy import Limit, Policy
from rebootd.core.selectors import parse_selector
from rebootd.core.states import WORKING
from tests.core.worlds import NOW, OTHER, OURS, machine, seen, snapshot

if TYPE_CHECKING:
    from rebootd.core.model import Machine

ALL = parse_selector("*")
DB = parse_selector("role=db")


def capacity(*machines: Machine, policy: Policy | None = None, **facts: Any) -> Capacity:
    return Capacity(snapshot(*machines, policy=policy or Policy(limits=(Limit("all", ALL, Amount(1)),)), **facts))


@pytest.mark.parametrize("state", State)
def test_every_state_but_in_service_counts_whatever_took_it_down(state: State) -> None:
    found = capacity(machine("m1", state=state), machine("m2"))
    away = [] if state is State.IN_SERVICE else ["m1"]
    assert found.racks["r1"].away == found.limits[0][1].away == away
    assert found.racks["r1"].full == found.limits[0][1].full == bool(away)
    assert not found.racks["r1"].over
    assert (found.racks["r1"].total, found.racks["r1"].maximum) == (2, 1)
    assert set(found.open) == ({"r1"} if state in WORKING else set())


@pytest.mark.parametrize(("ago", "heard"), [(0.0, True), (150.0, True), (150.1, False), (None, False)])
def test_silence_counts(ago: float | None, heard: bool) -> None:
    m = machine("m1")
    world = snapshot(m, silent=["m1"], observed={} if ago is None else {"m1": seen(m, at=NOW - ago)})
    assert unheard(world, "m1") != heard
    assert available(world, m) == heard
    assert Capacity(world).racks["r1"].away == ([] if heard else ["m1"])
    assert not Capacity(world).open


def test_an_identity_conflict_counts() -> None:
    m = machine("m1")
    assert capacity(m, conflicts={"m1": "two"}).racks["r1"].away == ["m1"]
    assert not available(snapshot(m, conflicts={"m1": "two"}), m)


def test_an_unreadable_record_counts_in_its_rack_and_in_every_limit() -> None:
    aside = Aside(name="m2", rack="r2", error="invalid JSON", since=NOW - 9)
    policy = Policy(limits=(Limit("all", ALL, Amount(50, True)), Limit("db", DB, Amount(1))))
    found = capacity(machine("m1"), policy=policy, asides={"m2": aside})
    assert found.racks["r2"].away == ["m2"]
    assert not found.racks["r1"].away
    assert [t.away for _, t in found.limits] == [["m2"], ["m2"]]
    assert [t.total for _, t in found.limits] == [2, 1]


@pytest.mark.parametrize(
    ("amount", "total", "maximum"),
    [
        (Amount(1), 10, 1),
        (Amount(0), 10, 0),
        (Amount(25, True), 3, 1),
        (Amount(25, True), 7, 1),
        (Amount(25, True), 8, 2),
        (Amount(100, True), 3, 3),
        (Amount(0, True), 9, 0),
    ],
)
def test_per_cents_round_down_but_to_one_unless_written_0(amount: Amount, total: int, maximum: int) -> None:
    machines = [machine(f"m{n}") for n in range(total)]
    found = capacity(*machines, policy=Policy(rack_unavailable=amount))
    assert found.racks["r1"].maximum == maximum
    assert found.racks["r1"].full == (maximum == 0)


def test_a_limit_counts_only_its_members() -> None:
    db = [machine(f"d{n}", state=State.HELD, labels={"role": "db"}) for n in (1, 2)]
    web = machine("w1", labels={"role": "web"})
    found = capacity(*db, web, policy=Policy(limits=(Limit("db", DB, Amount(1)),)))
    ((_, tally),) = found.limits
    assert (tally.total, tally.away, tally.over) == (2, ["d1", "d2"], True)
    assert found.limits_of(db[0]) == [tally]
    assert found.limits_of(web) == []
    assert tally.sentence() == "limit db: 2 unavailable, at most 1 of 2 allowed (d1, d2)"


def test_a_sentence_names_a_few_and_counts_the_rest() -> None:
    found = capacity(*(machine(f"m{n}", state=State.HELD, since=NOW - n) for n in range(9)))
    assert found.racks["r1"].sentence().endswith("(m0, m1, m2, m3, m4 and 4 more)")
    assert found.racks["r1"].since() == NOW - 8


def test_open_racks() -> None:
    found = capacity(
        machine("m1", "r1", State.DRAINED),
        machine("m2", "r2", State.QUARANTINED),
        machine("m3", "r3", State.HELD),
        machine("m4", "", State.VERIFYING),
        machine("m5", "r5"),
        racks={"r1": OURS, "r4": OTHER, "r5": OURS, "r6": OTHER},
    )
    assert set(found.open) == {"r1", "r4", "r5", "r6"}
    assert found.open["r1"] == "m1 is drained"
    assert found.open["r4"] == "locked by session s-other on switch-admin"


def test_what_is_added_counts_for_the_next() -> None:
    m1, m2 = machine("m1"), machine("m2", "r2")
    found = capacity(m1, m2)
    found.add(m1)
    assert found.racks["r1"].full
    assert found.limits[0][1].full
    assert "m1" in found.open["r1"]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("after", State)
def test_what_a_step_shows_counts_once(after: State, known: bool) -> None:
    before = machine("m1") if known else None
    found = capacity(*([before] if before else []), machine("m2"))
    found.note(before, machine("m1", state=after))
    away = [] if after is State.IN_SERVICE else ["m1"]
    assert found.racks["r1"].away == found.limits[0][1].away == away
    assert ("r1" in found.open) == (after in WORKING)


def test_what_was_away_already_is_not_counted_twice() -> None:
    held, silent = machine("m1", state=State.HELD), machine("m2")
    found = capacity(held, silent, silent=["m2"])
    found.note(held, replace(held, state=State.ENABLING))
    found.note(silent, replace(silent, state=State.VERIFYING))
    found.note(held, None)
    assert found.racks["r1"].away == ["m1", "m2"]
    assert "r1" in found.open


def test_a_step_in_a_rack_that_nobody_knew_opens_it() -> None:
    found = capacity(machine("m1"))
    found.note(None, machine("m9", "r9", State.VERIFYING))
    assert found.open == {"r9": "m9 is verifying"}
    assert found.limits[0][1].away == ["m9"]

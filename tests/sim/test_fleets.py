"""Whole fleets in the simulation: what they are made of, that they end well, and that they can fail."""

from __future__ import annotations

from collections import Counter

import pytest

from rebootd.core.policy import parse_policy
from tests.sim.enough import LEAST_OF_FLEETS, too_few
from tests.sim.fleets import BLOCK, EVERY, FLEET, whole_fleet
from tests.sim.planted import plant
from tests.sim.run import prepare, run_seed


def test_fleets_are_large_and_their_faults_many() -> None:
    for seed in range(20):
        plan = whole_fleet(seed)
        assert plan == whole_fleet(seed)
        assert 30 <= len(plan.labels) <= 120
        assert parse_policy(plan.policy).open_racks >= 2
        drawn = [f for f in plan.faults if f.kind not in {"again", "care"}]
        assert len(drawn) >= plan.faults_for / EVERY
        assert {int(f.at / BLOCK) for f in drawn} == set(range(int(plan.faults_for / BLOCK)))


@pytest.mark.slow
def test_a_whole_fleet_goes_through_cycle_after_cycle() -> None:
    prepare()
    outcome = run_seed(QUICK, profile=FLEET)
    assert outcome.ok, outcome.violation
    assert outcome.counts["reboots"] > 3 * len(whole_fleet(QUICK).labels)
    assert outcome.counts["leaderships"] > 5


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(20, 28))
def test_whole_fleets_end_well(seed: int) -> None:
    prepare()
    outcome = run_seed(seed, profile=FLEET)
    assert outcome.ok, outcome.violation


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("halt-ignored", "S6"),
        ("no-reasons", "S8"),
        pytest.param("limit-forgets-quarantined", "S2", marks=pytest.mark.slow),
    ],
)
def test_a_bug_shows_in_a_whole_fleet_too(name: str, found: str) -> None:
    prepare()
    with plant(name):
        assert run_seed(QUICK, profile=FLEET).name == found


def test_a_run_of_fleets_in_which_little_was_rebooted_proves_nothing() -> None:
    much = Counter({what: int(20 * share) for what, share in LEAST_OF_FLEETS.items()})
    assert too_few(much, 20, FLEET) == []
    for what in sorted(LEAST_OF_FLEETS):
        assert too_few(much - Counter({what: 1}), 20, FLEET) == [what]


QUICK = 0
"""A seed with few machines."""

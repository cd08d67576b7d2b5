from __future__ import annotations

from unittest import mock

import pytest

from rebootd.coordinator import follow, lull
from rebootd.core import directives
from tests.sim.month import MONTH, month_plan, paced
from tests.sim.run import quiet_logs, run_seed


def test_five_days_left_alone_end_well() -> None:
    quiet_logs()
    outcome = run_seed(3, plan=month_plan(3, days=5.0))
    assert outcome.ok, outcome.violation
    assert outcome.hours >= 5 * 24
    assert outcome.counts["reboots"] > 6
    assert outcome.counts["standing drains"] > 0
    assert outcome.counts["leaderships"] > 1


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(5))
def test_a_month_left_alone_ends_well(seed: int) -> None:
    quiet_logs()
    outcome = run_seed(seed, profile=MONTH)
    assert outcome.ok, outcome.violation
    assert outcome.hours >= 30 * 24
    assert outcome.counts["reboots"] > 20


def test_only_the_pauses_of_chores_are_stretched() -> None:
    before = follow.WATCH_WAIT, directives.IDLE_WAIT, directives.BUSY_WAIT
    with paced(month_plan(1, tempo=30.0)):
        assert (follow.WATCH_WAIT, directives.IDLE_WAIT, directives.BUSY_WAIT) == (900.0, 1800.0, 5.0)
    assert before == (follow.WATCH_WAIT, directives.IDLE_WAIT, directives.BUSY_WAIT)


def test_a_leader_that_sleeps_too_long_is_noticed() -> None:
    quiet_logs()
    with mock.patch.object(lull, "next_wake", return_value=1e12):
        found = [run_seed(seed, profile="operators").name for seed in range(6)]
    assert "LULL" in found

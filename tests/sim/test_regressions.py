"""Small plans with the few faults by which the simulation found a bug (docs/bugs.md)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sim.features import Features
from tests.sim.interrupted import run_cut, small_plan
from tests.sim.plan import Fault
from tests.sim.run import Outcome, quiet_logs, run_seed


def play(*faults: Fault, **changes: Any) -> Outcome:
    quiet_logs()
    plan = small_plan()
    plan.faults = list(faults)
    plan.failure_budget = 100
    for name, value in changes.items():
        setattr(plan, name, value)
    outcome = run_seed(plan.seed, plan=plan)
    assert outcome.ok, "\n".join([*outcome.log[-30:], outcome.violation])
    return outcome


def test_a_machine_in_service_that_loses_its_journal_comes_back() -> None:
    play(Fault(200.0, "bad-journal", "m1a"))


def test_a_record_that_is_made_anew_speaks_in_new_directives() -> None:
    play(Fault(200.0, "edit-record", "m1a"), Fault(322.0, "power-cut", "m1a"), faults_for=1200.0)


def test_a_host_that_comes_back_under_its_boot_id_reports_again() -> None:
    play(Fault(21.0, "same-id", "m1a"), faults_for=1500.0)


@pytest.mark.parametrize("kind", ["kill-leader", "session-ended"])
def test_a_machine_that_misses_its_target_makes_no_storm(kind: str) -> None:
    play(Fault(100.0, kind), target="kernel=never", faults_for=900.0)


def test_a_store_that_counts_anew_is_read_anew() -> None:
    outcome = play(Fault(45.0, "hold", "m2b", 100.0), Fault(60.0, "index-reset"), Fault(90.0, "raw-halt", "", 30.0))
    assert outcome.counts["leaderships"] > 1


@pytest.mark.parametrize("by", [-3700.0, 3700.0])
@pytest.mark.parametrize("whose", ["leader", "daemons"])
def test_a_leader_whose_clock_is_off_takes_nobody_out_for_a_cycle(whose: str, by: float) -> None:
    play(Fault(21.0, "clock-jump", whose, 800.0, by), faults_for=900.0, boot_seconds=(60.0, 90.0))


def test_a_machine_that_fails_after_its_boot_makes_no_storm() -> None:
    play(Fault(21.0, "post-boot-fails", "m1a", 800.0), faults_for=900.0)


def test_a_hold_that_is_written_anew_may_say_another_time() -> None:
    """The check of reasons (S8) took it for one reason whose time moves."""
    outcome = play(Fault(21.0, "ambush-hold", "verifying"), Fault(22.0, "ambush-hold", "held"), faults_for=200.0)
    assert outcome.counts["hit ambush-hold"] == 2


def test_a_machine_whose_times_are_edited_may_go_again() -> None:
    """The check of the standing cycle counted from what had happened, and the leader from what the record says."""
    outcome = play(
        Fault(100.002, "edit-stamps", "m1a"),
        Fault(120.0, "hold", "m1a", 20.0),
        Fault(160.0, "reboot-required", "m1a"),
        policy="standing: {enabled: true, every: 2h}\nsettle: 20s\n",
        features=Features(standing=True),
        required={"m1a"},
        cycle_at=1e9,
        faults_for=900.0,
    )
    assert outcome.counts["standing drains"] == 2


def test_another_policy_may_move_the_time_since_which_a_wave_is_waited_for() -> None:
    """The check of reasons (S8) took a wave of other machines, of which as many were left, for the same one."""
    racks = {"r1": ["m1a", "m1b", "m1c"], "r2": ["m2a", "m2b"]}
    outcome = play(
        Fault(130.0, "pause", "", 400.0),
        Fault(250.0, "small-group", "", 100.0),
        racks=racks,
        labels={name: {"role": "web"} for names in racks.values() for name in names},
        policy="settle: 20s\nwaves: [{name: one, size: 1}, {name: two, size: 2}, {name: rest, size: 100%}]\n"
        "quorums: [{name: trio, selector: 'name in (m1a, m2a, m2b)'}]\n",
        boot_seconds=(60.0, 61.0),
        faults_for=600.0,
    )
    assert outcome.counts["reboots"] == 5


@pytest.mark.parametrize("number", [3, 4, 34])
def test_a_leader_that_freezes_while_machines_come_back_does_not_keep_them_for_a_minute(number: int) -> None:
    """An agent that had just enabled its host waited like an idle one for the answer of the frozen leader."""
    quiet_logs()
    outcome, cut = run_cut(number, "frozen")
    assert outcome.ok, outcome.violation
    assert cut
    began: dict[str, float] = {}
    for line in outcome.log:
        at, name, *rest = line.split()
        if " ".join(rest).startswith(("is new: enabling", "verifying -> enabling", "rebooting -> enabling")):
            began[name] = float(at)
        elif " ".join(rest).startswith("enabling -> in-service"):
            assert float(at) - began.pop(name) < 30.0, line

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest

from tests.sim.__main__ import enough
from tests.sim.enough import LEAST_OF_ALL, OFTEN, SELDOM, too_few
from tests.sim.interrupted import ALL_REBOOT, CUTS, FOUR, PLANS, run_cut
from tests.sim.plan import Fault, make_plan
from tests.sim.planted import plant
from tests.sim.run import Outcome, quiet_logs, run_seed
from tests.sim.shrink import shrink

SEEDS = int(os.environ.get("SIM_SEEDS", "200"))


def story(outcome: Outcome) -> str:
    return "\n".join([*outcome.log[-40:], f"replay: python -m tests.sim --seed {outcome.seed}", outcome.violation])


@pytest.mark.timeout(400)
def test_every_invariant_holds() -> None:
    command = [sys.executable, "-m", "tests.sim", "--seeds", str(SEEDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("number", [1, 9, 12, 17])
@pytest.mark.parametrize("how", CUTS)
def test_a_cut_plan_ends_well(number: int, how: str) -> None:
    check_cut(number, how)


@pytest.mark.parametrize("plan", sorted(PLANS.keys() - {"plain"}))
@pytest.mark.parametrize("how", ["killed-after", "late"])
def test_a_cut_plan_of_another_kind_ends_well(plan: str, how: str) -> None:
    assert check_cut(17, how, plan)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("plan", sorted(PLANS))
@pytest.mark.parametrize("how", CUTS)
def test_plans_cut_anywhere_end_well(how: str, plan: str) -> None:
    number = 1
    while check_cut(number, how, plan):
        number += 1
    assert number > 20


def check_cut(number: int, how: str, plan: str = "plain") -> bool:
    quiet_logs()
    outcome, cut = run_cut(number, how, plan)
    assert outcome.ok, story(outcome)
    assert outcome.counts["reboots"] <= ALL_REBOOT.get(plan, FOUR)
    assert outcome.counts["reboots"] == ALL_REBOOT.get(plan, FOUR) or plan not in ALL_REBOOT
    assert outcome.counts.get("power cycles", 0) <= 1
    return cut


def test_a_seed_is_the_same_whatever_hashes_are() -> None:
    def run(hash_seed: str) -> str:
        environ = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-m", "tests.sim", "--seed", "2", "--profile", "everything"]
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=False).stdout

    first = run("1")
    assert "everything held" in first
    assert run("2") == first


def test_a_failing_seed_is_shrunk_to_what_it_needs() -> None:
    quiet_logs()
    plan = make_plan(0, profile="operators")
    plan.faults = [
        Fault(30.0, "pause", seconds=1.0),
        Fault(40.0, "maintenance", "m1a"),
        Fault(60.0, "raw-halt", seconds=300.0),
        Fault(70.0, "unlock", "r1"),
    ]
    with plant("halt-ignored"):
        failed = run_seed(0, plan=plan)
        assert failed.name == "S6", failed.violation
        assert shrink(plan, failed) == [2]


def test_too_little_is_noticed() -> None:
    much = Counter(dict.fromkeys([*LEAST_OF_ALL, *OFTEN, *SELDOM], 600))
    assert too_few(much, 100) == []
    for what in sorted(LEAST_OF_ALL):
        assert enough(Counter(much) - Counter({what: 599}), 100) == 1, what
    for what in OFTEN:
        assert too_few(Counter(much) - Counter({what: 598}), 150) == [what]
    for what in SELDOM:
        assert too_few(Counter(much) - Counter({what: 600}), 500) == [what]
    assert enough(Counter(reboots=500, leaderships=200), 100, "hosts") == 0
    assert enough(Counter(reboots=50, leaderships=200), 100, "hosts") == 1
    assert enough(Counter(reboots=500, leaderships=100), 100, "hosts") == 1

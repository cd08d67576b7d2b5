from __future__ import annotations

import pytest

from tests.sim.__main__ import run_seeds
from tests.sim.planted import PLANTED

SEEDS = 60


QUICK = (
    "unfenced-write",
    "epoch-not-raised",
    "answer-before-commit",
    "intent-not-journaled",
    "unlock-too-early",
    "no-reasons",
    "client-granted-early",
)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sorted(PLANTED))
def test_each_planted_bug_is_caught(name: str) -> None:
    catch(name)


@pytest.mark.parametrize("name", QUICK)
def test_some_are_caught_at_once(name: str) -> None:
    catch(name)


def catch(name: str) -> None:
    for seed in range(SEEDS):
        [outcome] = run_seeds(seed, 1, PLANTED[name].profile, name)
        if not outcome.ok:
            # A patch that does not fit the code any more fails, too, and shows nothing.
            assert outcome.name.isupper(), outcome.violation
            return
    pytest.fail(f"{name} ({PLANTED[name].what}) passed {SEEDS} seeds")


def test_there_are_enough() -> None:
    assert len(PLANTED) >= 20

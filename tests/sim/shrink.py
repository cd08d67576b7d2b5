"""From a failing seed to the smallest list of faults that still fails in the same way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.sim.run import run_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.sim.plan import Plan
    from tests.sim.run import Outcome


def shrink(plan: Plan, failed: Outcome, *, tries: int = 200, told: Callable[[str], None] = lambda _: None) -> list[int]:
    """The indexes of the faults that are needed (delta debugging: halves, quarters, ... single ones)."""
    # What came after the violation cannot have caused it.
    needed = [i for i, fault in enumerate(plan.faults) if fault.at <= failed.at]
    left = tries

    def fails(indexes: Sequence[int]) -> bool:
        nonlocal left
        left -= 1
        return run_seed(plan.seed, plan=plan, only=set(indexes)).name == failed.name

    if not fails(needed):
        return list(range(len(plan.faults)))
    size = max(1, len(needed) // 2)
    while needed:
        removed = False
        for start in range(0, len(needed), size):
            if left <= 0:
                return needed
            fewer = needed[:start] + needed[start + size :]
            if fails(fewer):
                needed = fewer
                removed = True
                told(f"still fails with {len(needed)} faults")
                break
        if not removed:
            if size == 1:
                break
            size = max(1, size // 2)
    return needed

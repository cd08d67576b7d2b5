"""What paces the machines of cycles in one snapshot: waves, what fits the window, and who goes last."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from rebootd.core.fit import Fit
from rebootd.core.model import Blocker
from rebootd.core.times import utc
from rebootd.core.waves import rack_ranks, wave_plan

if TYPE_CHECKING:
    from rebootd.core.model import Cycle, Machine
    from rebootd.core.view import View
    from rebootd.core.waves import WavePlan
    from rebootd.core.windows import WindowVerdict


class Pace:
    """``any`` is whether it may hold back anybody at all; ``last`` are the members of quorum groups."""

    def __init__(self, view: View, verdict: WindowVerdict) -> None:
        snapshot = view.snapshot
        self._snapshot = snapshot
        self.ranks = rack_ranks(snapshot.policy, view.capacity.members)
        self.last: frozenset[str] = frozenset().union(*(g.members for g in view.safeguards.groups))
        self.plans: dict[str, WavePlan] = {}
        if snapshot.policy.waves:
            self.plans = {
                c.id: wave_plan(snapshot.policy, c, view.roll, self.last).at(view.now, utc)
                for c in view.cycles
                if c.waves and not c.standing
            }
        self.fit = Fit(snapshot, verdict)
        self.any = bool(self.plans) or self.fit.tight

    def later(self, now: float, verdict: WindowVerdict) -> bool:
        """Judges anew what the clock changes, as the forecast's goes on; True when another wave has come."""
        came = False
        for plan in self.plans.values():
            if plan.stale or (plan.changes is not None and now >= plan.changes):
                before = plan.current
                came = plan.at(now, utc).current != before or came
        if not verdict.open or verdict.until is not None:
            self.fit = Fit(self._snapshot, verdict, now)
        self.any = bool(self.plans) or self.fit.tight
        return came

    def waits(self, machine: Machine, cycle: Cycle) -> Blocker | None:
        """Why the machine's wave of the cycle has not come yet, or None."""
        plan = self.plans.get(cycle.id)
        return plan.late.get(machine.name) if plan is not None else None

    def blockers(self, machine: Machine, cycle: Cycle | None) -> tuple[Blocker, ...]:
        """What keeps a machine in that the cycle wants out: its wave, and windows that are too short for it."""
        if not self.any or cycle is None:
            return ()
        wave = self.waits(machine, cycle)
        fits = self.fits(machine, cycle)
        return (wave, *fits) if wave is not None else fits

    def fits(self, machine: Machine, cycle: Cycle | None) -> tuple[Blocker, ...]:
        """What windows that are too short for the machine are; nothing in an emergency."""
        if not self.fit.tight or cycle is None or cycle.emergency:
            return ()
        blocker = self.fit.blocker(machine)
        return () if blocker is None else (blocker,)


@lru_cache(maxsize=64)
def goes_last(cycle_id: str, created: float) -> Blocker:
    """The blocker that the other machines are for a member of a quorum group."""
    return Blocker(
        kind="order",
        what=f"members of quorum groups go after all other machines of cycle {cycle_id}",
        since=created,
        clears="the machines that go before it",
    )

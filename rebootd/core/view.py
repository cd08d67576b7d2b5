"""What one decision works out once and uses for every machine: capacity, windows, global blockers."""

from __future__ import annotations

from functools import cached_property, partial
from typing import TYPE_CHECKING

from rebootd.core.advance import ENDED
from rebootd.core.durations import looked_at
from rebootd.core.emergency import quorum_gates
from rebootd.core.failures import power_loss
from rebootd.core.gate_view import Safeguards
from rebootd.core.inputs import counted
from rebootd.core.limits import Capacity
from rebootd.core.model import Blocker, CycleState
from rebootd.core.pace import Pace
from rebootd.core.roll import Roll
from rebootd.core.times import utc
from rebootd.core.windows import closed_since, judge_windows

if TYPE_CHECKING:
    from rebootd.core.decision import MachineStep, PowerStep
    from rebootd.core.model import Cycle, Hold, Machine, Snapshot


class View:
    """One snapshot, prepared for deciding. Never outlives the decision."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.now = snapshot.now
        self.epoch = snapshot.epoch
        # The first cycle that wants a machine has it: an emergency must not wait for the window of a calm one.
        self.cycles = sorted(
            (c for c in snapshot.cycles.values() if c.state not in ENDED),
            key=lambda c: (c.standing, not c.emergency, c.created, c.id),
        )
        # How long reboots take matters where windows end.
        timed = looked_at(snapshot.policy) if snapshot.policy.windows or snapshot.windows else ()
        self.roll = Roll(snapshot, self.cycles, timed)
        """As the fleet was at first: the forecast, whose machines go on, has no use for it."""
        self.breakers = self.roll.breakers
        self.capacity = Capacity(snapshot, self.roll)
        self.safeguards = Safeguards(snapshot, self.capacity.lost, self.roll)
        self.spent = self._spent()
        self.holds = bool(snapshot.machine_holds or snapshot.rack_holds)
        self.windows = judge_windows(snapshot.policy, snapshot.windows, self.now)
        self.pace = Pace(self, self.windows)
        self.stops = self._stops()
        self.closed = self._closed()
        self.ordered = False
        """Whether lists of wishes come in their order already, as the forecast's do."""
        self.power: list[PowerStep] = []
        """Power cycles that this decision asks for."""

    def later(self, snapshot: Snapshot) -> bool:
        """Goes on to a later moment of the same fleet, as the forecast does: judges anew what the clock changes.

        True when another wave of a cycle has come.
        """
        self.snapshot, self.now = snapshot, snapshot.now
        until = self.windows.until if self.windows.open else self.windows.next
        if until is not None and until <= self.now:
            self.windows = judge_windows(snapshot.policy, snapshot.windows, self.now)
            self.closed = self._closed()
        return self.pace.later(self.now, self.windows)

    def learn(self, step: MachineStep) -> None:
        """Counts what a step of this decision tells of its machine, for all that is decided after it."""
        away = self.capacity.note(step.before, step.after)
        if step.after is not None:
            self.safeguards.shown(step.after)
            if away:
                self.safeguards.left(step.after)

    @cached_property
    def power_loss(self) -> int:
        """How many machines a power loss has taken down at once; 0: there is none."""
        return power_loss(self.snapshot)

    def closed_for(self, cycle_id: str) -> tuple[Blocker, ...]:
        """What keeps machines from going out for this cycle by the time of day: nothing in an emergency."""
        cycle = self.snapshot.cycles.get(cycle_id)
        return () if cycle is not None and cycle.emergency else self.closed

    def may_hold_back(self, machine: Machine) -> bool:
        """Whether earlier failures can have something to say of the machine; quick, and true rather too often."""
        own = machine.retry is not None or machine.fleetlock is not None
        return own or bool(machine.flag) or bool(self.breakers.open)

    def holds_of(self, machine: Machine) -> tuple[Hold, ...]:
        """Every hold that applies to the machine, its own before its rack's."""
        found = (self.snapshot.machine_holds.get(machine.name), self.snapshot.rack_holds.get(machine.rack))
        return tuple(h for h in found if h is not None)

    def hold_of(self, machine: Machine) -> Hold | None:
        """The hold that applies to the machine, its own before its rack's."""
        return self.snapshot.machine_holds.get(machine.name) or self.snapshot.rack_holds.get(machine.rack)

    def _stops(self) -> tuple[Blocker, ...]:
        """What keeps every machine from going out, for a cycle and for a hold alike."""
        out = []
        halt = self.snapshot.halt
        if halt is not None:
            out.append(
                Blocker(
                    kind="halt",
                    what=f"everything is halted: {halt.reason or 'no reason given'}",
                    since=halt.since,
                    clears="an operator: rebootctl unhalt",
                )
            )
        out += [
            Blocker(
                kind="store", what=f, since=self.snapshot.fault_since.get(f, self.now), clears="whoever runs Consul"
            )
            for f in self.snapshot.faults
        ]
        return tuple(out)

    def _closed(self) -> tuple[Blocker, ...]:
        """What keeps machines from going out for a cycle: windows, and a clock nobody can trust."""
        out = []
        snapshot, policy = self.snapshot, self.snapshot.policy
        if abs(snapshot.clock_skew) > policy.clock_tolerance:
            out.append(
                Blocker(
                    kind="clock",
                    what=f"the leader's clock is {snapshot.clock_skew:+.0f} s off the median of its agents' "
                    f"(tolerated: {policy.clock_tolerance:.0f} s), so windows count as closed",
                    since=snapshot.leading_since,
                    clears="whoever keeps the hosts' clocks",
                )
            )
        verdict = self.windows
        if not verdict.open:
            when = f"the next opens at {utc(verdict.next)}" if verdict.next is not None else "none is planned"
            out.append(
                Blocker(
                    kind="window",
                    what=f"no maintenance window is open; {when}",
                    since=closed_since(policy, snapshot.windows, self.now) or snapshot.leading_since,
                    clears="time, or an operator: rebootctl window open",
                )
            )
        return tuple(out)

    def skips(self, cycle_id: str) -> frozenset[str]:
        """The gates that an emergency cycle goes past; none for any other."""
        cycle = self.snapshot.cycles.get(cycle_id)
        if cycle is None or not cycle.emergency:
            return frozenset()
        return frozenset(cycle.skip_gates) - quorum_gates(self.snapshot.policy)

    def cycle_stop(self, cycle_id: str) -> Blocker | None:
        """Why the cycle that a machine is out for no longer wants it rebooted, if so."""
        cycle = self.snapshot.cycles.get(cycle_id)
        if cycle is None:
            return Blocker(
                kind="cycle", what=f"cycle {cycle_id} is gone", since=self.snapshot.leading_since, clears="nobody"
            )
        return cycle_blocker(cycle, self.spent.get(cycle.id, ""))

    def runs(self, cycle: Cycle) -> bool:
        """Whether the cycle may take machines out: running, and its failure budget not spent."""
        return cycle.state is CycleState.RUNNING and cycle.id not in self.spent

    def _spent(self) -> dict[str, str]:
        """Running cycles whose failure budget is exceeded, with the sentence that says so.

        They are halted by this very decision; nothing more may go out for them meanwhile.
        """
        out = {}
        for cycle in self.cycles:
            if cycle.state is not CycleState.RUNNING:
                continue
            failed = sorted([m.name for m in self.roll.those(partial(_failed, cycle.id))])
            if len(failed) > cycle.failure_budget:
                named = ", ".join(failed[:5])
                out[cycle.id] = (
                    f"{counted(len(failed), 'machine')} failed, {cycle.failure_budget} were tolerated: {named}"
                )
        return out


def _failed(cycle_id: str, machine: Machine) -> bool:
    return machine.outcomes.get(cycle_id, "").startswith("failed")


def cycle_blocker(cycle: Cycle, spent: str = "") -> Blocker | None:
    """The blocker that a cycle is which may take nobody out; ``spent`` says that its budget is exceeded."""
    if cycle.state is CycleState.RUNNING and not spent:
        return None
    why = spent or cycle.why
    return Blocker(
        kind="cycle",
        what=f"cycle {cycle.id} is {'halting' if spent else cycle.state.value}{f': {why}' if why else ''}",
        since=cycle.changed or cycle.created,
        clears=f"an operator: rebootctl cycle resume {cycle.id}"
        if cycle.state not in ENDED
        else "nobody: the cycle has ended",
    )

"""The way of one machine along the state table within one decision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebootd.core.advance import advance, with_outcome
from rebootd.core.decision import Guard, Lane, MachineStep, PermitVerdict
from rebootd.core.failures import DRAIN, again, clock
from rebootd.core.model import Blocker, Event, Machine, State

if TYPE_CHECKING:
    from typing import Any

    from rebootd.core.policy import Policy
    from rebootd.core.states import Happening
    from rebootd.core.view import View
    from rebootd.core.wire import Report

AGENT = "the machine's agent"
OPERATOR = "an operator"


class Settled:
    """What :func:`settle` found: a step or None, why the machine waits, a verdict if it asked."""

    __slots__ = ("blockers", "step", "verdict")

    def __init__(
        self, step: MachineStep | None, blockers: tuple[Blocker, ...] = (), verdict: PermitVerdict | None = None
    ) -> None:
        self.step = step
        self.blockers = blockers
        self.verdict = verdict


class Walk:
    """Follows one machine along the table as far as what is known now carries it."""

    def __init__(self, view: View, machine: Machine) -> None:
        self.view = view
        self.now = view.now
        self.first = machine
        self.machine = machine
        self.events: list[Event] = []
        self.verdict: PermitVerdict | None = None
        self.lane = Lane.BACK
        self.guards: frozenset[Guard] = frozenset()

    def go(self, happening: Happening, cause: str, detail: str = "", **facts: Any) -> None:
        """One step along the table."""
        self.machine, event = advance(
            self.machine, happening, now=self.now, epoch=self.view.epoch, cause=cause, detail=detail, **facts
        )
        self.events.append(event)

    def fail(self, happening: Happening, cause: str, detail: str, **facts: Any) -> None:
        """One step that counts as a failure of the machine's cycle, with its evidence."""
        outcomes = with_outcome(self.machine, f"failed: {cause}", self.view.snapshot.cycles)
        evidence = f"{cause}: {detail}" if detail else cause
        self.go(happening, cause, detail, **{"outcomes": outcomes, "evidence": evidence, "retry": None, **facts})

    def fail_or_retry(self, happening: Happening, cause: str, detail: str) -> None:
        """A drain that failed: the machine comes back, and is tried again if it was not tried often enough."""
        retry = again(self.view.snapshot.policy, self.machine, DRAIN, self.now)
        if retry is None:
            self.fail(happening, cause, detail)
        else:
            said = f"{detail} (tried again at {clock(retry.at)})".lstrip()
            self.go(happening, f"{cause}, to be tried again", said, retry=retry)


def waits(m: Machine, kind: str, what: str, clears: str = AGENT) -> Blocker:
    """Why a machine waits in its state, since it came there."""
    return Blocker(kind=kind, what=what, since=m.since, clears=clears)


def at_work(m: Machine, report: Report, what: str) -> Blocker:
    """Why a machine waits for its agent, with how far that says it is."""
    return waits(m, "agent", f"{what}: {report.doing[:200]}" if report.doing else what)


def limit_of(policy: Policy, m: Machine) -> float | None:
    """How long (s) the machine's state may last, or None if for ever."""
    limit = policy.deadlines.of(m.state)
    if limit is not None and m.state is State.ENABLING:
        # The soak is time that we ask for, not time that the machine takes.
        limit += policy.soak
    if limit is not None and m.state is State.DRAINED and m.fleetlock is not None:
        # It goes when its client asks once more, and comes back when that does not ask in time.
        limit = max(limit, policy.fleetlock.wish)
    return limit


def overdue(view: View, m: Machine) -> float:
    """How much too long (s) the machine's state has lasted; 0 when it has not.

    A leader counts from its own beginning at the earliest: after an outage of Consul the machines
    must have a chance to call before they are judged.
    """
    limit = limit_of(view.snapshot.policy, m)
    if limit is None:
        return 0.0
    # A stamp from the future was written by a leader whose clock was ahead: it would never be over.
    began = max(m.since, view.snapshot.leading_since) if m.since <= view.now else view.snapshot.leading_since
    return max(0.0, view.now - began - limit)


def step(walk: Walk) -> MachineStep | None:
    """The step that the walk comes to, or None when nothing has changed."""
    if walk.machine is walk.first and not walk.events:
        return None
    return MachineStep(
        name=walk.machine.name,
        before=walk.first,
        after=walk.machine,
        events=tuple(walk.events),
        lane=walk.lane,
        guards=walk.guards,
    )

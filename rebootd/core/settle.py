"""One machine that is out of service, or that calls: what follows for it alone.

Everything here brings machines back, records what they say, or grants a permit. Nothing here looks
at windows, gates, halts or rack locks to delay a return (S5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from rebootd.core.advance import advance, at_target, pending, transition_event, with_boot, with_outcome, with_reboot
from rebootd.core.decision import Guard, Lane, MachineStep, PermitVerdict, directive_id
from rebootd.core.model import Blocker, Event, Machine, Observation, Permit, State
from rebootd.core.permits import judge
from rebootd.core.states import Happening
from rebootd.core.wire import DirectiveKind

if TYPE_CHECKING:
    from typing import Any

    from rebootd.core.view import View
    from rebootd.core.wire import Report, Result

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


class _Walk:
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

    def fail(self, happening: Happening, cause: str, detail: str) -> None:
        """One step that counts as a failure of the machine's cycle, with its evidence."""
        outcomes = with_outcome(self.machine, f"failed: {cause}", self.view.snapshot.cycles)
        self.go(happening, cause, detail, outcomes=outcomes, evidence=f"{cause}: {detail}" if detail else cause)


def settle(view: View, machine: Machine, seen: Observation | None) -> Settled:
    """What follows for ``machine``, given what it last said (None: nothing to this leader)."""
    walk = _Walk(view, machine)
    blockers: tuple[Blocker, ...] = ()
    conflict = view.snapshot.conflicts.get(machine.name)
    if conflict is not None:
        blockers = (Blocker(kind="conflict", what=conflict, since=view.now, clears=f"{OPERATOR}: rebootctl forget"),)
    elif seen is None:
        if machine.name in view.snapshot.asking and machine.state in {State.DRAINED, State.REBOOTING}:
            # The answer to its question was lost with the last leader: it asks again before it reports.
            blockers = _permit(walk)
        elif machine.state is not State.IN_SERVICE:
            blockers = (_waits(machine, "agent", "its agent has not called since this leader began"),)
    else:
        _hear(walk, seen.report)
        blockers = _follow(walk, seen)
    overdue = _overdue(view, walk.machine) if not walk.events else ""
    if overdue:
        said = "; ".join(b.what for b in blockers)
        walk.fail(Happening.DEADLINE, overdue, said)
        blockers = _quarantined(walk.machine)
    return Settled(_step(walk), blockers, walk.verdict)


def create(view: View, seen: Observation) -> Settled:
    """The record of a machine that reports for the first time, and what follows at once."""
    report = seen.report
    machine = Machine(
        name=report.name,
        rack=report.rack,
        state=State.VERIFYING,
        since=view.now,
        boot_id=report.boot_id,
        epoch=view.epoch,
        cause="first report",
        machine_id=report.machine_id,
        **_facts(report),
    )
    walk = _Walk(view, machine)
    walk.events.append(transition_event(None, machine, now=view.now, cause="first report"))
    blockers = _follow(walk, seen)
    step = _step(walk)
    return Settled(replace(step, before=None) if step else None, blockers)


def _facts(report: Report) -> dict[str, Any]:
    return {
        "kernel": report.kernel,
        "chassis": report.chassis,
        "labels": report.labels,
        "reboot_required": report.reboot_required,
        "reboot_reasons": report.reboot_reasons,
    }


def _hear(walk: _Walk, report: Report) -> None:
    """Takes over the facts of the report, and a new boot_id if there is one."""
    m = walk.machine
    facts = {k: v for k, v in _facts(report).items() if getattr(m, k) != v}
    # The rack is frozen from drain until the machine is back: its lock and its limits depend on it.
    if report.rack and report.rack != m.rack and m.state is State.IN_SERVICE:
        facts["rack"] = report.rack
    if facts:
        walk.machine = m = replace(m, **facts)
    if report.boot_id == m.boot_id:
        return
    planned = m.state is State.REBOOTING and m.permit is not None and m.permit.boot_id == m.boot_id
    counts = {} if planned else {"unplanned": m.unplanned + 1}
    detail = f"boot_id {m.boot_id} -> {report.boot_id}"
    walk.go(
        Happening.BOOT,
        "planned boot" if planned else "unplanned boot",
        detail,
        planned=planned,
        **with_boot(m, report.boot_id),
        **counts,
    )


def _follow(walk: _Walk, seen: Observation) -> tuple[Blocker, ...]:
    """Walks on from state to state while what was heard allows it."""
    if _by_hand(walk, seen.report):
        return ()
    while True:
        before = walk.machine
        blockers = _FOLLOW[before.state](walk, seen)
        if walk.machine is before:
            return blockers


def _by_hand(walk: _Walk, report: Report) -> bool:
    """Break-glass: someone enabled the host with no coordinator; the record follows the truth."""
    m = walk.machine
    if not (report.by_hand and report.in_service) or m.state is State.IN_SERVICE:
        return False
    # A report that does not know of the drain yet may still speak of an enable from before it.
    if m.state is State.DRAINING and report.index != m.version:
        return False
    walk.go(Happening.BY_HAND, "enabled by hand", report.by_hand, cycle="", permit=None, evidence="")
    return True


def _in_service(_walk: _Walk, _seen: Observation) -> tuple[Blocker, ...]:
    return ()


def _draining(walk: _Walk, seen: Observation) -> tuple[Blocker, ...]:
    m, result = walk.machine, _result(walk.machine, seen.report, DirectiveKind.DRAIN)
    unwanted = _unwanted(walk)
    if unwanted is not None:
        walk.go(Happening.RETURN, f"brought back: {unwanted.what}")
    elif result is None:
        return (_waits(m, "agent", "its agent is draining it"),)
    elif result.ok:
        walk.go(Happening.DRAIN_DONE, "drained", result.detail)
    else:
        walk.fail(Happening.DRAIN_FAILED, "drain failed", result.detail)
    return ()


def _drained(walk: _Walk, seen: Observation) -> tuple[Blocker, ...]:
    m, result = walk.machine, _result(walk.machine, seen.report, DirectiveKind.REBOOT)
    if walk.view.hold_of(m) is not None:
        walk.go(Happening.HOLD, "held")
        return ()
    if result is not None and not result.ok:
        walk.fail(Happening.REBOOT_FAILED, "reboot refused by its host", result.detail)
        return ()
    unwanted = _unwanted(walk)
    if unwanted is not None:
        walk.go(Happening.RETURN, f"brought back: {unwanted.what}")
        return ()
    return _permit(walk)


def _unwanted(walk: _Walk) -> Blocker | None:
    """Why a machine on its way to a reboot should come back instead, if it should."""
    view, m = walk.view, walk.machine
    if not m.cycle:
        return (
            None
            if view.hold_of(m) is not None
            else Blocker(kind="hold", what="the hold was released", since=view.now, clears=OPERATOR)
        )
    stop = view.cycle_stop(m.cycle)
    if stop is not None:
        return stop
    if view.stops and view.snapshot.halt is not None:
        return view.stops[0]
    if m.state is State.DRAINED:
        if view.closed:
            return view.closed[0]
        if view.now - view.snapshot.leading_since < view.snapshot.policy.settle:
            # Right after an election everybody else counts as unavailable: no permit, but no retreat either.
            return None
        for tally in (view.capacity.racks[m.rack], *view.capacity.limits_of(m)):
            if tally.over:
                return Blocker(kind="limit", what=tally.sentence(), since=tally.oldest, clears="machines coming back")
    return None


def _permit(walk: _Walk) -> tuple[Blocker, ...]:
    """Judges a permit that was asked for; a machine that has not asked yet just waits."""
    m, view = walk.machine, walk.view
    request = view.snapshot.asking.get(m.name)
    if walk.events:
        # A permit is judged on what the store holds, not on steps that have yet to land.
        return (_waits(m, "permit", "it may ask for its permit now"),)
    verdict, blockers = judge(view, m, request)
    walk.verdict = verdict
    if verdict is None or not verdict.granted or request is None:
        return blockers
    if m.state is State.REBOOTING:
        if m.permit is not None and m.permit.until > view.now:
            return blockers
        permit = Permit(request.boot_id, request.nonce, view.now + view.snapshot.policy.permit_valid, view.epoch)
        walk.machine = replace(m, permit=permit, epoch=view.epoch)
        walk.events.append(transition_event(m, walk.machine, now=view.now, cause="permit renewed for the same nonce"))
    else:
        permit = Permit(request.boot_id, request.nonce, view.now + view.snapshot.policy.permit_valid, view.epoch)
        walk.go(Happening.PERMIT, "permitted", permit=permit, booted=False, planned=False)
    walk.lane = Lane.OUT
    walk.guards = frozenset(Guard)
    return blockers


def _rebooting(walk: _Walk, seen: Observation) -> tuple[Blocker, ...]:
    m = walk.machine
    result = _result(m, seen.report, DirectiveKind.REBOOT)
    if result is not None and not result.ok:
        walk.fail(Happening.REBOOT_FAILED, "reboot failed", result.detail)
        return ()
    if m.name in walk.view.snapshot.asking and not walk.events and walk.verdict is None:
        return _permit(walk)
    return (_waits(m, "agent", f"it is rebooting; boot_id {m.boot_id} has not been replaced yet"),)


def _verifying(walk: _Walk, seen: Observation) -> tuple[Blocker, ...]:
    m, check = walk.machine, seen.report.boot_check
    if check.status == "failed":
        # Only a check made in knowledge of this step counts: a cleared quarantine asks for a new one.
        if seen.report.index != m.version:
            return (_waits(m, "agent", "its checks after boot failed; they are asked for once more"),)
        walk.fail(Happening.VERIFY_FAILED, "checks after boot failed", check.detail)
        return ()
    if check.status != "passed":
        return (_waits(m, "agent", "its checks after boot are still running"),)
    cycle = walk.view.snapshot.cycles.get(m.cycle) if m.cycle else None
    if m.booted and cycle is not None and cycle.target and not at_target(cycle, m):
        walk.fail(Happening.VERIFY_FAILED, "target not reached", f"cycle {cycle.id} wants {cycle.target}")
        return ()
    outcomes = with_reboot(m, walk.view.snapshot.cycles) if m.booted else m.outcomes
    if walk.view.hold_of(m) is not None:
        walk.go(Happening.HOLD, "held", outcomes=outcomes)
    else:
        walk.go(Happening.VERIFIED, "verified", outcomes=outcomes)
    return ()


def _enabling(walk: _Walk, seen: Observation) -> tuple[Blocker, ...]:
    m, result = walk.machine, _result(walk.machine, seen.report, DirectiveKind.ENABLE)
    if result is None:
        return (_waits(m, "agent", "its agent is enabling it"),)
    if not result.ok:
        walk.fail(Happening.ENABLE_FAILED, "enable failed", result.detail)
        return ()
    soak = walk.view.snapshot.policy.soak
    since = seen.enabled_at or walk.now
    if walk.now < since + soak:
        return (_waits(m, "soak", f"it soaks for {soak:.0f} s after it was enabled", "time"),)
    walk.go(Happening.ENABLED, "enabled", cycle="", permit=None, evidence="", booted=False, planned=False)
    return ()


def _held(walk: _Walk, _seen: Observation) -> tuple[Blocker, ...]:
    m, view = walk.machine, walk.view
    hold = view.hold_of(m)
    if hold is not None:
        return (held_by(hold.kind, hold.name, hold.reason, hold.by, hold.since),)
    cycle = view.snapshot.cycles.get(m.cycle) if m.cycle else None
    if cycle is not None and not m.booted and pending(cycle, m) and _unwanted(walk) is None and not view.closed:
        return _permit(walk)
    walk.go(Happening.RELEASE, "released")
    return ()


def held_by(kind: str, name: str, reason: str, by: str, since: float) -> Blocker:
    """The blocker that a hold is."""
    flag = f"--rack {name}" if kind == "rack" else name
    return Blocker(
        kind="hold",
        what=f"{kind} {name} is held{f' by {by}' if by else ''}{f': {reason}' if reason else ''}",
        since=since,
        clears=f"{OPERATOR}: rebootctl release {flag}",
    )


def _quarantined_state(walk: _Walk, _seen: Observation) -> tuple[Blocker, ...]:
    return _quarantined(walk.machine)


def _quarantined(m: Machine) -> tuple[Blocker, ...]:
    return (
        Blocker(
            kind="quarantine",
            what=m.evidence or "quarantined",
            since=m.since,
            clears=f"{OPERATOR}: rebootctl quarantine clear {m.name}",
        ),
    )


_FOLLOW = {
    State.IN_SERVICE: _in_service,
    State.DRAINING: _draining,
    State.DRAINED: _drained,
    State.REBOOTING: _rebooting,
    State.VERIFYING: _verifying,
    State.ENABLING: _enabling,
    State.HELD: _held,
    State.QUARANTINED: _quarantined_state,
}


def _result(m: Machine, report: Report, kind: DirectiveKind) -> Result | None:
    """The report's result if it belongs to this step (for a reboot: to this or the one before)."""
    result = report.result
    if result is None or result.kind is not kind:
        return None
    steps = (m.version, m.version - 1) if kind is DirectiveKind.REBOOT else (m.version,)
    return result if result.id in {directive_id(m.name, v, kind.value) for v in steps} else None


def _waits(m: Machine, kind: str, what: str, clears: str = AGENT) -> Blocker:
    return Blocker(kind=kind, what=what, since=m.since, clears=clears)


def _overdue(view: View, m: Machine) -> str:
    """Says that the machine's state has lasted too long, or "".

    A leader counts from its own beginning at the earliest: after an outage of Consul the machines
    must have a chance to call before they are judged.
    """
    limit = view.snapshot.policy.deadlines.of(m.state)
    if limit is None or view.now - max(m.since, view.snapshot.leading_since) <= limit:
        return ""
    return f"{m.state.value} for more than {limit:.0f} s"


def _step(walk: _Walk) -> MachineStep | None:
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

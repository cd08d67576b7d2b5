"""One machine that is out of service, or that calls: what follows for it alone.

Everything here brings machines back, records what they say, or grants a permit. Nothing here looks
at windows, gates, halts or rack locks to delay a return (S5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from rebootd.core.advance import at_target, pending, transition_event, with_reboot
from rebootd.core.decision import Guard, Lane, directive_id
from rebootd.core.directives import step_of
from rebootd.core.drains import back, drained, not_ready, undone_by_others
from rebootd.core.emergency import emergency_note
from rebootd.core.failures import CHECKS, DRAIN, again, ahead, clock, undone
from rebootd.core.fleetlock import first, hear_client, not_asked, unasked
from rebootd.core.hearing import facts_of, hear, speaks_for
from rebootd.core.limits import unheard
from rebootd.core.model import Blocker, Machine, Observation, Permit, State
from rebootd.core.permits import judge, still_valid
from rebootd.core.power import rescue
from rebootd.core.quiet import out_by_itself
from rebootd.core.second_look import turned
from rebootd.core.standing import required_since
from rebootd.core.states import Happening
from rebootd.core.walk import AGENT, OPERATOR, Settled, Walk, at_work, overdue, step, waits
from rebootd.core.wire import DirectiveKind

if TYPE_CHECKING:
    from rebootd.core.view import View
    from rebootd.core.wire import Report, Result

_IN_SERVICE: dict[str, Any] = {"cycle": "", "evidence": "", "booted": False, "planned": False, "method": ""}
"""What a record forgets when its machine is back. A permit is kept until its boot_id is gone: it stays the only one."""
MISSED = "target not reached"


def settle(view: View, machine: Machine, seen: Observation | None) -> Settled:
    """What follows for ``machine``, given what it last said (None: nothing to this leader)."""
    walk = Walk(view, machine)
    blockers: tuple[Blocker, ...] = ()
    conflict = view.snapshot.conflicts.get(machine.name)
    if conflict is not None:
        since = view.snapshot.conflict_since.get(machine.name, view.now)
        blockers = (Blocker(kind="conflict", what=conflict, since=since, clears=f"{OPERATOR}: rebootctl forget"),)
    elif seen is None:
        if machine.name in view.snapshot.asking and machine.state in {State.DRAINED, State.REBOOTING}:
            # The answer to its question was lost with the last leader: it asks again before it reports.
            blockers = _permit(walk)
        elif machine.state is not State.IN_SERVICE:
            blockers = (waits(machine, "agent", "its agent has not called since this leader began"),)
    elif not speaks_for(seen.report, machine):
        blockers = (waits(machine, "agent", "the last call under its name was of an earlier boot or another machine"),)
    else:
        hear(walk, seen.report)
        hear_client(walk)
        blockers = _follow(walk, seen)
    overdue_by = overdue(view, walk.machine) if not walk.events else 0.0
    if overdue_by > 0:
        blockers = _give_up(walk, blockers, overdue_by)
    elif seen is not None and blockers and unheard(view.snapshot, machine.name):
        blockers = (*blockers, Blocker("unseen", "its agent has not called for too long", seen.at, AGENT))
    return Settled(step(walk), blockers, walk.verdict)


OWN_FAULT = frozenset({"agent", "unseen", "permit", "conflict"})
"""Kinds of blockers that lie with the machine or its agent."""


def _give_up(walk: Walk, blockers: tuple[Blocker, ...], overdue_by: float) -> tuple[Blocker, ...]:
    """The deadline ran out: out-of-band power where that is configured and allowed, else quarantine."""
    others = next((b for b in blockers if b.kind not in OWN_FAULT), None)
    if walk.machine.state is State.DRAINED and others is not None:
        # It did what it was told; what kept it from rebooting is no fault of its own.
        walk.go(Happening.RETURN, f"brought back: {others.what}")
        return ()
    left = rescue(walk.view, walk.machine, overdue_by)
    if left.blocker is not None:
        return (*blockers, left.blocker)
    state, limit = walk.machine.state.value, walk.view.snapshot.policy.deadlines.of(walk.machine.state) or 0.0
    said = "; ".join([*(b.what for b in blockers), *([left.evidence] if left.evidence else [])])
    cause = f"{state} for more than {limit:.0f} s"
    # Nobody knows whether it was told to reboot: it boots and is forgiven, or this boot_id gets no other permit.
    flag = undone(cause) if walk.machine.state is State.REBOOTING else walk.machine.flag
    walk.fail(Happening.DEADLINE, cause, said, flag=flag)
    return _quarantined(walk.machine)


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
        version=_beyond(report),
        cause="first report",
        machine_id=report.machine_id,
        required_since=required_since(None, report.reboot_required, view.now),
        fleetlock=first(call, view.now) if (call := view.snapshot.calls.get(report.name)) is not None else None,
        **facts_of(report),
    )
    walk = Walk(view, machine)
    walk.events.append(transition_event(None, machine, now=view.now, cause="first report"))
    blockers = _follow(walk, seen)
    made = step(walk)
    return Settled(replace(made, before=None) if made else None, blockers)


def _beyond(report: Report) -> int:
    """A version that the agent has not seen yet: it knows the directives of a forgotten record by their ids."""
    said = report.result.id.split("/")[-2:-1] if report.result is not None else []
    known = [report.index, *(int(v) for v in said if v.isascii() and v.isdigit() and len(v) <= 12)]
    return max(known) + 1


def _follow(walk: Walk, seen: Observation) -> tuple[Blocker, ...]:
    """Walks on from state to state while what was heard allows it."""
    if _by_hand(walk, seen.report):
        return ()
    while True:
        before = walk.machine
        blockers = _FOLLOW[before.state](walk, seen)
        if walk.machine is before:
            return blockers


def _by_hand(walk: Walk, report: Report) -> bool:
    """Break-glass: someone enabled the host with no coordinator; the record follows the truth."""
    m = walk.machine
    if not (report.by_hand and report.in_service) or m.state is State.IN_SERVICE:
        return False
    # A report that does not know of the drain yet may still speak of an enable from before it.
    if m.state is State.DRAINING and report.index != m.version:
        return False
    # A boot that people have put into service is as good as a verified one: no cycle asks for another.
    outcomes = with_reboot(m, walk.view.snapshot.cycles) if m.booted else m.outcomes
    walk.go(Happening.BY_HAND, "enabled by hand", report.by_hand, outcomes=outcomes, **_IN_SERVICE)
    return True


def _in_service(walk: Walk, seen: Observation) -> tuple[Blocker, ...]:
    if out_by_itself(walk.machine, seen.report):
        # It lost its journal, or somebody wrote it anew: it stays out until it is told to come back.
        announced = seen.report.announced
        cause = "announced shutdown" if announced else "out of service on its host"
        walk.go(Happening.FOUND_OUT, cause, announced)
    return ()


def _draining(walk: Walk, seen: Observation) -> tuple[Blocker, ...]:
    m, result = walk.machine, _result(walk.machine, seen.report, DirectiveKind.DRAIN)
    unwanted = _unwanted(walk)
    if unwanted is not None:
        walk.go(Happening.RETURN, f"brought back: {unwanted.what}")
        return ()
    side = drained(walk)
    failed = result.detail if result is not None and not result.ok else side.failed
    if failed or (result is not None and not result.ok):
        # Whichever side failed, both are undone: the way back is one.
        walk.fail_or_retry(Happening.DRAIN_FAILED, "drain failed", failed)
    elif result is not None and side.done:
        walk.go(Happening.DRAIN_DONE, "drained", result.detail)
    else:
        own = () if result is not None else (at_work(m, seen.report, "its agent is draining it"),)
        return own if side.blocker is None else (*own, side.blocker)
    return ()


def _drained(walk: Walk, seen: Observation) -> tuple[Blocker, ...]:
    m, result = walk.machine, _result(walk.machine, seen.report, DirectiveKind.REBOOT)
    if walk.view.hold_of(m) is not None:
        walk.go(Happening.HOLD, "held")
        return ()
    if result is not None and not result.ok:
        walk.fail_or_retry(Happening.REBOOT_FAILED, "reboot refused by its host", result.detail)
        return ()
    undone_there = undone_by_others(walk.view, m)
    if undone_there:
        walk.fail_or_retry(Happening.REBOOT_FAILED, "drain undone", undone_there)
        return ()
    unwanted = _unwanted(walk)
    if unwanted is not None:
        # What a gate turned back is likely to be turned back again: it waits longer each time (see `resting`).
        again: dict[str, Any] = (
            {"turned_back": m.turned_back + 1, "turned_back_at": walk.now} if unwanted.kind == "gate" else {}
        )
        walk.go(Happening.RETURN, f"brought back: {unwanted.what}", **again)
        return ()
    return _permit(walk)


def _unwanted(walk: Walk) -> Blocker | None:
    """Why a machine on its way to a reboot should come back instead, if it should."""
    view, m = walk.view, walk.machine
    if not m.cycle:
        return (
            None
            if view.hold_of(m) is not None
            else Blocker(kind="hold", what="the hold was released", since=view.now, clears=OPERATOR)
        )
    if unasked(m):
        return not_asked(m)
    stop = view.cycle_stop(m.cycle)
    if stop is not None:
        return stop
    if view.stops and view.snapshot.halt is not None:
        return view.stops[0]
    if m.state is State.DRAINED:
        barred = (*view.closed_for(m.cycle), *view.breakers.of(m))
        if barred:
            return barred[0]
        if view.now - view.snapshot.leading_since < view.snapshot.policy.settle:
            # Right after an election everybody else counts as unavailable: no permit, but no retreat either.
            return None
        for tally in (view.capacity.racks[m.rack], *view.capacity.limits_of(m)):
            if tally.over:
                return Blocker(kind="limit", what=tally.sentence(), since=tally.since(1), clears="machines coming back")
        return turned(view, m)
    return None


def _permit(walk: Walk) -> tuple[Blocker, ...]:
    """Judges a permit that was asked for; a machine that has not asked yet just waits."""
    m, view = walk.machine, walk.view
    request = view.snapshot.asking.get(m.name)
    if walk.events:
        # A permit is judged on what the store holds, not on steps that have yet to land.
        return (waits(m, "permit", "it may ask for its permit now"),)
    verdict, blockers = judge(view, m, request)
    walk.verdict = verdict
    if verdict is None or not verdict.granted or request is None:
        return blockers
    if m.state is State.REBOOTING:
        if still_valid(view, m):
            return (waits(m, "agent", "it has its permit and is to reboot now"),)
        permit = Permit(request.boot_id, request.nonce, view.now + view.snapshot.policy.permit_valid, view.epoch)
        walk.machine = replace(m, permit=permit, epoch=view.epoch)
        walk.events.append(transition_event(m, walk.machine, now=view.now, cause="permit renewed for the same nonce"))
    else:
        permit = Permit(request.boot_id, request.nonce, view.now + view.snapshot.policy.permit_valid, view.epoch)
        note = emergency_note(view.snapshot.cycles.get(m.cycle))
        walk.go(Happening.PERMIT, "permitted", note, permit=permit, booted=False, planned=False, turned_back=0)
    walk.lane = Lane.OUT
    walk.guards = frozenset(Guard)
    return blockers


def _rebooting(walk: Walk, seen: Observation) -> tuple[Blocker, ...]:
    m = walk.machine
    result = _result(m, seen.report, DirectiveKind.REBOOT)
    if result is not None and not result.ok:
        walk.fail(Happening.REBOOT_FAILED, "reboot failed", result.detail, flag=undone(result.detail))
        return ()
    if m.name in walk.view.snapshot.asking and not walk.events and walk.verdict is None:
        return _permit(walk)
    return (waits(m, "agent", f"it is rebooting; boot_id {m.boot_id} has not been replaced yet"),)


def _verifying(walk: Walk, seen: Observation) -> tuple[Blocker, ...]:
    m, check = walk.machine, seen.report.boot_check
    if seen.report.announced:
        return (waits(m, "agent", f"it is about to go down: somebody's {seen.report.announced} was announced"),)
    if check.status == "failed":
        # Only a check made in knowledge of this step counts: a cleared quarantine asks for a new one.
        if seen.report.index != m.version:
            return (waits(m, "agent", "its checks after boot failed; they are asked for once more"),)
        return _checks_failed(walk, check.detail)
    if check.status != "passed":
        return (waits(m, "agent", "its checks after boot are still running"),)
    waiting = not_ready(walk.view, m)
    if waiting is not None:
        return (waiting,)
    cycle = walk.view.snapshot.cycles.get(m.cycle) if m.cycle else None
    # Who was cleared after it missed the target has been looked at by a person: it is not judged by that again.
    # What a machine without an agent runs is not known.
    missed = m.booted and cycle is not None and bool(cycle.target) and not at_target(cycle, m) and m.fleetlock is None
    if missed and cycle is not None and m.outcomes.get(cycle.id) != f"failed: {MISSED}":
        wanted = f"cycle {cycle.id} wants {cycle.target}"
        walk.fail(Happening.VERIFY_FAILED, MISSED, wanted, flag=f"{MISSED}: {wanted}")
        return ()
    outcomes = with_reboot(m, walk.view.snapshot.cycles) if m.booted else m.outcomes
    if walk.view.hold_of(m) is not None:
        walk.go(Happening.HOLD, "held", outcomes=outcomes)
    else:
        walk.go(Happening.VERIFIED, "verified", outcomes=outcomes)
    return ()


def _checks_failed(walk: Walk, detail: str) -> tuple[Blocker, ...]:
    """Failed checks are judged once more after a pause (the agent repeats them by itself), then they count."""
    m, retry = walk.machine, walk.machine.retry
    if retry is None or retry.what != CHECKS or not ahead(retry, walk.view.snapshot.policy, walk.now):
        retry = again(walk.view.snapshot.policy, m, CHECKS, walk.now)
        if retry is None:
            walk.fail(Happening.VERIFY_FAILED, "checks after boot failed", detail)
            return ()
        walk.machine = replace(m, retry=retry)
        said = f"checks after boot failed, asked for once more until {clock(retry.at)}"
        told = transition_event(m, walk.machine, now=walk.now, cause=said, detail=detail)
        walk.events.append(replace(told, kind="retry", to=""))
    return (waits(m, "agent", f"its checks after boot failed; they are judged again at {clock(retry.at)}: {detail}"),)


def _enabling(walk: Walk, seen: Observation) -> tuple[Blocker, ...]:
    m, result = walk.machine, _result(walk.machine, seen.report, DirectiveKind.ENABLE)
    if result is None:
        return (at_work(m, seen.report, "its agent is enabling it"),)
    if not result.ok:
        walk.fail(Happening.ENABLE_FAILED, "enable failed", result.detail)
        return ()
    soak = walk.view.snapshot.policy.soak
    nomad = back(walk.view, m)
    if nomad.blocker is not None:
        return (nomad.blocker,)
    since = max(seen.enabled_at or walk.now, nomad.since)
    if walk.now < since + soak:
        return (waits(m, "soak", f"it soaks for {soak:.0f} s after it was enabled", "time"),)
    retry = m.retry if m.retry is not None and m.retry.what == DRAIN else None
    kept = m.nomad if nomad.owed else None
    walk.go(Happening.ENABLED, "enabled", nomad.note, retry=retry, nomad=kept, **_IN_SERVICE)
    return ()


def _held(walk: Walk, seen: Observation) -> tuple[Blocker, ...]:
    m, view = walk.machine, walk.view
    holds = view.holds_of(m)
    if holds:
        return tuple(held_by(h.kind, h.name, h.reason, h.by, h.since) for h in holds)
    cycle = view.snapshot.cycles.get(m.cycle) if m.cycle else None
    lock = view.snapshot.racks.get(m.rack)
    if (
        cycle is not None
        and not m.booted
        and pending(cycle, m)
        and _unwanted(walk) is None
        and not view.closed_for(m.cycle)
        # Held machines let their rack's lock go. If nobody else keeps it, waiting for it here would never end.
        and lock is not None
        and lock.holder == "ours"
        and not view.safeguards.blockers(m, view.skips(m.cycle))
    ):
        return _permit(walk)
    if m.booted and seen.report.boot_check.status != "passed":
        said = seen.report.boot_check.detail or seen.report.boot_check.status
        return (waits(m, "agent", f"it was released, and its checks after boot have not passed: {said}"),)
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


def _quarantined_state(walk: Walk, _seen: Observation) -> tuple[Blocker, ...]:
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
    """The report's result if it belongs to this step."""
    result = report.result
    if result is None or result.kind is not kind:
        return None
    return result if result.id == directive_id(m.name, step_of(m), kind.value) else None

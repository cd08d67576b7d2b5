"""When a fleet of which nobody has anything new to say is looked at again: as soon as time alone changes something.

A decision is always made on a fresh snapshot, so one that comes late makes nothing unsafe, and one that comes early is
merely in vain. :data:`LONGEST` bounds how late one can be, whatever is not thought of here.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from rebootd.core.decide import KEPT_WINDOW
from rebootd.core.fleetlock import FRESH
from rebootd.core.gates import RENEWAL
from rebootd.core.model import Snapshot, State
from rebootd.core.power import QUIET
from rebootd.core.second_look import BLIP, rest_of
from rebootd.core.windows import judge_windows
from rebootd.core.wire import Tri

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rebootd.core.decision import Decision
    from rebootd.core.model import Machine

LONGEST = 30.0
"""Seconds after a decision at which the next is made in any case."""
MARGIN = 0.001
"""Seconds for which a moment is ahead that has come: until it is over for sure, times being large numbers."""
_FIELDS = sorted({*Snapshot.__struct_fields__} - {"now", "clock_skew", "observed", "readings"})
"""What changes only when there is news. What is heard and read changes all the time; what of it matters is told."""


def idle(decision: Decision) -> bool:
    """Whether the decision changes nothing and has nobody to answer."""
    d = decision
    return not (d.steps or d.locks or d.unlocks or d.cycles or d.permits or d.prune or d.power or d.hand_over)


def alike(before: Snapshot, after: Snapshot) -> bool:
    """Whether nothing has changed but the time, and that machines and gates have said the same once more."""
    tolerance = after.policy.clock_tolerance
    if (abs(before.clock_skew) > tolerance) is not (abs(after.clock_skew) > tolerance):
        return False
    return all(getattr(before, field) == getattr(after, field) for field in _FIELDS)


def next_wake(snapshot: Snapshot, since: float) -> float:
    """The first moment from ``since`` on (seconds since the Unix epoch) at which time may change a decision.

    ``since`` is when the last one was made; the result is :data:`LONGEST` after it at most.
    """
    if snapshot.nomad is not None or snapshot.power:
        # Drains at Nomad and power cycles are followed closely.
        return since
    of_machines = (at for m in snapshot.machines.values() for at in _of_machine(snapshot, m))
    moments = chain(_of_fleet(snapshot, since), _of_gates(snapshot), _of_clients(snapshot), of_machines)
    latest = since + LONGEST
    return min((at for at in moments if since - MARGIN <= at < latest), default=latest)


def _of_fleet(snapshot: Snapshot, since: float) -> Iterator[float]:
    policy = snapshot.policy
    yield snapshot.leading_since + policy.settle
    yield from (at + policy.forget_after for at in snapshot.gone.values())
    yield from (cycle.created for cycle in snapshot.cycles.values())
    verdict = judge_windows(policy, snapshot.windows, since)
    yield from (at for at in (verdict.until, verdict.next) if at is not None)
    yield from (window.end + KEPT_WINDOW for window in snapshot.windows)


def _of_gates(snapshot: Snapshot) -> Iterator[float]:
    gates = {gate.name: gate for gate in snapshot.policy.gates}
    half = snapshot.policy.deadlines.drained / 2
    for name, reading in snapshot.readings.items():
        if name in gates:
            yield from (reading.at - 1.0, reading.at + gates[name].max_age)
    for name, held in snapshot.gate_since.items():
        if name in gates:
            yield held.shut + gates[name].max_block
        yield from (at + patience for at in (held.since, held.shut) for patience in (half, BLIP))
    if gates:
        yield snapshot.leading_since + RENEWAL
        yield from (at + RENEWAL for at in snapshot.gate_changed.values())
        yield from (m.since + RENEWAL for m in snapshot.machines.values())


def _of_clients(snapshot: Snapshot) -> Iterator[float]:
    wish, began = snapshot.policy.fleetlock.wish, snapshot.leading_since
    for m in snapshot.machines.values():
        if m.fleetlock is not None:
            yield from (at + wish for at in (m.fleetlock.asked, m.since, began))
            if m.name in snapshot.calls:
                yield m.fleetlock.called + wish / FRESH


def _of_machine(snapshot: Snapshot, m: Machine) -> Iterator[float]:
    policy, began = snapshot.policy, snapshot.leading_since
    seen = snapshot.observed.get(m.name)
    if seen is not None:
        yield seen.at + policy.unreachable_after
    if m.state is not State.IN_SERVICE:
        yield m.since
        limit = policy.deadlines.of(m.state)
        if limit is not None:
            power = policy.failures.power.after
            for at in (m.since, began):
                yield from (at + limit, at + limit / 2, at + limit + policy.soak, at + limit + power)
        if seen is not None:
            yield from (seen.enabled_at + policy.soak, seen.at + QUIET)
        if m.permit is not None:
            yield from (m.permit.until - policy.permit_valid, m.permit.until)
        if m.state is State.QUARANTINED:
            yield m.since + policy.failures.breaker.lasts
    if m.retry is not None:
        yield from (m.retry.at - policy.failures.retry.after, m.retry.at)
    if m.turned_back:
        yield from (m.turned_back_at, m.turned_back_at + rest_of(m))
    if m.unplanned_at:
        yield m.unplanned_at[-1] + policy.deadlines.verifying
    if m.reboot_required is Tri.YES:
        yield m.ended + policy.standing.every
    yield from (m.ended + wave.soak for wave in policy.waves)

"""Standing cycles: the policy's own, which are always running and take machines that require a reboot.

One takes machines whose agents say so, another those whose FleetLock clients do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from rebootd.core.advance import ENDED
from rebootd.core.fleetlock import LABEL
from rebootd.core.fleetlock_record import CYCLE
from rebootd.core.inputs import format_duration
from rebootd.core.model import Blocker, Cycle, CycleState, Event, State
from rebootd.core.times import utc
from rebootd.core.wire import Tri

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebootd.core.model import Machine, Snapshot
    from rebootd.core.policy import Policy
    from rebootd.core.view import View

WHO = "the policy"


def required_since(machine: Machine | None, required: Tri, now: float) -> float:
    """Since when a machine reports that a reboot is required; what is unknown changes nothing, and is no yes."""
    before = machine.required_since if machine is not None else 0.0
    if required is Tri.YES:
        return before or now
    return before if required is Tri.UNKNOWN else 0.0


def wants(policy: Policy, cycle: Cycle, now: float) -> Callable[[Machine], bool]:
    """Which machines in service a standing cycle takes: required for sure, and none of ours for long enough."""
    if cycle.id == CYCLE:
        return lambda machine: machine.fleetlock is not None and machine.reboot_required is Tri.YES
    standing = policy.standing
    matches, latest, yes = standing.selector.matches, now - standing.every, Tri.YES

    def wanted(machine: Machine) -> bool:
        required = machine.reboot_required is yes and machine.fleetlock is None
        return required and machine.ended <= latest and matches(machine)

    return wanted


def resting(view: View) -> dict[str, tuple[Blocker, ...]]:
    """Why machines that require a reboot do not even wait for one: they had one lately. {} without a standing cycle."""
    if not any(cycle.standing and cycle.id != CYCLE for cycle in view.cycles):
        return {}
    rule = view.snapshot.policy.standing
    matches, latest = rule.selector.matches, view.now - rule.every
    out: dict[str, tuple[Blocker, ...]] = {}
    for name, m in view.snapshot.machines.items():
        required = m.reboot_required is Tri.YES and m.fleetlock is None
        if required and m.state is State.IN_SERVICE and m.ended > latest and matches(m):
            what = f"a cycle rebooted it at {utc(m.ended)}, and the standing cycle takes no machine twice in "
            blocker = Blocker(
                kind="standing",
                what=what + format_duration(rule.every),
                since=m.ended,
                clears="time, or an operator: rebootctl cycle start",
            )
            out[name] = (blocker,)
    return out


def count(machine: Machine, cycle: Cycle) -> str:
    """How a machine counts in the standing cycle's numbers: an outcome, ``waiting``, or ``""`` (not at all).

    What it requires now comes before how it went the last time.
    """
    if machine.state is State.IN_SERVICE and machine.reboot_required is Tri.YES:
        return "waiting"
    return machine.outcomes.get(cycle.id, "")


class _Wanted(NamedTuple):
    """A standing cycle as the policy has it."""

    id: str
    selector: str
    reason: str


def _wanted(policy: Policy) -> list[_Wanted]:
    out = []
    if policy.standing.enabled:
        out.append(_Wanted(policy.standing.id, policy.standing.selector.text, "machines that require a reboot"))
    if policy.fleetlock.enabled:
        out.append(_Wanted(CYCLE, LABEL, "machines whose FleetLock clients ask for a reboot"))
    return out


def changes(snapshot: Snapshot) -> list[tuple[Cycle, Event]]:
    """The standing cycles' records as the policy wants them, where the store has them otherwise.

    A cycle that people started under the same id is left alone.
    """
    now, epoch = snapshot.now, snapshot.epoch
    wanted = _wanted(snapshot.policy)
    ids = {rule.id for rule in wanted}
    out: list[tuple[Cycle, Event]] = []
    for cycle in snapshot.cycles.values():
        if cycle.standing and cycle.state not in ENDED and cycle.id not in ids:
            why = "the policy has no such standing cycle any more"
            out.append(_turned(cycle, CycleState.CANCELLED, why, now, epoch))
    for rule in wanted:
        known = snapshot.cycles.get(rule.id)
        if known is None:
            made = _made(rule, snapshot)
            out.append((made, _event(made, "", now, epoch)))
        elif not known.standing:
            continue
        elif known.state in ENDED:
            out.append(_turned(replace(known, selector=rule.selector), CycleState.RUNNING, "", now, epoch))
        elif known.selector != rule.selector:
            out.append(_turned(replace(known, selector=rule.selector), known.state, known.why, now, epoch))
    return out


def _made(rule: _Wanted, snapshot: Snapshot) -> Cycle:
    return Cycle(
        id=rule.id,
        selector=rule.selector,
        created=snapshot.now,
        changed=snapshot.now,
        by=WHO,
        reason=rule.reason,
        failure_budget=snapshot.policy.failure_budget,
        waves=False,
        standing=True,
        epoch=snapshot.epoch,
    )


def _turned(cycle: Cycle, state: CycleState, why: str, now: float, epoch: int) -> tuple[Cycle, Event]:
    after = replace(cycle, state=state, why=why, changed=now, epoch=epoch, version=cycle.version + 1)
    return after, _event(after, cycle.state.value, now, epoch)


def _event(cycle: Cycle, frm: str, now: float, epoch: int) -> Event:
    return Event(
        time=now,
        kind="cycle",
        cycle=cycle.id,
        frm=frm,
        to=cycle.state.value,
        cause="standing cycle",
        epoch=epoch,
        detail=cycle.why or f"selector {cycle.selector}",
    )

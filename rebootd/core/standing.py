"""The standing cycle: the policy's own, which is always running and takes machines that require a reboot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from rebootd.core.advance import ENDED
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


def wants(policy: Policy, now: float) -> Callable[[Machine], bool]:
    """Which machines in service the standing cycle takes: required for sure, and none of ours for long enough."""
    standing = policy.standing
    matches, latest, yes = standing.selector.matches, now - standing.every, Tri.YES

    def wanted(machine: Machine) -> bool:
        return machine.reboot_required is yes and machine.ended <= latest and matches(machine)

    return wanted


def resting(view: View) -> dict[str, tuple[Blocker, ...]]:
    """Why machines that require a reboot do not even wait for one: they had one lately. {} without a standing cycle."""
    if not any(cycle.standing for cycle in view.cycles):
        return {}
    rule = view.snapshot.policy.standing
    matches, latest = rule.selector.matches, view.now - rule.every
    out: dict[str, tuple[Blocker, ...]] = {}
    for name, m in view.snapshot.machines.items():
        if m.reboot_required is Tri.YES and m.state is State.IN_SERVICE and m.ended > latest and matches(m):
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


def changes(snapshot: Snapshot) -> list[tuple[Cycle, Event]]:
    """The standing cycle's record as the policy wants it, where the store has it otherwise.

    A cycle that people started under the same id is left alone.
    """
    standing, now, epoch = snapshot.policy.standing, snapshot.now, snapshot.epoch
    out: list[tuple[Cycle, Event]] = []
    for cycle in snapshot.cycles.values():
        if cycle.standing and cycle.state not in ENDED and (not standing.enabled or cycle.id != standing.id):
            why = "the policy has no such standing cycle any more"
            out.append(_turned(cycle, CycleState.CANCELLED, why, now, epoch))
    known = snapshot.cycles.get(standing.id)
    if not standing.enabled or (known is not None and not known.standing):
        return out
    selector, budget = standing.selector.text, snapshot.policy.failure_budget
    if known is None:
        made = Cycle(
            id=standing.id,
            selector=selector,
            created=now,
            changed=now,
            by=WHO,
            reason="machines that require a reboot",
            failure_budget=budget,
            waves=False,
            standing=True,
            epoch=epoch,
        )
        out.append((made, _event(made, "", now, epoch)))
    elif known.state in ENDED:
        out.append(_turned(replace(known, selector=selector), CycleState.RUNNING, "", now, epoch))
    elif known.selector != selector:
        out.append(_turned(replace(known, selector=selector), known.state, known.why, now, epoch))
    return out


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

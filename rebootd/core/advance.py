"""Moving one machine one step along the state table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from rebootd.core.model import SUPERSEDED_BOOTS, CycleState, Event, Machine, State
from rebootd.core.selectors import parse_selector
from rebootd.core.states import Happening, target
from rebootd.core.wire import Tri

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rebootd.core.model import Cycle

KEPT_OUTCOMES = 8
"""How many cycles' outcomes a machine's record keeps beside those of cycles still under way."""

ENDED = frozenset({CycleState.CANCELLED, CycleState.DONE})


def advance(
    machine: Machine, happening: Happening, *, now: float, epoch: int, cause: str, detail: str = "", **facts: Any
) -> tuple[Machine, Event]:
    """The record after ``happening``, and the event that tells of it.

    ``facts`` are further fields of the record that change with it. Raises ValueError when the table
    does not know the happening in this state: that is a programming error.
    """
    to = target(machine.state, happening)
    if to is None:
        raise ValueError(f"{happening} does not apply to {machine.name}, which is {machine.state}")
    if facts.get("outcomes", machine.outcomes) is not machine.outcomes or (
        to is State.IN_SERVICE and machine.booted and machine.cycle
    ):
        # Waves soak from here, and the standing cycle leaves the machine alone from here.
        facts["ended"] = now
    stays = to is machine.state and to in {State.HELD, State.QUARANTINED}
    after = replace(
        machine,
        state=to,
        since=machine.since if stays else now,
        epoch=epoch,
        version=machine.version + 1,
        cause=cause,
        **facts,
    )
    return after, transition_event(machine, after, now=now, cause=cause, detail=detail)


def transition_event(before: Machine | None, after: Machine, *, now: float, cause: str, detail: str = "") -> Event:
    """The event of one transition; ``before`` is None for a machine's first report."""
    return Event(
        time=now,
        machine=after.name,
        rack=after.rack,
        frm=before.state.value if before else "",
        to=after.state.value,
        cause=cause,
        cycle=after.cycle or (before.cycle if before else ""),
        epoch=after.epoch,
        boot_id=after.boot_id,
        detail=detail,
    )


def with_boot(machine: Machine, boot_id: str) -> dict[str, Any]:
    """The facts that a new boot_id changes: the old one is superseded and its permit is spent."""
    return {
        "boot_id": boot_id,
        "boots": (*machine.boots, machine.boot_id)[-SUPERSEDED_BOOTS:] if machine.boot_id else machine.boots,
        "permit": None,
        "booted": True,
    }


def selected(cycle: Cycle, machine: Machine) -> bool:
    """Whether the cycle's selector takes the machine in."""
    return parse_selector(cycle.selector).matches(machine)


def at_target(cycle: Cycle, machine: Machine) -> bool:
    """Whether the machine shows what the cycle wants to prove; never true without a target."""
    return bool(cycle.target) and parse_selector(cycle.target, "target").matches(machine)


def pending(cycle: Cycle, machine: Machine) -> bool:
    """Whether the cycle still wants this machine to reboot."""
    if cycle.standing:
        return machine.reboot_required is Tri.YES and selected(cycle, machine)
    return cycle.id not in machine.outcomes and selected(cycle, machine) and not at_target(cycle, machine)


def with_outcome(machine: Machine, outcome: str, cycles: Mapping[str, Cycle]) -> dict[str, str]:
    """``outcomes`` after the machine's own cycle ended for it as ``outcome``; bounded."""
    if not machine.cycle:
        return machine.outcomes
    return _bounded({**machine.outcomes, machine.cycle: outcome}, cycles)


def with_reboot(machine: Machine, cycles: Mapping[str, Cycle]) -> dict[str, str]:
    """``outcomes`` after a proven boot: every open cycle that wanted one is served by it.

    A cycle asks for one fresh boot, not for one by its own hand: a machine that crashed and came
    back during the cycle has had it, and is not taken out a second time. ``machine`` is still in the
    state that its boot brought it to, so ``since`` is the time of that boot.
    """
    served = {
        c.id: "rebooted"
        for c in cycles.values()
        if c.state not in ENDED
        and (c.created <= machine.since or machine.cycle == c.id)
        and (c.id not in machine.outcomes or c.standing)
        and (not c.standing or machine.cycle == c.id)
        and selected(c, machine)
        and (not c.target or at_target(c, machine))
    }
    return _bounded({**machine.outcomes, **served}, cycles) if served else machine.outcomes


def _bounded(outcomes: dict[str, str], cycles: Mapping[str, Cycle]) -> dict[str, str]:
    ended = [i for i in outcomes if i not in cycles or cycles[i].state in ENDED]
    for cycle_id in ended[: max(0, len(ended) - KEPT_OUTCOMES)]:
        del outcomes[cycle_id]
    return outcomes

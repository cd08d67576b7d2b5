"""What the coordinator asks of one agent, as read from the machine's committed record alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebootd.core.decision import directive_id
from rebootd.core.model import State
from rebootd.core.wire import Directive, DirectiveKind

if TYPE_CHECKING:
    from rebootd.core.model import Machine

_KIND = {
    State.DRAINING: DirectiveKind.DRAIN,
    State.DRAINED: DirectiveKind.REBOOT,
    State.REBOOTING: DirectiveKind.REBOOT,
    State.ENABLING: DirectiveKind.ENABLE,
}

IDLE_WAIT = 60.0
"""Longest wait (seconds) of a machine in service: it costs nothing to leave it alone."""
BUSY_WAIT = 5.0
"""Longest wait (seconds) of a machine that is out, so that a frozen leader is left quickly."""


def step_of(machine: Machine) -> int:
    """The version that names the step which the machine's directive belongs to.

    One reboot is one directive, from drained to rebooting: an agent that is killed while its host goes down must
    find the directive that it has journaled, not another one that it would have to refuse.
    """
    return machine.version - 1 if machine.state is State.REBOOTING else machine.version


def directive_for(machine: Machine, boot_id: str, epoch: int, *, held: bool, conflict: bool) -> Directive | None:
    """The directive for the agent that reports ``boot_id``, or None.

    ``held`` tells whether a hold applies (a held machine without one may ask for its reboot),
    ``conflict`` whether two machine-ids report under this name: neither is told anything.
    """
    if conflict or boot_id != machine.boot_id:
        return None
    kind = _KIND.get(machine.state)
    if machine.state is State.HELD and not held and machine.cycle and not machine.booted:
        kind = DirectiveKind.REBOOT
    if kind is None:
        return None
    return Directive(
        id=directive_id(machine.name, step_of(machine), kind.value),
        kind=kind,
        epoch=epoch,
        version=machine.version,
        boot_id=machine.boot_id,
        cycle=machine.cycle,
        method=machine.method,
    )


def longest_wait(machine: Machine | None) -> float:
    """How long a request of this machine may be left open, in seconds."""
    return IDLE_WAIT if machine is not None and machine.state is State.IN_SERVICE else BUSY_WAIT

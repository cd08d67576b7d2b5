"""The leader's own host: it goes like any other, last in its rack, once somebody else leads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebootd.core.model import State

if TYPE_CHECKING:
    from rebootd.core.model import Machine, Snapshot

LEAVING = frozenset({State.DRAINING, State.DRAINED, State.REBOOTING, State.HELD})
"""States in which a host may go down at any moment: a daemon on it lets others lead, if there are any."""


def hands_over(snapshot: Snapshot, machine: Machine) -> bool:
    """Whether the machine is the leader's own host and another daemon, on a host in service, can take over.

    Also while nobody has looked yet who could. With no other daemon at all the leader's host is taken out by itself:
    its record says what it is about, and the daemon that starts there after the boot goes on.
    """
    if machine.name != snapshot.leader_node:
        return False
    if snapshot.successors is None:
        return True
    others = snapshot.successors - {machine.name}
    known = snapshot.machines
    return any(name not in known or known[name].state is State.IN_SERVICE for name in others)

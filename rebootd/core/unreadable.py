"""Records of machines that cannot be read: who waits for them, and what each machine is told.

Nobody knows what stands in such a record, so no cycle that may still want its machine ends before a person has put it
right (or has forgotten the machine, or cancelled the cycle): what is unknown is not done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebootd.core.advance import pending
from rebootd.core.model import Blocker
from rebootd.core.states import WORKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rebootd.core.model import Aside, Cycle


def awaited(cycle: Cycle, aside: Aside) -> bool:
    """Whether the cycle cannot end before that record can be read: by what was last known of it, if anything was."""
    if cycle.standing:
        return False
    last = aside.last
    return last is None or pending(cycle, last) or (last.cycle == cycle.id and last.state in WORKING)


def set_aside(aside: Aside, cycles: Iterable[Cycle]) -> Blocker:
    """What an unreadable record is to its machine; ``cycles`` are those that have not ended."""
    names = [cycle.id for cycle in cycles if awaited(cycle, aside)]
    waits = f"; cycle {', '.join(names)} waits for it" if names else ""
    return Blocker(
        kind="aside",
        what=f"its record cannot be read, so it is set aside{waits}: {aside.error}",
        since=aside.since,
        clears=f"an operator: put it right with consul kv put, or rebootctl forget --force {aside.name}",
    )

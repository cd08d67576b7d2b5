"""What a new policy says of limits, judged on the fleet as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebootd.core.selector_hints import unmatched

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rebootd.core.model import Snapshot
    from rebootd.core.policy import Policy


def check_limits(policy: Policy, snapshot: Snapshot) -> Iterator[str]:
    """Warnings about limits that match nobody, and about those that nobody can ever meet, each with its field."""
    if not snapshot.machines:
        return
    if not policy.rack_unavailable.value:
        yield f"racks.unavailable: {_never(len(snapshot.machines))}"
    for index, limit in enumerate(policy.limits):
        said = unmatched(snapshot, limit.selector)
        if said:
            yield f"limits[{index}].selector: {said}, so it limits nobody"
        elif not limit.max.value:
            yield f"limits[{index}].max: {_never(sum(map(limit.selector.matches, snapshot.machines.values())))}"


def _never(machines: int) -> str:
    who = f"none of these {machines} machines goes" if machines != 1 else "this one machine never goes"
    return f"0 means never: {who} out of service by rebootd"

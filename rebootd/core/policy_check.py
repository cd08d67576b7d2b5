"""What a new policy says of limits, and whom its changes concern, judged on the fleet as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from rebootd.core.selector_hints import unmatched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rebootd.core.model import Machine, Snapshot
    from rebootd.core.policy import Policy

    Named = dict[str, tuple[object, Callable[[Machine], bool]]]

EXAMPLES = 5


class Concern(msgspec.Struct, frozen=True):
    """Something of the policy that differs: how many machines it concerns, by the old or the new, and some of them."""

    what: str
    machines: int
    examples: tuple[str, ...] = ()


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
    return f"0 means never: none of these {machines} machines goes out of service by rebootd"


def concerns(old: Policy, new: Policy, snapshot: Snapshot) -> Iterator[Concern]:
    """Gates, quorum groups and the standing cycle, where they differ; limits are told of by themselves."""
    before, after = _named(old), _named(new)
    for what in sorted(before.keys() | after.keys()):
        was, will = before.get(what), after.get(what)
        if was is not None and will is not None and was[0] == will[0]:
            continue
        tests = [matches for _, matches in (x for x in (was, will) if x is not None)]
        names = sorted(m.name for m in snapshot.machines.values() if any(test(m) for test in tests))
        yield Concern(what, len(names), tuple(names[:EXAMPLES]))


def _named(policy: Policy) -> Named:
    found: Named = {}
    for gate in policy.gates:
        # Without `covers` it is the gate's kind that chooses, once it has been read: it may be any.
        found[f"gate {gate.name}"] = (gate, gate.covers.matches if gate.covers is not None else _any)
    for quorum in policy.quorums:
        found[f"quorum group {quorum.name}"] = (quorum, quorum.selector.matches)
    if policy.standing.enabled:
        found[f"standing cycle {policy.standing.id}"] = (policy.standing, policy.standing.selector.matches)
    return found


def _any(_: Machine) -> bool:
    return True

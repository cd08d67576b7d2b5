"""What a new policy says of limits, labels and how machines are drained and rebooted, judged on the fleet as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebootd.core.policy_failures import Breaker
from rebootd.core.policy_reboot import method_rule
from rebootd.core.policy_waves import Expected
from rebootd.core.selector_hints import unknown, unmatched

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


def check_ways(policy: Policy, snapshot: Snapshot) -> Iterator[str]:
    """Warnings about drains and methods that are for nobody, and labels that no machine has, each with its field."""
    if not snapshot.machines:
        return
    nomad = policy.drains.nomad
    said = unmatched(snapshot, nomad.machines) if nomad is not None else ""
    if said:
        yield f"drains.nomad.machines: {said}, so nobody is drained at Nomad"
    used = {method_rule(policy, m) for m in snapshot.machines.values()}
    for place, rule in enumerate(policy.reboot):
        said = unmatched(snapshot, rule.machines)
        if said:
            yield f"reboot.methods[{place}].machines: {said}, so nobody reboots by {rule.method}"
        elif place not in used:
            yield f"reboot.methods[{place}].machines: {rule.machines.text!r} comes too late: rules before it take them"
    labels = {
        "failures.breaker.labels": (policy.failures.breaker.labels, Breaker().labels),
        "forecast.labels": (policy.expected.labels, Expected().labels),
    }
    for field, (given, default) in labels.items():
        # The defaults are for any fleet: not every one has them all.
        for label in given:
            said = unknown(snapshot, label) if label not in default else ""
            if said:
                yield f"{field}: {said}"

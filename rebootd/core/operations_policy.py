"""What operators may ask for about the policy, as plans, and what a new one would change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from rebootd.core.decision import Change, RecordWrite
from rebootd.core.gates import check_gates
from rebootd.core.limits import available
from rebootd.core.operations import audit
from rebootd.core.pace_check import check_pace
from rebootd.core.policy import diff_policies, parse_policy
from rebootd.core.policy_check import check_limits, check_ways
from rebootd.core.policy_concerns import BY_MACHINE, EXAMPLES, concerns
from rebootd.core.policy_told import FieldChange, LimitChange, PolicyDiff
from rebootd.core.quorums import check_quorums

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rebootd.core.model import Machine, Snapshot
    from rebootd.core.operations_inputs import Because
    from rebootd.core.policy import Limit, Policy

POLICY_KEY = "policy"


def diff_policy(snapshot: Snapshot, text: str) -> PolicyDiff:
    """What ``text`` (YAML) would change.

    Raises InvalidInput as :func:`parse_policy` does, and for quorum groups that could never lose a member in the fleet
    as it is.
    """
    old, new = snapshot.policy, parse_policy(text)
    fields = tuple(FieldChange(c.field, c.old, c.new) for c in diff_policies(old, new))
    fleet_wide = any(not f.field.startswith(BY_MACHINE) for f in fields)
    warnings = _checked(new, snapshot)
    if not fields:
        return PolicyDiff(warnings=warnings)
    limits = tuple(_limits(old, new, snapshot))
    return PolicyDiff(fields, limits, fleet_wide, warnings, tuple(concerns(old, new, snapshot)))


def without_names(diff: PolicyDiff) -> PolicyDiff:
    """The same with examples alone: what has been applied is not looked through."""
    return replace(
        diff,
        limits=tuple(replace(x, names=()) for x in diff.limits),
        concerns=tuple(replace(x, names=()) for x in diff.concerns),
    )


def _checked(new: Policy, snapshot: Snapshot) -> tuple[str, ...]:
    return (
        *check_limits(new, snapshot),
        *check_ways(new, snapshot),
        *check_gates(new, snapshot),
        *check_quorums(new, snapshot),
        *check_pace(new, snapshot),
    )


def _limits(old: Policy, new: Policy, snapshot: Snapshot) -> Iterator[LimitChange]:
    before = {x.name: x for x in old.limits}
    after = {x.name: x for x in new.limits}
    for name in sorted(before.keys() | after.keys()):
        was, will = before.get(name), after.get(name)
        if was == will:
            continue
        members = [
            [m for m in snapshot.machines.values() if x.selector.matches(m)] if x is not None else []
            for x in (was, will)
        ]
        said = [_said(x, here, snapshot) for x, here in zip((was, will), members, strict=True)]
        names = tuple(sorted({m.name for here in members for m in here}))
        yield LimitChange(name, said[0], said[1], len(names), names[:EXAMPLES], names)


def _said(limit: Limit | None, members: list[Machine], snapshot: Snapshot) -> str:
    if limit is None:
        return ""
    away = sum(not available(snapshot, m) for m in members)
    most = f" ({limit.max.of(len(members))})" if limit.max.percent else ""
    return f"at most {limit.max}{most} of the {len(members)} with {limit.selector}, {away} unavailable now"


def apply_policy(snapshot: Snapshot, text: str, because: Because) -> Change:
    """Stores a policy. Permits that are being asked for meanwhile are refused and asked for again."""
    because = because.checked()
    new = parse_policy(text)
    # It may have been right for the fleet as it was when somebody asked.
    _checked(new, snapshot)
    changed = [f.field for f in diff_policies(snapshot.policy, new)]
    note = f"changed: {', '.join(changed[:8])}{' ...' if len(changed) > 8 else ''}" if changed else "nothing changed"
    return Change(
        writes=(RecordWrite(key=POLICY_KEY, value=text.encode()),),
        events=(audit(snapshot, "policy-apply", because, note=note),),
    )

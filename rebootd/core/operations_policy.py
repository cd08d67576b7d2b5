"""What operators may ask for about the policy, as plans, and what a new one would change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from rebootd.core.decision import Change, RecordWrite
from rebootd.core.gates import check_gates
from rebootd.core.operations import audit
from rebootd.core.pace_check import check_pace
from rebootd.core.policy import diff_policies, parse_policy
from rebootd.core.policy_check import Concern, check_limits, concerns
from rebootd.core.quorums import check_quorums

if TYPE_CHECKING:
    from rebootd.core.model import Snapshot
    from rebootd.core.operations_inputs import Because

POLICY_KEY = "policy"


class FieldChange(msgspec.Struct, frozen=True):
    """One difference between two policies: the path in the file, and both values as text (``""``: absent)."""

    field: str
    old: str
    new: str


class LimitChange(msgspec.Struct, frozen=True):
    """A limit whose members or maximum differ: how many machines it concerns, and some of them."""

    limit: str
    old: str
    new: str
    machines: int
    examples: tuple[str, ...] = ()


class PolicyDiff(msgspec.Struct, frozen=True):
    """What a policy would change: the fields, and the machines under limits that change.

    ``fleet_wide`` tells whether a field changes that concerns every machine. ``warnings`` name a field each, which is
    accepted but hardly meant so. ``concerns`` are changed gates, quorum groups and standing cycles with their machines.
    """

    fields: tuple[FieldChange, ...] = ()
    limits: tuple[LimitChange, ...] = ()
    fleet_wide: bool = False
    warnings: tuple[str, ...] = ()
    concerns: tuple[Concern, ...] = ()


def diff_policy(snapshot: Snapshot, text: str) -> PolicyDiff:
    """What ``text`` (YAML) would change. Raises InvalidInput as :func:`parse_policy` does, and for quorum groups that
    could never lose a member in the fleet as it is.
    """
    old, new = snapshot.policy, parse_policy(text)
    fields = tuple(FieldChange(c.field, c.old, c.new) for c in diff_policies(old, new))
    before = {x.name: x for x in old.limits}
    after = {x.name: x for x in new.limits}
    limits = []
    for limit in sorted(before.keys() | after.keys()):
        was, will = before.get(limit), after.get(limit)
        if was == will:
            continue
        names = sorted(
            m.name
            for m in snapshot.machines.values()
            if (was is not None and was.selector.matches(m)) or (will is not None and will.selector.matches(m))
        )
        said = [f"at most {x.max} of {x.selector}" if x is not None else "" for x in (was, will)]
        limits.append(LimitChange(limit, said[0], said[1], len(names), tuple(names[:5])))
    fleet_wide = any(not f.field.startswith(("limits", "gates", "quorums", "standing")) for f in fields)
    warnings = (
        *check_limits(new, snapshot),
        *check_gates(new, snapshot),
        *check_quorums(new, snapshot),
        *check_pace(new, snapshot),
    )
    return PolicyDiff(fields, tuple(limits), fleet_wide, warnings, tuple(concerns(old, new, snapshot)))


def apply_policy(snapshot: Snapshot, text: str, because: Because) -> Change:
    """Stores a policy. Permits that are being asked for meanwhile are refused and asked for again."""
    because = because.checked()
    changed = [f.field for f in diff_policy(snapshot, text).fields]
    note = f"changed: {', '.join(changed[:8])}{' ...' if len(changed) > 8 else ''}" if changed else "nothing changed"
    return Change(
        writes=(RecordWrite(key=POLICY_KEY, value=text.encode()),),
        events=(audit(snapshot, "policy-apply", because, note=note),),
    )

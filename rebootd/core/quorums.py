"""Quorum groups (S7): never more than one member out by our hand, and none while the group is not whole.

A group under three members loses its quorum with any one of them, so it needs an explicit ``allow_outage``.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from rebootd.core.inputs import bad_input, counted
from rebootd.core.limits import strangers
from rebootd.core.model import Blocker, State
from rebootd.core.selector_hints import unmatched

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rebootd.core.model import Machine, Snapshot
    from rebootd.core.policy import Policy
    from rebootd.core.policy_gates import Quorum

SMALLEST = 3
"""Members that a group needs to keep its quorum while one is away."""
NAMED = 5


class Group:
    """One declared group in one snapshot. ``members`` are who it matches; ``shut``: it may block somebody."""

    def __init__(self, quorum: Quorum, members: frozenset[str], snapshot: Snapshot, away: Mapping[str, float]) -> None:
        self.quorum = quorum
        self._now = snapshot.now
        self._began = snapshot.leading_since
        self.members = members
        # Who has no record, or one that cannot be read, may be a member: nobody knows its labels.
        unknown = {name: since for name, _, since in strangers(snapshot)} if self.members else {}
        self._away = {name: since for name, since in away.items() if name in self.members} | unknown
        self._blockers: dict[str, Blocker | None] = {}

    @property
    def _small(self) -> bool:
        return len(self.members) < SMALLEST and not self.quorum.allow_outage

    @property
    def shut(self) -> bool:
        """Whether somebody is blocked by it."""
        return bool(self.members) and (self._small or bool(self._away))

    def left(self, machine: Machine) -> bool:
        """A machine is taken out by this very decision; True if it is a member."""
        if machine.name not in self.members:
            return False
        self._away[machine.name] = self._now
        self._blockers.clear()
        return True

    def shown(self, machine: Machine) -> bool:
        """A step of this very decision tells what the machine is now; True if that changes the group for others.

        Who leaves makes it smaller. Who joins counts as a member once that has landed, and as away at once.
        """
        member = self.quorum.selector.matches(machine)
        if member == (machine.name in self.members) or (member and machine.state is State.IN_SERVICE):
            return False
        if member:
            self.members |= {machine.name}
            self._away[machine.name] = machine.since
        else:
            self.members -= {machine.name}
        self._blockers.clear()
        return True

    def blocker(self, machine: Machine) -> Blocker | None:
        """What keeps a member in; None for all others, and for a member that is the only one out."""
        if machine.name not in self.members:
            return None
        itself = machine.name if machine.state is not State.IN_SERVICE else ""
        if itself not in self._blockers:
            self._blockers[itself] = self._judge(itself)
        return self._blockers[itself]

    def why(self) -> str:
        """Why no member in service may go now, or ``""``."""
        blocker = self._judge("")
        return blocker.what if blocker is not None and self.members else ""

    def _judge(self, itself: str) -> Blocker | None:
        others = {name: since for name, since in self._away.items() if name != itself}
        total, name = len(self.members), self.quorum.name
        if others:
            shown = ", ".join(sorted(others)[:NAMED])
            more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
            return Blocker(
                kind="quorum",
                what=f"quorum group {name} is not whole: {len(others)} of {total} unavailable ({shown}{more})",
                since=min(others.values()),
                clears="these machines coming back",
            )
        if self._small:
            return Blocker(
                kind="quorum",
                what=f"quorum group {name} has {counted(total, 'member')} and loses its quorum with any one of them",
                since=self._began,
                clears=f"an operator: allow_outage: true for {name} in the policy",
            )
        return None


def check_quorums(policy: Policy, snapshot: Snapshot) -> tuple[str, ...]:
    """Warnings about the policy's groups on the fleet as it is, each with its field.

    Raises InvalidInput for groups that could never lose a member: too small without ``allow_outage``, or overlapping
    with one that is allowed an outage where they are not. Says nothing while no machine is known.
    """
    if not snapshot.machines:
        return ()
    members = [frozenset(m.name for m in snapshot.machines.values() if q.selector.matches(m)) for q in policy.quorums]
    warnings = []
    for index, (quorum, names) in enumerate(zip(policy.quorums, members, strict=True)):
        path = f"quorums[{index}]"
        if not names:
            warnings.append(f"{path}.selector: {unmatched(snapshot, quorum.selector)}, so it protects nobody")
        elif len(names) < SMALLEST and not quorum.allow_outage:
            raise bad_input(
                f"{path}.allow_outage",
                "false",
                f"true, since {quorum.name} has {counted(len(names), 'member')} ({', '.join(sorted(names))}) and loses "
                "its quorum with any one of them; or a selector that matches at least 3",
            )
        elif len(names) >= SMALLEST and quorum.allow_outage:
            warnings.append(f"{path}.allow_outage: changes nothing, {quorum.name} has {len(names)} members")
    for one, other in combinations(range(len(members)), 2):
        both = members[one] & members[other]
        if not both:
            continue
        first, second = policy.quorums[one], policy.quorums[other]
        shown = f"{first.name} and {second.name} share {counted(len(both), 'machine')} (such as {min(both)})"
        if first.allow_outage != second.allow_outage:
            raise bad_input(
                f"quorums[{other}].allow_outage",
                str(second.allow_outage).lower(),
                f"{str(first.allow_outage).lower()} as in quorums[{one}], or groups that do not overlap: {shown}",
            )
        warnings.append(f"quorums[{other}].selector: {shown}; such a machine needs both groups whole")
    return tuple(warnings)

"""What keeps one machine in by itself, whatever its rack, its cycle and the fleet allow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebootd.core.drains import keeps_in
from rebootd.core.limits import GONE, unheard
from rebootd.core.model import Blocker
from rebootd.core.second_look import resting

if TYPE_CHECKING:
    from rebootd.core.model import Machine
    from rebootd.core.view import View


def no_rack(m: Machine) -> Blocker:
    """What an unknown rack is; a machine that had one keeps it, so it was never known."""
    return Blocker(
        kind="no-rack",
        what="its rack is unknown (or not of A-Z a-z 0-9 . _ -), so nobody can tell what goes down with it",
        since=m.since,
        clears="whoever sets `rack` in its Consul node meta",
    )


def own_blockers(view: View, m: Machine) -> tuple[Blocker, ...]:
    """Its conflict, its silence, its failed checks, a gate that turned it back lately, and its Nomad client."""
    snapshot = view.snapshot
    conflict = snapshot.conflicts.get(m.name)
    if conflict is not None:
        return (
            Blocker(
                kind="conflict",
                what=conflict,
                since=snapshot.conflict_since.get(m.name, view.now),
                clears=f"an operator: rebootctl forget {m.name}",
            ),
        )
    out = []
    if unheard(snapshot, m.name):
        seen = snapshot.observed.get(m.name)
        out.append(
            Blocker(
                kind="unseen",
                what="its agent has not called " + ("for too long" if seen else "since this leader began"),
                since=seen.at if seen else snapshot.leading_since,
                clears="the machine's agent",
            )
        )
    if m.name in snapshot.failing:
        out.append(
            Blocker(
                kind="failing",
                what=f"Consul says that it has failed: {snapshot.failing[m.name]}",
                since=snapshot.failing_since.get(m.name, view.now),
                clears="whoever repairs it",
            )
        )
    if m.name in snapshot.gone:
        out.append(
            Blocker(
                kind="failing",
                what=GONE,
                since=snapshot.gone[m.name],
                clears=f"its Consul agent when it joins again, or an operator: rebootctl forget {m.name}",
            )
        )
    out += [b for b in (resting(m, view.now), keeps_in(view, m)) if b is not None]
    return tuple(out)

"""What operators are shown of racks, windows and the policy. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rebootd.api import shapes
from rebootd.core.inputs import format_duration
from rebootd.core.limits import Capacity
from rebootd.core.model import RackLock
from rebootd.core.operations import known_racks
from rebootd.core.windows import active, judge_windows, next_opening

if TYPE_CHECKING:
    from rebootd.core.model import Snapshot


def racks(snapshot: Snapshot, capacity: Capacity | None = None) -> shapes.Racks:
    """All racks by name, as the limits count them."""
    capacity = capacity or Capacity(snapshot)
    rows = []
    for rack in sorted(known_racks(snapshot)):
        lock = snapshot.racks.get(rack, RackLock())
        tally = capacity.racks.get(rack)
        states = Counter(m.state.value for m in capacity.members.get(rack, ()))
        rows.append(
            shapes.RackRow(
                rack=rack,
                machines=tally.total if tally else 0,
                states=dict(states),
                unavailable=len(tally.away) if tally else 0,
                allowed=tally.maximum if tally else 0,
                open=capacity.open.get(rack, ""),
                lock=lock.holder,
                holder=" on ".join(x for x in (lock.session, lock.node) if x) if lock.holder == "other" else "",
                hold=snapshot.rack_holds.get(rack),
            )
        )
    return shapes.Racks(now=snapshot.now, open_racks=snapshot.policy.open_racks, racks=tuple(rows))


def windows(snapshot: Snapshot) -> shapes.Windows:
    """All windows, open and coming ones first, and what they allow together."""
    now = snapshot.now
    verdict = judge_windows(snapshot.policy, snapshot.windows, now)
    rows = [
        shapes.WindowRow(
            id=w.id, kind="once", open=w.start <= now < w.end, start=w.start, end=w.end, by=w.by, reason=w.reason
        )
        for w in snapshot.windows
    ]
    for c in snapshot.policy.windows:
        spell = active(c, now)
        begins = spell[0] if spell else next_opening(c, now)
        ends = spell[1] if spell else (begins + c.duration if begins is not None else None)
        rule = f"{c.start} {c.timezone} for {format_duration(c.duration)}"
        rows.append(
            shapes.WindowRow(id=c.name, kind="calendar", open=spell is not None, start=begins, end=ends, rule=rule)
        )
    rows.sort(
        key=lambda r: (r.end is not None and r.end <= now, r.start if r.start is not None else float("inf"), r.id)
    )
    return shapes.Windows(
        now=now,
        allowed=verdict.open,
        required=snapshot.policy.window_required or bool(snapshot.policy.windows),
        until=verdict.until,
        next=verdict.next,
        windows=tuple(rows),
    )

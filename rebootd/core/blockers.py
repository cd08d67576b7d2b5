"""What keeps a whole rack in: asked when machines are admitted, and told when they are not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebootd.core.model import Blocker

if TYPE_CHECKING:
    from rebootd.core.limits import Tally
    from rebootd.core.model import RackLock
    from rebootd.core.view import View


def may_open(view: View, rack: str) -> bool:
    """Whether the policy lets the rack be open: it is already, or one more may be."""
    opened = view.capacity.open
    return len(opened) + (rack not in opened) <= view.snapshot.policy.open_racks


def rack_blockers(view: View, rack: str) -> tuple[Blocker, ...]:
    """What keeps every machine of the rack in, apart from capacity."""
    snapshot = view.snapshot
    out = []
    lock = snapshot.racks.get(rack)
    if lock is not None and lock.holder == "other":
        out.append(locked_by_others(rack, lock))
    waited = view.now - snapshot.leading_since
    if waited < snapshot.policy.settle:
        silent = [m.name for m in view.capacity.members[rack] if m.name not in snapshot.observed]
        silent += view.capacity.unseen.get(rack, ())
        if silent:
            named = ", ".join(silent[:5]) + (f" and {len(silent) - 5} more" if len(silent) > 5 else "")
            out.append(
                Blocker(
                    kind="settle",
                    what=f"the new leader waits for the first call of {named}, or until {snapshot.policy.settle:.0f} s "
                    "after its election",
                    since=snapshot.leading_since,
                    clears="the agents, or time",
                )
            )
    return tuple(out)


def locked_by_others(rack: str, lock: RackLock) -> Blocker:
    """The blocker that somebody else's lock is."""
    on = f" on node {lock.node}" if lock.node else ""
    what, clears = f"rack {rack} is locked by session {lock.session}{on}", "whoever holds that lock"
    if lock.record_error:
        what += f"; it may be ours, but our record of that rack cannot be read: {lock.record_error}"
        clears += f"; if nobody uses it, an operator: consul kv delete {lock.record_key}, and end that session"
    return Blocker(kind="rack-lock", what=what, since=lock.since, clears=clears)


def limit_blocker(tally: Tally) -> Blocker:
    """The blocker that a full limit is."""
    never = " (the policy says never)" if tally.maximum == 0 else ""
    return Blocker(
        kind="limit",
        what=f"{tally.sentence()}{never}",
        since=tally.since(),
        clears="an operator: rebootctl policy apply" if never else "machines coming back",
    )

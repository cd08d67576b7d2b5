"""May this machine reboot now? The last check before the point of no return (S3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebootd.core.decision import PermitVerdict
from rebootd.core.drains import not_permitted
from rebootd.core.failures import UNDONE
from rebootd.core.fleetlock import CLIENT
from rebootd.core.model import Blocker, State
from rebootd.core.states import WORKING

if TYPE_CHECKING:
    from rebootd.core.model import Machine
    from rebootd.core.view import View
    from rebootd.core.wire import PermitRequest


def judge(
    view: View, machine: Machine, request: PermitRequest | None
) -> tuple[PermitVerdict | None, tuple[Blocker, ...]]:
    """The verdict on ``request`` (None when nobody asks) and why the machine waits.

    A boot_id gets one permit. The same nonce gets the same answer; when the permit's time has run
    out, the same nonce has it renewed after the same checks, which gives no second reboot: the
    boot_id is gone after the first. Another nonce for that boot_id is refused for good.
    """
    blockers = permit_blockers(view, machine)
    if request is None:
        waits = Blocker("agent", "its agent prepares the reboot", machine.since, "the machine's agent")
        if machine.fleetlock is not None:
            waits = Blocker("agent", "it goes when its FleetLock client asks once more", machine.since, CLIENT)
        refused = view.snapshot.refusals.get(machine.name)
        if refused is not None and refused.boot_id == machine.boot_id and refused.at >= machine.since:
            said = f"its last request for a permit was refused: {refused.reason}"
            told = Blocker(kind="permit", what=said, since=refused.at, clears="what is named there")
            return None, (*blockers, told, waits)
        return None, (*blockers, waits)
    final = _final_refusal(machine, request)
    if final:
        never = Blocker(kind="permit", what=final, since=machine.since, clears="an operator: look at its agent")
        return PermitVerdict(granted=False, reason=final, final=True), (*blockers, never)
    if machine.state is State.REBOOTING and still_valid(view, machine):
        # Granted and committed already: the first answer was lost on its way.
        return PermitVerdict(granted=True), ()
    if blockers:
        skip = view.skips(machine.cycle)
        shut = view.safeguards.blockers(machine, skip)
        wait = len(shut) == len(blockers) and view.safeguards.renewing(machine, skip)
        return PermitVerdict(granted=False, reason="; ".join(b.what for b in blockers), wait=wait), blockers
    return PermitVerdict(granted=True), ()


def still_valid(view: View, machine: Machine) -> bool:
    """Whether the machine's permit has time left by this leader's clock.

    More time than a permit is ever given means that the clock was set back: it is judged anew.
    """
    permit = machine.permit
    return permit is not None and 0 < permit.until - view.now <= view.snapshot.policy.permit_valid


def _final_refusal(machine: Machine, request: PermitRequest) -> str:
    permit = machine.permit
    if machine.machine_id and request.machine_id != machine.machine_id:
        return f"machine-id {request.machine_id} is not that of the record"
    if request.boot_id != machine.boot_id:
        return f"boot_id {request.boot_id} is not the present one of the record ({machine.boot_id})"
    if permit is not None and permit.boot_id == request.boot_id and permit.nonce != request.nonce:
        return f"boot_id {request.boot_id} was given its one permit under another nonce"
    if machine.flag.startswith(UNDONE):
        return f"boot_id {request.boot_id} had its permit; {machine.flag}"
    if machine.state not in {State.DRAINED, State.REBOOTING, State.HELD}:
        return f"the machine is {machine.state.value}, not drained"
    return ""


def permit_blockers(view: View, machine: Machine) -> tuple[Blocker, ...]:
    """Everything that keeps a drained machine from rebooting now."""
    out: list[Blocker] = [*view.stops]
    if machine.cycle:
        stop = view.cycle_stop(machine.cycle)
        if stop is not None:
            out.append(stop)
        out += view.closed_for(machine.cycle)
        out += view.breakers.of(machine)
    out += [
        Blocker(kind="hold", what=f"{h.kind} {h.name} is held", since=h.since, clears="an operator: rebootctl release")
        for h in view.holds_of(machine)
    ]
    unknown = not_permitted(view, machine)
    if unknown is not None:
        out.append(unknown)
    capacity = view.capacity
    for tally in (capacity.racks[machine.rack], *capacity.limits_of(machine)):
        if tally.over:
            out.append(
                Blocker(kind="limit", what=tally.sentence(), since=tally.since(1), clears="machines coming back")
            )
    if len(capacity.open) > view.snapshot.policy.open_racks:
        out.append(open_racks(view))
    out += view.safeguards.blockers(machine, view.skips(machine.cycle))
    lock = view.snapshot.racks.get(machine.rack)
    if lock is None or lock.holder != "ours":
        out.append(
            Blocker(
                kind="rack-lock",
                what=f"the lock of rack {machine.rack} was lost and is not held again yet",
                since=lock.since if lock is not None and lock.since else machine.since,
                clears="the leader, as soon as the lock is free",
            )
        )
    return tuple(out)


def open_racks(view: View) -> Blocker:
    """The blocker that too many open racks are."""
    opened, most = view.capacity.open, view.snapshot.policy.open_racks
    named = ", ".join(f"{rack} ({why})" for rack, why in sorted(opened.items())[:5])
    locks = view.snapshot.racks
    others = [rack for rack in sorted(opened) if (lock := locks.get(rack)) is not None and lock.holder == "other"]
    clears = ["the open rack, when its last machine is back"] if len(others) < len(opened) else []
    clears += [f"whoever holds the lock of {', '.join(others[:5])}"] if others else []
    return Blocker(
        kind="racks",
        what=f"{len(opened)} of at most {most} racks open: {named}",
        since=sorted(_opened(view, rack) for rack in opened)[min(most, len(opened)) - 1],
        clears="; or ".join(clears),
    )


def _opened(view: View, rack: str) -> float:
    """Since when a rack is open: since its lock is held, or since the first machine in it is on its way."""
    lock = view.snapshot.racks.get(rack)
    times = [m.since for m in view.capacity.members.get(rack, ()) if m.state in WORKING]
    if lock is not None and lock.holder != "free" and lock.since:
        times.append(lock.since)
    return min(times, default=view.now)

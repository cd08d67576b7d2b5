"""What follows from failures: what is tried again, what is not repeated, and who flaps.

Breakers are in :mod:`rebootd.core.breakers`, out-of-band power in :mod:`rebootd.core.power`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from msgspec.structs import replace

from rebootd.core.fleetlock import not_asked, unasked
from rebootd.core.model import Blocker, Retry, State
from rebootd.core.policy_failures import KEPT_BOOTS
from rebootd.core.wire import Tri

if TYPE_CHECKING:
    from rebootd.core.model import Cycle, Machine, Snapshot
    from rebootd.core.policy import Policy
    from rebootd.core.view import View

DRAIN = "drain"
CHECKS = "checks"
STILL = "still required after a reboot: "
"""How a flag begins that goes when what is required changes; others stay until a person clears them."""
UNDONE = "its reboot was permitted and did not happen: "
"""How a flag begins that only a new boot_id clears: a boot_id gets one permit (S3)."""
MAX_FLAG = 300


def clock(at: float) -> str:
    """A time of the day in UTC, to the second."""
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%SZ")


# --- one bounded retry ---------------------------------------------------------------------------


def again(policy: Policy, machine: Machine, what: str, now: float) -> Retry | None:
    """The retry that the failure of ``what`` leads to, or None when it has been tried often enough.

    Who is out for a hold has no cycle that could give up: it is tried again as long as the hold stands.
    """
    rule = policy.failures.retry
    last = machine.retry
    same = last is not None and last.what == what and last.cycle == machine.cycle
    attempts = last.attempts if last is not None and same else 0
    allowed = rule.drains if what == DRAIN else rule.checks
    if attempts >= allowed and (machine.cycle or what != DRAIN):
        return None
    return Retry(what, machine.cycle, attempts + 1, now + rule.after)


def ahead(retry: Retry, policy: Policy, now: float) -> bool:
    """Whether the retry's time is still to come. More than the pause is the stamp of a clock that was ahead."""
    return 0 < retry.at - now <= policy.failures.retry.after


def _waits_for_retry(machine: Machine, cycle: str, policy: Policy, now: float) -> Blocker | None:
    retry = machine.retry
    if retry is None or retry.what != DRAIN or retry.cycle != cycle or not ahead(retry, policy, now):
        return None
    return Blocker(
        kind="retry",
        what=f"its drain failed ({retry.attempts}.), it is tried again at {clock(retry.at)}",
        since=machine.since,
        clears="time",
    )


# --- reboots that changed nothing ----------------------------------------------------------------


def flagged(machine: Machine) -> Machine:
    """The record with its flag as the reasons before and after its last boot tell it."""
    before, required = machine.required_before, machine.reboot_required
    if not before and not machine.flag:
        return machine
    if required is Tri.NO:
        kept = "" if machine.flag.startswith(STILL) else machine.flag
        if not before and kept == machine.flag:
            return machine
        return replace(machine, required_before=(), flag=kept)
    if required is Tri.UNKNOWN or (machine.flag and not machine.flag.startswith(STILL)):
        return machine
    same = [reason for reason in machine.reboot_reasons if reason in before]
    flag = (STILL + "; ".join(same))[:MAX_FLAG] if same else ""
    return machine if flag == machine.flag else replace(machine, flag=flag)


def undone(why: str) -> str:
    """The flag of a machine whose permitted reboot did not happen."""
    return f"{UNDONE}{why}"[:MAX_FLAG]


def cleared_flag(machine: Machine) -> str:
    """The flag that is left after an operator has cleared the machine."""
    return machine.flag if machine.flag.startswith(UNDONE) else ""


def needs_person(machine: Machine, policy: Policy) -> bool:
    """Whether no cycle may take the machine out before a person has looked at it: no cycle waits for it."""
    return bool(machine.flag) and (not policy.failures.repeat or machine.flag.startswith(UNDONE))


def held_back(view: View, machine: Machine, cycle: Cycle | None) -> tuple[Blocker, ...]:
    """What earlier failures keep this machine from; ``cycle`` None is a hold, which only waits for a retry."""
    if not view.may_hold_back(machine):
        return ()
    waiting = _waits_for_retry(machine, cycle.id if cycle is not None else "", view.snapshot.policy, view.now)
    out = [] if waiting is None else [waiting]
    if cycle is None:
        return tuple(out)
    if unasked(machine):
        out.append(not_asked(machine))
    if needs_person(machine, view.snapshot.policy):
        by_hand = machine.flag.startswith(UNDONE)
        out.append(
            Blocker(
                kind="repeat",
                what=f"no cycle reboots it again: {machine.flag}",
                since=machine.since,
                clears="whoever reboots it by hand"
                if by_hand
                else f"an operator: rebootctl quarantine clear {machine.name}, or a change of what is required",
            )
        )
    return (*out, *view.breakers.of(machine))


# --- flapping and power losses -------------------------------------------------------------------


def with_unplanned(machine: Machine, now: float) -> tuple[float, ...]:
    """The times of the machine's unplanned boots, this one included; bounded."""
    return (*machine.unplanned_at, now)[-KEPT_BOOTS:]


def flapping(view: View, machine: Machine) -> str:
    """Says that the machine boots unplanned too often, or ``""``; never during a power loss."""
    rule = view.snapshot.policy.failures.flapping
    lately = [at for at in machine.unplanned_at if view.now - at <= rule.within]
    if not rule.boots or len(lately) <= rule.boots or view.power_loss:
        return ""
    return f"{len(lately)} unplanned boots in {view.now - lately[0]:.0f} s, {rule.boots} are tolerated"


def power_loss(snapshot: Snapshot) -> int:
    """How many machines boot unplanned together, if they are more than the policy's share of the fleet; else 0.

    Counted are those in verifying as unplanned, and those that were within the last verifying deadline: who is
    back first must not be called flapping because the others are slower.
    """
    recent = snapshot.now - snapshot.policy.deadlines.verifying
    count = 0
    for m in snapshot.machines.values():
        at = m.unplanned_at
        if at and (at[-1] >= recent or (m.state is State.VERIFYING and not m.planned)):
            count += 1
    return count if count > snapshot.policy.power_loss_share * len(snapshot.machines) else 0

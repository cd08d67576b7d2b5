"""Out-of-band power: whether a machine that does not come back is power-cycled before it is quarantined (S3).

The leave is a record of its own, one for each boot_id, given only in rebooting or verifying and only for a machine
that is silent. It is committed before anything is sent. Who acts on it looks again right before: :func:`objection`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from rebootd.core.decision import Change, PowerStep, RecordWrite
from rebootd.core.failures import clock
from rebootd.core.limits import unheard
from rebootd.core.model import Blocker, Event, PowerCycle, PowerState, State
from rebootd.core.policy_failures import fill

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rebootd.core.model import Machine, Observation, Snapshot
    from rebootd.core.policy import Policy
    from rebootd.core.view import View

STATES = frozenset({State.REBOOTING, State.VERIFYING})
HOUR = 3600.0
QUIET = 30.0
"""Seconds without a call after which a machine that is out has fallen silent: it calls every 5 s."""
ACTING = 120.0
"""Seconds after which a power cycle that was asked for and has no result counts as sent: nobody knows."""


class Rescue(msgspec.Struct, frozen=True):
    """What is done about a machine that is overdue: it waits for ``blocker``, or is given up with ``evidence``."""

    blocker: Blocker | None = None
    evidence: str = ""


def controller(policy: Policy, name: str, rack: str, meta: Mapping[str, str]) -> tuple[str, str] | None:
    """The URL of the machine's Redfish service and the system behind it (``""``: the only one); None: it has none."""
    rule = policy.failures.power
    address, system = fill(rule.address, name, rack, meta), fill(rule.system, name, rack, meta)
    return (address, system) if address and bool(system) == bool(rule.system) else None


def rescue(view: View, machine: Machine, overdue_by: float) -> Rescue:
    """What is left to do for a machine whose deadline ran out ``overdue_by`` seconds ago.

    A new power cycle is added to ``view.power``.
    """
    rule = view.snapshot.policy.failures.power
    if machine.state not in STATES or machine.name in view.snapshot.conflicts:
        return Rescue()
    record = view.snapshot.power.get(machine.name)
    if record is not None and record.boot_id == machine.boot_id:
        return _after(view, machine, record)
    if not rule.address:
        return Rescue()
    if not unheard(view.snapshot, machine.name):
        quiet = view.now - view.snapshot.observed[machine.name].at
        if quiet <= QUIET or machine.name not in view.snapshot.controllers:
            # It reports, so it is not dead, whatever else is wrong with it.
            return Rescue()
        # A deadline may be shorter than the time after which a machine counts as unreachable.
        until = clock(view.now + view.snapshot.policy.unreachable_after - quiet)
        return Rescue(_waits(machine, f"it is overdue, and counts as silent if it does not call until {until}"))
    found = view.snapshot.controllers.get(machine.name)
    if found is None:
        return Rescue(evidence="not power-cycled: this leader knows no controller of it, or has no credentials")
    if overdue_by < rule.after:
        at = clock(view.now + rule.after - overdue_by)
        return Rescue(_waits(machine, f"it is silent and overdue, and will be power-cycled at {at}"))
    if spent(view.snapshot, len(view.power)) >= rule.per_hour:
        return Rescue(evidence=f"not power-cycled: the cap of {rule.per_hour} power cycles an hour is reached")
    busy = sum(under_way(r, view.now, view.epoch) for r in view.snapshot.power.values()) + len(view.power)
    if busy >= rule.at_once:
        return Rescue(_waits(machine, f"it will be power-cycled; {busy} of at most {rule.at_once} are under way"))
    view.power.append(_step(view, machine, found, record))
    return Rescue(_waits(machine, "it is being power-cycled"))


def _after(view: View, machine: Machine, record: PowerCycle) -> Rescue:
    if under_way(record, view.now, view.epoch):
        return Rescue(_waits(machine, "it is being power-cycled"))
    said = f"power cycle at {clock(record.changed)}: {record.result or 'nobody knows whether it was sent'}"
    if record.state in {PowerState.SENT, PowerState.ASKED}:
        limit = view.snapshot.policy.deadlines.of(machine.state) or 0.0
        until = max(record.changed, machine.since, view.snapshot.leading_since) + limit
        if view.now <= until:
            return Rescue(_waits(machine, f"{said}; it has until {clock(until)} to come back"))
    return Rescue(evidence=said)


def _step(view: View, machine: Machine, found: tuple[str, str], before: PowerCycle | None) -> PowerStep:
    address, system = found
    after = PowerCycle(
        machine=machine.name,
        boot_id=machine.boot_id,
        address=address,
        system=system,
        since=view.now,
        changed=view.now,
        epoch=view.epoch,
        earlier=tuple(at for at in (*before.earlier, before.since) if view.now - at < HOUR) if before else (),
    )
    return PowerStep(before=before, after=after, event=_event(after, machine, view.now, "power cycle decided", address))


def _event(record: PowerCycle, machine: Machine | None, now: float, cause: str, detail: str) -> Event:
    return Event(
        time=now,
        kind="power",
        machine=record.machine,
        rack=machine.rack if machine is not None else "",
        cycle=machine.cycle if machine is not None else "",
        cause=cause,
        epoch=record.epoch,
        boot_id=record.boot_id,
        detail=detail,
    )


def _waits(machine: Machine, what: str) -> Blocker:
    return Blocker(kind="power", what=what, since=machine.since, clears="its boot, or a technician")


def under_way(record: PowerCycle, now: float, epoch: int) -> bool:
    """Whether a leader of ``epoch`` may still be about to send it."""
    return record.state is PowerState.ASKED and record.epoch == epoch and now - record.changed <= ACTING


def spent(snapshot: Snapshot, more: int = 0) -> int:
    """How many power cycles count in the hourly cap; ``more`` are decided and not yet in the store."""
    return more + sum(snapshot.now - at < HOUR for r in snapshot.power.values() for at in (r.since, *r.earlier))


def served(snapshot: Snapshot, machine: Machine) -> bool:
    """Whether the boot that follows the machine's present boot_id is one that we caused by power."""
    record = snapshot.power.get(machine.name)
    return (
        record is not None
        and record.boot_id == machine.boot_id
        and record.state in {PowerState.ASKED, PowerState.SENT}
        and machine.state in STATES
    )


def objection(record: PowerCycle, machine: Machine | None, seen: Observation | None) -> str:
    """Why a power cycle must not be sent after all, or ``""``: the boot_id is checked again, and any sign of life."""
    if machine is None:
        return "there is no record of the machine any more"
    if machine.boot_id != record.boot_id:
        return f"its boot_id is {machine.boot_id} now"
    if machine.state not in STATES:
        return f"it is {machine.state.value} now"
    if seen is not None and (seen.at > record.since or seen.report.boot_id != record.boot_id):
        return "it has reported meanwhile"
    return ""


def concluded(snapshot: Snapshot, record: PowerCycle, state: PowerState, result: str) -> tuple[PowerCycle, Event]:
    """The record and the event of a power cycle that was sent, failed or was called off."""
    after = replace(record, state=state, result=result, changed=snapshot.now)
    machine = snapshot.machines.get(record.machine)
    return after, _event(after, machine, snapshot.now, f"power cycle {state.value}", result)


def stale(snapshot: Snapshot) -> Iterable[str]:
    """Machines whose power record nobody needs any more: it counts in no cap and its boot is over."""
    for name, record in snapshot.power.items():
        machine = snapshot.machines.get(name)
        over = machine is None or machine.boot_id != record.boot_id or machine.state not in STATES
        if over and snapshot.now - record.since >= HOUR:
            yield name


def conclude(snapshot: Snapshot, record: PowerCycle, state: PowerState, result: str) -> Change:
    """The plan that puts the outcome into the store; a record that is another one by now is left alone."""
    present = snapshot.power.get(record.machine)
    if present is None or (present.boot_id, present.since) != (record.boot_id, record.since):
        return Change()
    after, event = concluded(snapshot, record, state, result)
    return Change(
        writes=(RecordWrite(key=f"power/{record.machine}", value=msgspec.json.encode(after)),), events=(event,)
    )

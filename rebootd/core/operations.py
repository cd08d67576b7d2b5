"""What operators may ask for, as plans: each function looks at one snapshot and returns a Change.

Each raises InvalidInput (bad input), NotFound (no such machine, rack, window ...) or Refused (the present state
forbids it); then nothing changes. Each Change carries an event of kind ``operator`` that says who asked and why.
Cycles are in :mod:`rebootd.core.operations_cycles`, the policy in :mod:`rebootd.core.operations_policy`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from rebootd.core.advance import advance
from rebootd.core.decision import Change, MachineStep, RecordWrite
from rebootd.core.errors import InvalidInput, NotFound, Refused
from rebootd.core.failures import cleared_flag
from rebootd.core.inputs import parse_duration, parse_name
from rebootd.core.limits import unheard
from rebootd.core.model import Event, Halt, Hold, OpenWindow, State
from rebootd.core.operations_inputs import YEAR, Because, alike, parse_moment
from rebootd.core.states import WORKING, Happening

if TYPE_CHECKING:
    from rebootd.core.model import Machine, Snapshot

HALT_KEY = "control/halt"


def audit(
    snapshot: Snapshot,
    what: str,
    because: Because,
    *,
    machine: str = "",
    rack: str = "",
    cycle: str = "",
    note: str = "",
) -> Event:
    """The event that tells who asked for what, and why."""
    return Event(
        time=snapshot.now,
        machine=machine,
        rack=rack,
        cycle=cycle,
        cause=what,
        epoch=snapshot.epoch,
        kind="operator",
        detail=because.sentence() + (f" ({note})" if note else ""),
        request=because.request,
    )


def known_racks(snapshot: Snapshot) -> set[str]:
    """Racks that a machine is in, and racks with a lock or a hold."""
    racks = {m.rack for m in snapshot.machines.values()} | {a.rack for a in snapshot.asides.values()}
    return (racks | set(snapshot.racks) | set(snapshot.rack_holds)) - {""}


def need_machine(snapshot: Snapshot, machine: str) -> None:
    """Raises NotFound, naming machines that are spelled alike."""
    if machine not in snapshot.machines and machine not in snapshot.asides:
        raise NotFound(f"no machine is called {machine[:80]!r}{alike(machine, snapshot.machines)}")


def need_rack(snapshot: Snapshot, rack: str) -> None:
    """Raises NotFound, naming racks that are spelled alike."""
    racks = known_racks(snapshot)
    if rack not in racks:
        raise NotFound(f"no machine's rack is {rack[:80]!r}{alike(rack, racks)}")


def hold(snapshot: Snapshot, kind: str, target: str, because: Because) -> Change:
    """Holds a machine or a rack (``kind``). Holding again renews the reason and keeps the time."""
    because = because.checked()
    holds = _holds(snapshot, kind)
    (need_machine if kind == "machine" else need_rack)(snapshot, target)
    parse_name(target, kind)
    old = holds.get(target)
    record = Hold(
        kind=kind, name=target, since=old.since if old else snapshot.now, by=because.by, reason=because.reason
    )
    return Change(
        writes=(RecordWrite(key=f"holds/{kind}/{target}", value=msgspec.json.encode(record)),),
        events=(_about(snapshot, "hold", kind, target, because),),
    )


def release(snapshot: Snapshot, kind: str, target: str, because: Because) -> Change:
    """Ends a hold; what it kept out comes back by the next decision."""
    because = because.checked()
    if target not in _holds(snapshot, kind):
        machine = snapshot.machines.get(target) if kind == "machine" else None
        if machine is not None and machine.rack in snapshot.rack_holds:
            raise NotFound(f"{target} is not held itself: its rack {machine.rack} is; release the rack")
        (need_machine if kind == "machine" else need_rack)(snapshot, target)
        raise NotFound(f"{kind} {target} is not held")
    return Change(
        writes=(RecordWrite(key=f"holds/{kind}/{target}", value=None),),
        events=(_about(snapshot, "release", kind, target, because),),
    )


def halt(snapshot: Snapshot, because: Because) -> Change:
    """Nothing new goes out of service. Halting again renews the reason and keeps the time."""
    because = because.checked()
    said = because.reason or "no reason given"
    record = Halt(
        reason=f"{said} ({because.by})" if because.by else said,
        since=snapshot.halt.since or snapshot.now if snapshot.halt else snapshot.now,
    )
    return Change(
        writes=(RecordWrite(key=HALT_KEY, value=msgspec.json.encode(record)),),
        events=(audit(snapshot, "halt", because),),
    )


def unhalt(snapshot: Snapshot, because: Because) -> Change:
    """Ends the halt, whoever set it."""
    because = because.checked()
    if snapshot.halt is None:
        raise Refused("nothing is halted")
    return Change(
        writes=(RecordWrite(key=HALT_KEY, value=None),),
        events=(audit(snapshot, "unhalt", because, note=f"it was halted for: {snapshot.halt.reason}"),),
    )


def open_window(
    snapshot: Snapshot, *, window_id: str, start: str | float | None, length: str | float, because: Because
) -> Change:
    """Opens a one-shot window. ``window_id`` "" makes one from its start; ``start`` None is now."""
    because = because.checked()
    begin = parse_moment(start, "start", snapshot.now)
    end = begin + parse_duration(length, "duration", minimum=1.0, maximum=YEAR)
    taken = {w.id for w in snapshot.windows}
    if window_id:
        chosen = parse_name(window_id, "id")
        if chosen in taken:
            raise Refused(f"a window {chosen} exists already; close it or choose another id")
    else:
        stem = datetime.fromtimestamp(begin, UTC).strftime("w%Y%m%dT%H%M%SZ")
        chosen = next(i for i in (stem, *(f"{stem}-{n}" for n in range(2, len(taken) + 3))) if i not in taken)
    if begin == snapshot.now and abs(snapshot.clock_skew) > snapshot.policy.clock_tolerance:
        off = f"the leader's clock is {snapshot.clock_skew:+.0f} s off the median of its agents'"
        raise Refused(f"{off}, so nobody knows when now is: name the start, or put the clock right")
    if end <= snapshot.now:
        raise InvalidInput("start", start, "a start and duration that end in the future")
    record = OpenWindow(id=chosen, start=begin, end=end, by=because.by, reason=because.reason)
    return Change(
        writes=(RecordWrite(key=f"windows/{chosen}", value=msgspec.json.encode(record)),),
        events=(audit(snapshot, "window-open", because, note=f"window {chosen}, {(end - begin) / 60:.0f} min"),),
    )


def close_window(snapshot: Snapshot, window_id: str, because: Because) -> Change:
    """Closes and removes a window that an operator opened; calendar windows are the policy's."""
    because = because.checked()
    ids = {w.id for w in snapshot.windows}
    if window_id not in ids:
        if any(w.name == window_id for w in snapshot.policy.windows):
            raise Refused(f"{window_id} is a calendar window of the policy: change the policy, or halt")
        raise NotFound(f"no window is called {window_id[:80]!r}{alike(window_id, ids)}")
    return Change(
        writes=(RecordWrite(key=f"windows/{window_id}", value=None),),
        events=(audit(snapshot, "window-close", because, note=f"window {window_id}"),),
    )


def unlock_rack(snapshot: Snapshot, rack: str, because: Because, *, force: bool = False) -> Change:
    """Gives up *our* lock on a rack; while one of its machines is on its way only with ``force``."""
    because = because.checked()
    need_rack(snapshot, rack)
    lock = snapshot.racks.get(rack)
    if lock is None or lock.holder == "free":
        raise Refused(f"rack {rack} is not locked")
    if lock.holder != "ours":
        at = f" on {lock.node}" if lock.node else ""
        raise Refused(f"rack {rack} is locked by session {lock.session}{at}, not by rebootd: end it there")
    working = sorted(m.name for m in snapshot.machines.values() if m.rack == rack and m.state in WORKING)
    if working and not force:
        raise Refused(
            f"rack {rack} is open: {', '.join(working[:5])}{' ...' if len(working) > 5 else ''} on the way; "
            f"its lock is given up by itself afterwards (force gives it up now)"
        )
    told = audit(snapshot, "unlock", because, rack=rack, note="forced" if working else "")
    return Change(unlock=rack, events=(told,))


def clear_quarantine(snapshot: Snapshot, machine: str, because: Because) -> Change:
    """Lets a quarantined machine prove itself again: it goes to verifying. What is held against it is forgotten:
    its flag (unless its boot_id has spent its permit), its unplanned boots, its retries. A machine in service that is
    flagged loses its flag.
    """
    because = because.checked()
    need_machine(snapshot, machine)
    record = snapshot.machines.get(machine)
    if record is None:
        raise Refused(f"{machine}'s record cannot be read: {snapshot.asides[machine].error}")
    forgiven: dict[str, Any] = {"flag": cleared_flag(record), "required_before": (), "unplanned_at": (), "retry": None}
    if record.state is not State.QUARANTINED:
        return _clear_flag(snapshot, record, because, forgiven)
    after, event = advance(
        record,
        Happening.CLEAR,
        now=snapshot.now,
        epoch=snapshot.epoch,
        cause="cleared by an operator",
        detail=because.sentence(),
        **forgiven,
    )
    told = audit(snapshot, "clear", because, machine=machine, rack=record.rack, note=f"it was: {record.cause}")
    return Change(steps=(MachineStep(name=machine, before=record, after=after, events=(told, event)),))


def _clear_flag(snapshot: Snapshot, record: Machine, because: Because, forgiven: dict[str, Any]) -> Change:
    name = record.name
    if record.state is not State.IN_SERVICE or not record.flag:
        raise Refused(f"{name} is {record.state.value}, not quarantined, and nothing is held against it")
    if forgiven["flag"]:
        raise Refused(f"{name}: {record.flag}; only a boot ends that: reboot it by hand")
    told = audit(snapshot, "clear", because, machine=name, rack=record.rack, note=f"it was flagged: {record.flag}")
    after = replace(record, **forgiven)
    return Change(steps=(MachineStep(name=name, before=record, after=after, events=(told,)),))


def forget(snapshot: Snapshot, machine: str, because: Because, *, force: bool = False) -> Change:
    """Deletes the record of a machine that is gone, and its hold.

    In service and not heard of for the policy's ``unreachable_after``: at once. Quarantined, held, or unreadable: with
    ``force``. On its way, or alive: never, since it would only come back as an unplanned boot.
    """
    because = because.checked()
    need_machine(snapshot, machine)
    writes: tuple[RecordWrite, ...] = ()
    if machine in snapshot.machine_holds:
        writes = (RecordWrite(key=f"holds/machine/{machine}", value=None),)
    record = snapshot.machines.get(machine)
    if record is None:
        aside = snapshot.asides[machine]
        if not force:
            raise Refused(f"{machine}'s record cannot be read ({aside.error}); force deletes it")
        writes += (RecordWrite(key=f"machines/{machine}", value=None),)
        told = audit(snapshot, "forget", because, machine=machine, rack=aside.rack, note="unreadable record")
        return Change(writes=writes, events=(told,))
    if not _silent(snapshot, machine) and machine not in snapshot.conflicts:
        raise Refused(f"{machine} still reports; stop its agent first, or it comes back as a new machine")
    if record.state in WORKING:
        raise Refused(f"{machine} is {record.state.value}; wait until it is back or quarantined by its deadline")
    if record.state is not State.IN_SERVICE and not force:
        raise Refused(f"{machine} is {record.state.value} and counts as unavailable; force forgets it all the same")
    note = f"it was {record.state.value}"
    if record.nomad is not None and record.nomad.eligible:
        note += f"; its Nomad client {record.nomad.node} is not made eligible any more"
    told = audit(snapshot, "forget", because, machine=machine, rack=record.rack, note=note)
    return Change(writes=writes, steps=(MachineStep(name=machine, before=record, after=None, events=(told,)),))


def _silent(snapshot: Snapshot, machine: str) -> bool:
    """Not heard of for so long that it counts as unreachable, by a leader that waited that long.

    A FleetLock client is silent most of the time: it is gone when it has not called for as long as a wish lasts.
    """
    client = record.fleetlock if (record := snapshot.machines.get(machine)) is not None else None
    if client is not None and machine not in snapshot.calls:
        return snapshot.now - client.called > snapshot.policy.fleetlock.wish
    if machine in snapshot.observed:
        return unheard(snapshot, machine)
    return snapshot.now - snapshot.leading_since > snapshot.policy.unreachable_after


def _holds(snapshot: Snapshot, kind: str) -> dict[str, Hold]:
    if kind == "machine":
        return dict(snapshot.machine_holds)
    if kind == "rack":
        return dict(snapshot.rack_holds)
    raise InvalidInput("kind", kind, "machine or rack")


def _about(snapshot: Snapshot, what: str, kind: str, target: str, because: Because) -> Event:
    if kind == "rack":
        return audit(snapshot, what, because, rack=target)
    record = snapshot.machines.get(target)
    return audit(snapshot, what, because, machine=target, rack=record.rack if record else "")

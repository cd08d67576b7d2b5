"""What really happened, from the notes of who holds the power, held against what rebootd says and promises."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from tests.e2e.box.host import REBOOTED

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rebootd.core.model import Event
    from tests.e2e.box.host import Note
    from tests.e2e.box.plan import BoxPlan


class Down(NamedTuple):
    """A time in which a host was off: which boot ended, how, and from when to when."""

    host: str
    rack: str
    boot_id: str
    code: int
    start: float
    end: float


def downs(plan: BoxPlan, notes: Iterable[Note], since: float) -> list[Down]:
    """Each time that a machine was off after ``since``; ``end`` is infinite for one that still is."""
    racks = {host.name: host.rack for host in plan.machines}
    boots: dict[str, str] = {}
    found: dict[str, Down] = {}
    ended: list[Down] = []
    for note in notes:
        if note.host not in racks:
            continue
        if note.what == "exit" and note.at >= since:
            found[note.host] = Down(
                note.host, racks[note.host], boots.get(note.host, ""), note.code, note.at, float("inf")
            )
        elif note.what == "boot":
            boots[note.host] = note.boot_id
            if note.host in found:
                ended.append(found.pop(note.host)._replace(end=note.at))
    return sorted([*ended, *found.values()], key=lambda down: down.start)


SEEN = 15.0
"""Seconds after which a host that is off or cut off must have been noticed, and nobody may go out beside it."""


def dark(plan: BoxPlan, notes: Iterable[Note], since: float) -> list[Down]:
    """As :func:`downs`, and each time that a machine was cut off (``code`` is then 0)."""
    notes = list(notes)
    found = downs(plan, notes, since)
    pulled: dict[str, float] = {}
    for note in notes:
        if note.what == "link" and note.at >= since:
            if note.detail == "down":
                pulled.setdefault(note.host, note.at)
            elif note.host in pulled:
                found.append(Down(note.host, plan.host(note.host).rack, "", 0, pulled.pop(note.host), note.at))
    found += [Down(host, plan.host(host).rack, "", 0, at, float("inf")) for host, at in pulled.items()]
    return found


def breaches(
    plan: BoxPlan, notes: Sequence[Note], events: Sequence[Event], since: float, *, whole_racks: bool = False
) -> list[str]:
    """What went against the promises, in words. ``since`` is when the cycle was started.

    S1 and S2 for the default policy (one rack, one machine of it; with ``whole_racks`` all of it), judged by when hosts
    really were off because of us, and by who went out beside a host that was off or cut off for whatever reason;
    S3: each real reboot has the one permit of that boot; S7: no two servers of a quorum off together, and none goes
    while another is off.
    """
    permits = Counter((e.machine, e.boot_id) for e in events if e.kind == "transition" and e.to == "rebooting")
    orderly = [down for down in downs(plan, notes, since) if down.code == REBOOTED]
    servers = {host.name for host in plan.consul_servers}
    found = [
        f"{down.host} rebooted with {permits[down.host, down.boot_id]} permits"
        for down in orderly
        if permits[down.host, down.boot_id] != 1
    ]
    for number, down in enumerate(orderly):
        found += [
            f"{down.host} ({down.rack}) and {other.host} ({other.rack}) were off together"
            for other in orderly[number + 1 :]
            if other.start < down.end
            and (not whole_racks or down.rack != other.rack or {down.host, other.host} <= servers)
        ]
    away = dark(plan, notes, since)
    for event in events:
        if event.kind == "transition" and event.to == "draining" and event.time >= since:
            found += [
                f"{event.machine} was taken out while {other.host} was off or cut off"
                for other in away
                if other.host != event.machine
                and ((other.rack == event.rack and not whole_racks) or {other.host, event.machine} <= servers)
                and other.start + SEEN < event.time < other.end
            ]
    return found + _open_together(events, since, whole_racks=whole_racks)


def _open_together(events: Sequence[Event], since: float, *, whole_racks: bool) -> list[str]:
    """Racks that had a machine out by our hand while another had one."""
    out: dict[str, str] = {}
    found = []
    for event in sorted(events, key=lambda event: event.seq):
        if event.kind != "transition" or event.time < since:
            continue
        if event.to == "draining":
            found += [
                f"{event.machine} was taken out while {machine} was out"
                for machine, rack in out.items()
                if rack != event.rack or (machine != event.machine and not whole_racks)
            ]
            out[event.machine] = event.rack
        elif event.to in {"in-service", "held", "quarantined"}:
            out.pop(event.machine, None)
    return found


class Own(NamedTuple):
    """What one machine needed for itself in a cycle, in seconds: to drain, and to reboot."""

    machine: str
    rack: str
    drain: float
    reboot: float


def owns(events: Sequence[Event], cycle: str) -> list[Own]:
    """What each machine of a cycle needed for itself: from the drain directive to drained, from permit to new boot."""
    at: dict[tuple[str, str], float] = {}
    found = []
    for event in sorted(events, key=lambda event: event.seq):
        if event.kind != "transition" or event.cycle != cycle:
            continue
        at[event.machine, event.to] = event.time
        if event.to == "verifying" and (event.machine, "rebooting") in at:
            drain = at[event.machine, "drained"] - at[event.machine, "draining"]
            found.append(Own(event.machine, event.rack, drain, event.time - at[event.machine, "rebooting"]))
    return found


def ideal(owned: Sequence[Own], soak: float = 0.0, *, whole_racks: bool = False) -> float:
    """The shortest time (s) for a cycle: machine after machine; or rack after rack, each as long as its slowest."""
    if not whole_racks:
        return sum(own.drain + own.reboot + soak for own in owned)
    racks: dict[str, float] = {}
    for own in owned:
        racks[own.rack] = max(racks.get(own.rack, 0.0), own.drain + own.reboot + soak)
    return sum(racks.values())


def reboots(plan: BoxPlan, notes: Sequence[Note], since: float) -> dict[str, int]:
    """How often each machine really rebooted (in an orderly way) after ``since``."""
    counted = {host.name: 0 for host in plan.machines}
    for down in downs(plan, notes, since):
        counted[down.host] += down.code == REBOOTED
    return counted

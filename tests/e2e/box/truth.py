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


def breaches(plan: BoxPlan, notes: Sequence[Note], events: Sequence[Event], since: float) -> list[str]:
    """What went against the promises, in words. ``since`` is when the cycle was started.

    S1 and S2 for the default policy (one rack, one machine of it), judged by when hosts really were off because of us;
    S3: each real reboot has the one permit of that boot.
    """
    permits = Counter((e.machine, e.boot_id) for e in events if e.kind == "transition" and e.to == "rebooting")
    orderly = [down for down in downs(plan, notes, since) if down.code == REBOOTED]
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
        ]
    return found + _open_together(events, since)


def _open_together(events: Sequence[Event], since: float) -> list[str]:
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
                if rack != event.rack or machine != event.machine
            ]
            out[event.machine] = event.rack
        elif event.to in {"in-service", "held", "quarantined"}:
            out.pop(event.machine, None)
    return found


def reboots(plan: BoxPlan, notes: Sequence[Note], since: float) -> dict[str, int]:
    """How often each machine really rebooted (in an orderly way) after ``since``."""
    counted = {host.name: 0 for host in plan.machines}
    for down in downs(plan, notes, since):
        counted[down.host] += down.code == REBOOTED
    return counted

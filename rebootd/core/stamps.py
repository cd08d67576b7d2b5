"""Stamps from the future: written by a leader whose clock was ahead, or read by one whose clock is behind.

Left as they are, they would put off deadlines, pauses and soaks until the clock gets there. They were written before
they were read, so they count as of the moment of reading. Times that lie ahead by their meaning (a window's, a
permit's end, a second try) are not touched here: each has a bound of its own where it is judged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import msgspec
from msgspec.structs import replace

if TYPE_CHECKING:
    from rebootd.core.model import Machine

T = TypeVar("T", bound=msgspec.Struct)

_STAMPS = ("since", "changed", "created")


def newest(machine: Machine) -> float:
    """The latest moment (s since 1970) at which the record says that something has happened."""
    return max(machine.since, machine.ended, machine.required_since, *machine.unplanned_at)


def machine_by(machine: Machine, now: float) -> Machine:
    """The machine's record with no stamp later than ``now``; the very same one if it has none."""
    if newest(machine) <= now:
        return machine
    return replace(
        machine,
        since=min(machine.since, now),
        ended=min(machine.ended, now),
        required_since=min(machine.required_since, now),
        unplanned_at=tuple(min(at, now) for at in machine.unplanned_at),
    )


def record_by(record: T, now: float) -> T:
    """Any other record with no ``since``, ``changed``, ``created`` or time in ``earlier`` later than ``now``."""
    late: dict[str, object] = {field: now for field in _STAMPS if getattr(record, field, now) > now}
    earlier = getattr(record, "earlier", ())
    if earlier and max(earlier) > now:
        late["earlier"] = tuple(min(at, now) for at in earlier)
    return replace(record, **late) if late else record

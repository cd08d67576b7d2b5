"""What a forecast says: structs alone, for those who only show it."""

from __future__ import annotations

import msgspec

from rebootd.core.model import Blocker


class Planned(msgspec.Struct, frozen=True):
    """One machine's way: when it is taken out, and when it is back. ``wave`` counts from 1 (0: none)."""

    machine: str
    rack: str
    cycle: str
    start: float
    back: float
    wave: int = 0


class Never(msgspec.Struct, frozen=True):
    """A machine that cannot be done as things are, and everything that is in its way."""

    machine: str
    rack: str
    cycle: str
    reasons: tuple[Blocker, ...]


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What one cycle has before it, as computed at ``at``: so many machines to go, so many that never can.

    ``last`` is when the last of them is back, ``ends`` when the cycle ends by itself (None: it does not).
    ``note`` says why there is no estimate; then nothing else here means anything (``""``: there is one).
    """

    at: float
    to_go: int
    never: int
    last: float | None
    ends: float | None
    note: str = ""


class PastError(msgspec.Struct, frozen=True):
    """How far off an estimate of an ended cycle was: seconds late (negative: early), and as a share of what was left.

    ``number`` counts the cycle's estimates from 0: the first, and then one each time half of what was left is over.
    """

    cycle: str
    late: float
    share: float
    number: int = 0


class Basis(msgspec.Struct, frozen=True, kw_only=True):
    """What a phase is expected to take (seconds): from ``samples`` machines with this spread, or by default (0)."""

    phase: str
    seconds: float
    samples: int = 0
    spread: float = 0.0


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """What is expected of one cycle (or, with ``cycle`` "", of all). Times as everywhere.

    ``last`` is when the last machine that can go is back; ``ends`` is when the cycle ends by itself (None: not while
    ``never`` or another cause keeps it). ``windows`` counts the openings in which machines go (0: none is needed).
    ``done`` machines have been through already, ``planned`` are those that are out and those that will go.
    """

    now: float
    cycle: str
    selector: str
    done: int
    planned: tuple[Planned, ...]
    never: tuple[Never, ...]
    windows: int
    last: float | None
    ends: float | None
    assumes: tuple[str, ...]
    basis: tuple[Basis, ...]
    errors: tuple[PastError, ...] = ()
    cycles: dict[str, Estimate] = {}

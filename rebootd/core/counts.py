"""How far a cycle is."""

from __future__ import annotations

import msgspec


class Counts(msgspec.Struct, kw_only=True):
    """How far a cycle is, in machines. ``out`` are on their way for this cycle, ``waiting`` are
    still to go, ``skipped`` need not (at the target already). ``selected`` is the sum of all.
    """

    selected: int = 0
    rebooted: int = 0
    failed: int = 0
    skipped: int = 0
    out: int = 0
    waiting: int = 0

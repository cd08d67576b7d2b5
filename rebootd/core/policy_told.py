"""What a diff of policies says: structs alone, for those who only show it."""

from __future__ import annotations

import msgspec


class Concern(msgspec.Struct, frozen=True):
    """Something of the policy that differs, or that would be another at once (``at once: ...``).

    ``machines`` is how many it concerns, ``examples`` are some of them, ``names`` all (none in the answer to an apply).
    """

    what: str
    machines: int
    examples: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


class FieldChange(msgspec.Struct, frozen=True):
    """One difference between two policies: the path in the file, and both values as text (``""``: absent)."""

    field: str
    old: str
    new: str


class LimitChange(msgspec.Struct, frozen=True):
    """A limit whose members or maximum differ: how many machines it concerns, by the old or the new.

    ``examples`` are some of them, ``names`` all (none in the answer to an apply).
    """

    limit: str
    old: str
    new: str
    machines: int
    examples: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


class PolicyDiff(msgspec.Struct, frozen=True):
    """What a policy would change: the fields, and for which machines.

    ``fleet_wide`` tells whether a field changes that concerns every machine. ``warnings`` name a field each, which is
    accepted but hardly meant so. ``limits`` and ``concerns`` name machines: those under limits, gates and quorum groups
    that change, those that get another wave, window, drain or method, and those for which something is another at once.
    """

    fields: tuple[FieldChange, ...] = ()
    limits: tuple[LimitChange, ...] = ()
    fleet_wide: bool = False
    warnings: tuple[str, ...] = ()
    concerns: tuple[Concern, ...] = ()

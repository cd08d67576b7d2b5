"""What a source says, and what several say together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from rebootd.core.wire import Tri

if TYPE_CHECKING:
    from collections.abc import Iterable

REASONS_KEPT = 20


class Finding(msgspec.Struct, frozen=True):
    """What one source says, and why; ``reasons`` are sentences or package names."""

    required: Tri
    reasons: tuple[str, ...] = ()


def combine(findings: Iterable[Finding]) -> Finding:
    """The rule of this package."""
    all_of = list(findings)
    says = {f.required for f in all_of}
    verdict = Tri.YES if Tri.YES in says else Tri.NO if says == {Tri.NO} else Tri.UNKNOWN
    reasons = dict.fromkeys(r for f in all_of if f.required is verdict for r in f.reasons)
    return Finding(verdict, tuple(reasons)[:REASONS_KEPT])

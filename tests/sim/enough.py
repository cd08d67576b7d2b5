"""A run in which too little happened proves nothing: what must have happened, and how often."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.sim.fleets import FLEET

if TYPE_CHECKING:
    from collections.abc import Mapping

LEAST = {"reboots": 1.0, "leaderships": 1.2}
"""How often things happen in a seed at least, on average over many."""
LEAST_OF_FLEETS = {"reboots": 200.0, "leaderships": 8.0}
"""The same in a seed with a whole fleet."""
LEAST_OF_ALL = LEAST | {
    "gates passed": 1.0,
    "quorum members out": 0.5,
    "wave drains": 0.3,
    "standing drains": 0.1,
    "emergency steps": 0.1,
    "power leaves": 0.02,
    "forecasts": 0.5,
    "lock reboots": 0.3,
    "lock refusals": 1.0,
}
"""The same where every kind of seed is drawn: each feature was put to the test."""
OFTEN = (
    "hit slow", "hit repeats", "hit partition", "hit store-cut", "hit store-late", "hit store-stale", "hit fuse",
    "fault clock-jump", "fault clock-leap", "fault stop-leader", "fault kill-leader", "fault rack-lock",
    "hit local-consul-away", "hit ambush-kill", "hit stuck",
)  # fmt: skip
"""Faults that took effect: each at least once in 50 seeds."""
SELDOM = (
    "hit lossy", "hit store-away", "hit store-loses", "hit store-twice", "hit dns-away", "fault index-reset",
    "fault stop-agent", "fault stop-daemon", "hit cut-write", "hit disk-full", "hit hook-fails",
    "fault flap", "hit hang", "hit never", "hit same-id", "hit rack",
    "hit ambush-halt", "hit ambush-hold", "hit ambush-cancel", "hit ambush-policy", "hit ambush-lock",
    "hit ambush-session", "hit ambush-stale", "hit ambush-lost", "hit ambush-late", "hit ambush-gate",
    "hit ambush-power", "hit permit delay", "hit permit forget", "hit permit freeze", "hit permit restore",
)  # fmt: skip
"""The same, once in 500 seeds: they need a machine that is just at the point at which they hurt."""


def too_few(counts: Mapping[str, int], seeds: int, profile: str = "") -> list[str]:
    """What happened too seldom in so many seeds (of one ``profile``, or of all); nothing is asked of less than 20."""
    if seeds < 20:
        return []
    shares = LEAST_OF_FLEETS if profile == FLEET else LEAST if profile else LEAST_OF_ALL
    least = {what: share * seeds for what, share in shares.items()}
    if not profile:
        least |= dict.fromkeys(OFTEN, seeds // 50) | dict.fromkeys(SELDOM, seeds // 500)
    return [what for what, times in least.items() if counts.get(what, 0) < times]

"""What the simulation (tests/sim) does in a second and in a minute of one core."""

from __future__ import annotations

from tests.bench.figures import Figure
from tests.sim.figures import measure

GOAL = 500
"""Simulated machine reboots per second."""


def run(seeds: int = 30, times: int = 3) -> list[Figure]:
    """A fleet that reboots all the time under faults, and the seeds of the safety test."""
    found = measure(seeds, times)
    return [
        Figure(
            what="simulated machine reboots per second of one core, with faults",
            value=f"{found.reboots_per_second:.0f}",
            beside=f"{found.messages_per_reboot:.0f} messages and {found.commits_per_reboot:.1f} commits per reboot; "
            f"the best of {times}",
            limit=f"at least {GOAL}",
            met=found.reboots_per_second >= GOAL,
        ),
        Figure(
            what="seeds of the simulation per minute of one core",
            value=f"{found.seeds_per_minute:.0f}",
            beside=f"{found.hours_per_minute:.0f} simulated hours; {seeds} seeds",
        ),
        Figure(
            what="simulated hours per minute of one core, of a fleet that is left alone",
            value=f"{found.idle_hours_per_minute[1]:.0f}",
            beside=f"{found.idle_hours_per_minute[0]:.0f} with the pauses of production, here 30 times as long",
        ),
    ]

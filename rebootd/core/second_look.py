"""Gates a second time: a drained machine whose gate has turned red comes back, and then rests before it goes again.

An *unknown* alone refuses the permit and no more, since a reading is renewed after each drain; only one that lasts
brings the machine back. So that a gate which the drain itself turns red does not make a machine flap, it rests longer
after each time: a minute, then two, four ... up to an hour. A permit ends the count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebootd.core.model import Blocker

if TYPE_CHECKING:
    from rebootd.core.model import Machine
    from rebootd.core.view import View

FIRST_REST = 60.0
LONGEST_REST = 3600.0
BLIP = 10.0
"""Seconds of unknown that a machine which has been drained for long is still given."""


def turned(view: View, machine: Machine) -> Blocker | None:
    """Why a drained machine should come back, if a gate or a quorum group says so.

    An unknown counts when it has lasted for half of the deadline of `drained`, or when that half is over.
    """
    half = view.snapshot.policy.deadlines.drained / 2
    here = view.now - max(machine.since, view.snapshot.leading_since)
    patience = half if here < half else min(BLIP, half)
    return view.safeguards.turned(machine, patience, view.skips(machine.cycle))


def rest_of(machine: Machine) -> float:
    """How long (s) a machine rests that a gate has turned back so many times."""
    return min(LONGEST_REST, FIRST_REST * 2.0 ** min(machine.turned_back - 1, 10))


def resting(machine: Machine, now: float) -> Blocker | None:
    """What keeps a machine in for a while after a gate brought it back."""
    if not machine.turned_back:
        return None
    rest = rest_of(machine)
    left = machine.turned_back_at + rest - now
    if not 0 < left <= rest:
        return None
    return Blocker(
        kind="gate",
        what=f"a gate brought it back undone, {machine.turned_back} times in a row; it goes again in {left:.0f} s",
        since=machine.turned_back_at,
        clears="time",
    )

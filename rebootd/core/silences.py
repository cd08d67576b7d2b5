"""Which silences Alertmanager should have, and what to ask of it to get there. Pure.

A machine that is out by our hand has one silence, from just before its drain until it is back in service. It is never
asked for longer than :data:`LASTS` and is extended while the machine stays out, so that none outlives the machine's
absence, whoever dies. A machine that crashed is not silenced: nobody meant it to go. Nor is one in quarantine: that it
is down is news.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from rebootd.core.model import State
from rebootd.core.policy_silences import Matcher

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rebootd.core.model import Machine
    from rebootd.core.policy_silences import Silences

LASTS = 900.0
"""Seconds for which a silence is asked, at most."""
OUT = frozenset({State.DRAINING, State.DRAINED, State.REBOOTING, State.VERIFYING, State.ENABLING, State.HELD})


class Wanted(msgspec.Struct, frozen=True):
    """A silence that there should be."""

    machine: str
    matchers: tuple[Matcher, ...]
    comment: str


class Seen(msgspec.Struct, frozen=True):
    """A silence of ours that Alertmanager has, active or pending. Times are seconds since the Unix epoch."""

    id: str
    machine: str
    matchers: tuple[Matcher, ...]
    ends: float
    starts: float = 0.0


class Ask(msgspec.Struct, frozen=True):
    """One thing to ask: ``wanted`` None ends ``id``; else it is made (``id`` ``""``) or extended until ``ends``.

    One that is extended keeps its ``starts``: with another Alertmanager makes another silence of it.
    """

    id: str = ""
    wanted: Wanted | None = None
    ends: float = 0.0
    starts: float = 0.0


def out_by_us(machine: Machine) -> bool:
    """Whether the machine is out of service because rebootd, or an operator through it, wanted that."""
    return machine.state in OUT and (machine.planned or not machine.booted)


def wanted(machines: Mapping[str, Machine], silences: Silences) -> dict[str, Wanted]:
    """The silences that there should be, by machine."""
    if not silences.address:
        return {}
    return {
        m.name: Wanted(m.name, silences.of(m.name, m.rack), f"{m.state.value}{f', cycle {m.cycle}' if m.cycle else ''}")
        for m in machines.values()
        if out_by_us(m)
    }


def asks(wishes: Mapping[str, Wanted], seen: Iterable[Seen], now: float) -> list[Ask]:
    """What to ask, new silences first: what must not be heard is more urgent than what may be again."""
    kept: dict[str, Seen] = {}
    over: list[Ask] = []
    for silence in sorted(seen, key=lambda s: (-s.ends, s.id)):
        wish = wishes.get(silence.machine)
        if wish is None or wish.matchers != silence.matchers or silence.machine in kept:
            over.append(Ask(silence.id))
        else:
            kept[silence.machine] = silence
    found = []
    for name, wish in wishes.items():
        known = kept.get(name)
        if known is None:
            found.append(Ask("", wish, now + LASTS, now))
        elif known.ends - now < LASTS / 2:
            found.append(Ask(known.id, wish, now + LASTS, known.starts))
    return [*found, *over]

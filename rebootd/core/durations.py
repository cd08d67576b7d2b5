"""How long machines take: bounded aggregates of what was seen, and what is expected of one machine.

Five phases make one reboot: ``drain`` (until drained), ``prepare`` (until permitted), ``reboot`` (until the new boot
calls), ``verify`` (until its checks have passed) and ``enable`` (until it is enabled; the policy's soak comes on top).
Only phases that went well on a planned reboot are counted. Seconds throughout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from rebootd.core.model import State
from rebootd.core.policy_waves import PHASES
from rebootd.core.selectors import OWN_KEYS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rebootd.core.model import Event, Machine
    from rebootd.core.policy import Policy

ALL = "*"
"""The key under which every machine counts."""
ENOUGH = 3
"""Samples of one label value from which on it is believed more than all machines together."""
KEPT_KEYS = 40
"""Label values that are kept apart in one phase; the least counted makes room for a new one."""
WEIGHT = 0.1
"""What one more sample weighs once there are many."""

_PHASE = {
    (State.DRAINING.value, State.DRAINED.value): "drain",
    (State.DRAINED.value, State.REBOOTING.value): "prepare",
    (State.REBOOTING.value, State.VERIFYING.value): "reboot",
    (State.VERIFYING.value, State.ENABLING.value): "verify",
    (State.ENABLING.value, State.IN_SERVICE.value): "enable",
}
_AFTER = {
    State.DRAINING: PHASES,
    State.DRAINED: PHASES[1:],
    State.REBOOTING: PHASES[2:],
    State.VERIFYING: PHASES[3:],
    State.ENABLING: PHASES[4:],
}


class Mean(msgspec.Struct, frozen=True):
    """An exponentially weighted mean of ``count`` samples; ``spread`` is that of their distance from it."""

    mean: float
    count: int = 1
    spread: float = 0.0

    def with_sample(self, seconds: float) -> Mean:
        """The first samples weigh alike; later ones ``WEIGHT`` each."""
        weight = max(WEIGHT, 1 / (self.count + 1))
        apart = seconds - self.mean
        spread = self.spread + weight * (abs(apart) - self.spread)
        return Mean(round(self.mean + weight * apart, 3), self.count + 1, round(spread, 3))


class Durations(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen so far, stored at ``durations``: phase -> ``*`` or ``label=value`` -> mean. Bounded.

    ``samples`` counts all that went in, so that of two the one with more is the newer.
    """

    phases: dict[str, dict[str, Mean]] = {}
    samples: int = 0
    epoch: int = 0
    write_id: str = ""

    def expected(self, phase: str, keys: Iterable[str], policy: Policy) -> float:
        """Seconds that ``phase`` should take for a machine with these ``keys`` (see :func:`keys_of`).

        The first label value with enough samples, else all machines together, else the policy's default. Never
        beyond the deadline of the state: past it nobody is waited for.
        """
        seen = self.phases.get(phase)
        seconds: float = getattr(policy.expected, phase)
        if seen:
            chosen = next((m for key in keys if (m := seen.get(key)) is not None and m.count >= ENOUGH), seen.get(ALL))
            seconds = chosen.mean if chosen is not None else seconds
        return min(seconds, _deadline(policy, phase))

    def longest(self, policy: Policy) -> float:
        """Seconds that no machine is expected to exceed from its drain until it is back."""
        total = policy.soak
        for phase in PHASES:
            seen = self.phases.get(phase)
            most = max(m.mean for m in seen.values()) if seen else getattr(policy.expected, phase)
            total += min(most, _deadline(policy, phase))
        return total

    def whole(self, machine: Machine, policy: Policy) -> float:
        """Seconds from the drain of this machine until it is back, soak included."""
        keys = keys_of(machine, policy)
        return policy.soak + sum(self.expected(phase, keys, policy) for phase in PHASES)


def _deadline(policy: Policy, phase: str) -> float:
    deadlines = policy.deadlines
    return {
        "drain": deadlines.draining,
        "prepare": deadlines.drained,
        "reboot": deadlines.rebooting,
        "verify": deadlines.verifying,
        "enable": deadlines.enabling,
    }[phase]


def keys_of(machine: Machine, policy: Policy) -> tuple[str, ...]:
    """``label=value`` for each label of the policy's ``forecast.labels`` that the machine has."""
    out = []
    for label in policy.expected.labels:
        value = getattr(machine, label) if label in OWN_KEYS else machine.labels.get(label)
        if value:
            out.append(f"{label}={value}")
    return tuple(out)


def looked_at(policy: Policy) -> tuple[str, ...]:
    """What :func:`keys_of` looks at, as :meth:`rebootd.core.selectors.Selector.keys` names it."""
    return tuple(label if label in OWN_KEYS else f"label.{label}" for label in policy.expected.labels)


def phases_left(state: State) -> tuple[str, ...]:
    """The phases that a machine in this state has before it, the present one first."""
    return _AFTER.get(state, ())


def seen(durations: Durations, before: Machine | None, events: Iterable[Event], policy: Policy) -> Durations:
    """``durations`` with what the step of one machine shows: ``before`` and the events on the way, oldest first."""
    if before is None:
        return durations
    since, planned = before.since, before.planned
    keys = (*keys_of(before, policy), ALL)
    for event in events:
        if event.kind != "transition" or event.machine != before.name:
            continue
        phase = _PHASE.get((event.frm, event.to))
        planned = event.cause == "planned boot" if event.to == State.VERIFYING.value else planned
        good = planned if phase in {"reboot", "verify", "enable"} else bool(before.cycle)
        if phase is not None and good:
            seconds = event.time - since - (policy.soak if phase == "enable" else 0.0)
            durations = _with(durations, phase, keys, max(0.0, seconds))
        since = event.time
    return durations


def _with(durations: Durations, phase: str, keys: Iterable[str], seconds: float) -> Durations:
    means = dict(durations.phases.get(phase, {}))
    for key in keys:
        mean = means.get(key)
        if mean is None and len(means) > KEPT_KEYS:
            rarest = min((k for k in means if k != ALL), key=lambda k: (means[k].count, k))
            del means[rarest]
        means[key] = mean.with_sample(seconds) if mean is not None else Mean(round(seconds, 3))
    return replace(durations, phases={**durations.phases, phase: means}, samples=durations.samples + 1)

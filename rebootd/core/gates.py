"""Gates: conditions that must hold before one more machine goes out, judged from readings (S6).

The edge reads (:mod:`rebootd.coordinator.gates`); here a reading becomes pass, block or unknown. Unknown blocks like
block does, and says so: no reading, an error, too old, or from before the last transition of a machine it covers.
Nothing here delays a machine that comes back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from rebootd.core.amounts import Amount
from rebootd.core.inputs import counted, format_duration
from rebootd.core.policy_gates import ConsulQuorum, ConsulService, Gate, NoAlerts, NomadQuorum, PrometheusQuery
from rebootd.core.selector_hints import unmatched

if TYPE_CHECKING:
    from collections.abc import Collection

    from rebootd.core.model import Snapshot
    from rebootd.core.policy import Policy

RENEWAL = 10.0
"""Seconds after a transition for which a gate that has yet to be read again counts as just being renewed."""
NAMED = 5


class Word(StrEnum):
    """What a gate says."""

    PASS = "pass"  # noqa: S105  a verdict
    BLOCK = "block"
    UNKNOWN = "unknown"


class Instances(msgspec.Struct, frozen=True, kw_only=True):
    """A service in Consul: passing instances by node, how many are registered, and the nodes it covers.

    ``nodes`` are those with an instance, and those that had one when their machine was taken out: a drain may move it.
    """

    passing: Mapping[str, int]
    total: int
    nodes: frozenset[str] = frozenset()


class Servers(msgspec.Struct, frozen=True, kw_only=True):
    """The servers of a quorum by machine, with what is wrong with each (``""``: healthy).

    ``tolerance`` is how many more may fail before the quorum is lost, as its autopilot counts it.
    """

    members: Mapping[str, str]
    tolerance: int


class Samples(msgspec.Struct, frozen=True):
    """What a query gave: (series, value) pairs; a scalar is one without a name."""

    series: tuple[tuple[str, float], ...]


class Firing(msgspec.Struct, frozen=True):
    """Alerts that fire and match, as people name them."""

    alerts: tuple[str, ...]


Value = Instances | Servers | Samples | Firing


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What was found when ``gate`` was read. ``at`` is the leader's time when that *began*.

    ``value`` None means that it could not be read, and ``error`` says why.
    """

    gate: Gate
    at: float
    value: Value | None = None
    error: str = ""


class Held(msgspec.Struct, frozen=True):
    """How long a gate has said its ``word``: since ``since``. ``shut`` is when it stopped passing (0: it passes)."""

    word: str
    since: float
    shut: float = 0.0


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a gate says of one machine, and why. ``renewing`` marks an unknown that the next reading will settle.

    ``kept``: a machine that waits is kept in by it. A gate can be shut for nobody, or for an emergency that goes past.
    """

    gate: str
    word: Word
    what: str
    renewing: bool = False
    kept: bool = False


def judge(
    gate: Gate,
    reading: Reading | None,
    *,
    now: float,
    changed: float = 0.0,
    away: Collection[str] = frozenset(),
    leaving: str = "",
) -> Verdict:
    """What the gate says about ``leaving`` (a machine's name; ``""``: about nobody in particular).

    ``changed`` is the last transition of a machine that it covers; ``away`` are the unavailable machines.
    """
    unknown = _unknown(gate, reading, now, changed)
    if unknown is not None:
        return unknown
    value = reading.value if reading is not None else None
    match gate.test, value:
        case ConsulService() as test, Instances():
            word, what = _service(test, value, away, leaving)
        case ConsulQuorum() | NomadQuorum(), Servers():
            word, what = _servers(value, away, leaving)
        case PrometheusQuery() as test, Samples():
            word, what = _query(test, value)
        case NoAlerts(), Firing():
            word, what = _alerts(value)
        case _:
            word, what = Word.UNKNOWN, "its reading is of another kind"
    return Verdict(gate=gate.name, word=word, what=what)


def _unknown(gate: Gate, reading: Reading | None, now: float, changed: float) -> Verdict | None:
    def say(what: str, *, renewing: bool = False) -> Verdict:
        return Verdict(gate=gate.name, word=Word.UNKNOWN, what=what, renewing=renewing)

    if reading is None or reading.gate != gate:
        return say("it has not been read yet")
    if reading.value is None:
        return say(f"it cannot be read: {reading.error}")
    age = now - reading.at
    if age > gate.max_age or age < -1.0:
        return say(f"its last reading is {_age(age)} old, {format_duration(gate.max_age)} is allowed")
    if reading.at <= changed:
        return say(
            f"it was last read before a machine that it covers changed {_age(now - changed)} ago; it is read again",
            renewing=now - changed <= RENEWAL,
        )
    return None


def _age(seconds: float) -> str:
    return f"{seconds:.0f} s"


def _service(test: ConsulService, value: Instances, away: Collection[str], leaving: str) -> tuple[Word, str]:
    name = test.service + (f" ({test.tag})" if test.tag else "")
    if value.total == 0:
        return Word.UNKNOWN, f"Consul has no instance of service {name}"
    # Consul may show an instance as passing for a moment after its machine was taken out: the records know better.
    passing = sum(count for node, count in value.passing.items() if node not in away)
    lost = value.passing.get(leaving, 0) if leaving not in away else 0
    least = test.minimum.value
    if test.minimum.percent:
        least = math.ceil(value.total * test.minimum.value / 100)
    wanted = f"{least} of {value.total}" if test.minimum.percent else str(least)
    left = passing - lost
    state = f"service {name}: {passing} of {value.total} instances pass"
    if left < least:
        after = f", {left} would be left without this machine" if lost else ""
        return Word.BLOCK, f"{state}{after}; at least {wanted} must"
    return Word.PASS, f"{state}, at least {wanted} must" + (f"; {left} are left without this machine" if lost else "")


def _servers(value: Servers, away: Collection[str], leaving: str) -> tuple[Word, str]:
    total = len(value.members)
    if not total:
        return Word.UNKNOWN, "no server is known"
    # The machine that is to reboot is drained by us, not ill: its being away is no news.
    ill = [f"{name}: {why}" for name, why in sorted(value.members.items()) if why]
    gone = [f"{name}: out of service" for name in sorted(value.members) if name in away and name != leaving]
    if ill or gone:
        return Word.BLOCK, f"of {total} servers not all are well ({_some([*ill, *gone])})"
    if leaving in value.members and value.tolerance < 1:
        return Word.BLOCK, f"{leaving} is one of {total} servers, and none of them may fail"
    return Word.PASS, f"{total} servers are well, {max(0, value.tolerance)} may fail"


def _query(test: PrometheusQuery, value: Samples) -> tuple[Word, str]:
    if not value.series:
        return Word.UNKNOWN, f"the query gives no data: {test.query}"
    if any(math.isnan(number) for _, number in value.series):
        return Word.UNKNOWN, f"the query gives no number: {test.query}"
    good = [s for s in value.series if test.holds_when.holds(s[1])]
    bad = [s for s in value.series if not test.holds_when.holds(s[1])]
    if (not bad) if test.every else good:
        shown = (good or value.series)[0]
        return Word.PASS, f"{_sample(shown)} is {test.holds_when}: {test.query}"
    return Word.BLOCK, f"not {test.holds_when}: {_some([_sample(s) for s in bad])}, of {test.query}"


def _sample(sample: tuple[str, float]) -> str:
    return f"{sample[0] or 'the value'} = {sample[1]:.6g}"


def _alerts(value: Firing) -> tuple[Word, str]:
    if value.alerts:
        return Word.BLOCK, f"{counted(len(value.alerts), 'alert')} firing: {_some(list(value.alerts))}"
    return Word.PASS, "no matching alert fires"


def _some(items: list[str]) -> str:
    return ", ".join(items[:NAMED]) + (f" and {len(items) - NAMED} more" if len(items) > NAMED else "")


def check_gates(policy: Policy, snapshot: Snapshot) -> tuple[str, ...]:
    """Warnings about gates that cover nobody in the fleet as it is, and ones that never pass, each with its field."""
    if not snapshot.machines:
        return ()
    out = []
    for index, gate in enumerate(policy.gates):
        said = unmatched(snapshot, gate.covers) if gate.covers is not None else ""
        if said:
            out.append(f"gates[{index}].covers: {said}, so {gate.name} holds nobody back")
        if isinstance(gate.test, ConsulService) and gate.test.minimum == Amount(100, percent=True):
            never = f"no machine that runs an instance of {gate.test.service} goes out of service by rebootd"
            out.append(f"gates[{index}].minimum: 100% means never: {never}")
    return tuple(out)


def overdue(snapshot: Snapshot) -> dict[str, float]:
    """Gates that have kept machines in for longer than their ``max_block``, with since when."""
    held = snapshot.gate_since
    return {
        g.name: shut
        for g in snapshot.policy.gates
        if g.name in held and (shut := held[g.name].shut) and snapshot.now - shut > g.max_block
    }


def clears(gate: Gate, word: Word) -> str:
    """Who can make the gate pass."""
    test = gate.test
    who = ""
    match test:
        case ConsulService():
            who = f"whoever runs the service {test.service}"
        case ConsulQuorum():
            who = "whoever runs Consul"
        case NomadQuorum():
            who = "whoever runs Nomad" if word is Word.BLOCK else f"whoever runs Nomad at {test.address}"
        case PrometheusQuery():
            who = "whoever owns what it measures" if word is Word.BLOCK else f"whoever runs {test.address}"
        case NoAlerts():
            who = "whoever answers or silences these alerts" if word is Word.BLOCK else f"whoever runs {test.address}"
    return f"{who}, or an operator: rebootctl policy apply"

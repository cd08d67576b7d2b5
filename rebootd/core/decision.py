"""What a decision is: steps to commit, racks to lock and unlock, permits, and every reason to wait.

A *step* is what must land in the store together. The edges turn steps into fenced transactions;
they add write ids and indexes, and never a rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from rebootd.core.gates import Verdict
from rebootd.core.model import Blocker, Cycle, Event, Machine, PowerCycle
from rebootd.core.wire import Directive


class Lane(StrEnum):
    """Steps of different lanes never share a transaction: coming back must not wait for going out."""

    BACK = "back"
    OUT = "out"


class Guard(StrEnum):
    """What the store must still find true in the very transaction that lands a step."""

    NO_HALT = "no-halt"
    POLICY_UNCHANGED = "policy-unchanged"
    NOT_HELD = "not-held"
    RACK_LOCKED = "rack-locked"


class MachineStep(msgspec.Struct, frozen=True, kw_only=True):
    """One machine's next record and the events on the way there (oldest first).

    ``before`` is None for a machine that has no record yet; ``after`` None deletes the record. ``lock`` and ``unlock``
    name a rack whose lock is taken or given up in the same transaction.
    """

    name: str
    before: Machine | None
    after: Machine | None
    events: tuple[Event, ...]
    lane: Lane = Lane.BACK
    guards: frozenset[Guard] = frozenset()
    lock: str = ""
    unlock: str = ""


class PowerStep(msgspec.Struct, frozen=True, kw_only=True):
    """The leave to power-cycle a machine out of band. It lands only if the machine's record is still the same one."""

    before: PowerCycle | None
    after: PowerCycle
    event: Event


class PermitVerdict(msgspec.Struct, frozen=True):
    """Whether an asking agent may reboot. ``granted`` holds only once the machine's step landed."""

    granted: bool
    reason: str = ""
    final: bool = False
    """A refusal for good (stale boot_id, second nonce, wrong state): recorded as an event."""
    wait: bool = False
    """Not yet: a gate is being read again this moment, so the request stays open until the next decision."""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What :func:`rebootd.core.decide.decide` says of one snapshot.

    ``reasons`` has an entry for every machine that waits for something. ``locks`` and ``unlocks`` are racks whose lock
    is wanted or given up without a machine's step. ``cycles`` are changed cycle records with their events. ``prune``
    are keys (relative to the prefix) of records that nobody needs any more: nothing in the store grows for ever.
    ``power`` are power cycles to be committed, and only then to be sent.
    ``gates`` is what each gate says, at its gravest among the machines that wait. ``hand_over`` is the leader's own
    host when it is its turn: another daemon is to lead first.
    """

    steps: tuple[MachineStep, ...] = ()
    locks: tuple[str, ...] = ()
    unlocks: tuple[str, ...] = ()
    cycles: tuple[tuple[Cycle, Event], ...] = ()
    reasons: Mapping[str, tuple[Blocker, ...]] = {}
    permits: Mapping[str, PermitVerdict] = {}
    gates: Mapping[str, Verdict] = {}
    prune: tuple[str, ...] = ()
    power: tuple[PowerStep, ...] = ()
    hand_over: str = ""


class RecordWrite(msgspec.Struct, frozen=True, kw_only=True):
    """One small record that an operator's change writes; ``value`` None deletes it.

    ``key`` is relative to the prefix (``cycles/<id>``, ``holds/machine/<name>``, ``windows/<id>``,
    ``control/halt``, ``policy``). The edge adds the index it was last seen at as ``cas``.
    """

    key: str
    value: bytes | None


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator's request comes to; lands as one transaction or not at all."""

    writes: tuple[RecordWrite, ...] = ()
    steps: tuple[MachineStep, ...] = ()
    unlock: str = ""
    events: tuple[Event, ...] = ()


def directive_id(machine: str, version: int, kind: str) -> str:
    """The id of a directive: stable for one step of one machine, whichever leader says it."""
    return f"{machine}/{version}/{kind}"


__all__ = [
    "Change",
    "Decision",
    "Directive",
    "Guard",
    "Lane",
    "MachineStep",
    "PermitVerdict",
    "PowerStep",
    "RecordWrite",
    "directive_id",
]

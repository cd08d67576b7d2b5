"""The one table of states, happenings, who may cause each, and what follows.

Everything that moves a machine goes through :func:`target`; the diagram in docs/architecture.md
is generated from this table and a test fails when they differ.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from rebootd.core.model import State


class Happening(StrEnum):
    """What can happen to a machine."""

    TAKE_OUT = "take-out"
    DRAIN_DONE = "drain-done"
    DRAIN_FAILED = "drain-failed"
    PERMIT = "permit"
    RETURN = "return"
    HOLD = "hold"
    RELEASE = "release"
    BOOT = "boot"
    VERIFIED = "verified"
    VERIFY_FAILED = "verify-failed"
    ENABLED = "enabled"
    ENABLE_FAILED = "enable-failed"
    REBOOT_FAILED = "reboot-failed"
    DEADLINE = "deadline"
    CLEAR = "clear"
    BY_HAND = "by-hand"
    FOUND_OUT = "found-out"


class Who(StrEnum):
    """Who may cause a happening."""

    COORDINATOR = "coordinator"
    AGENT = "agent"
    OPERATOR = "operator"
    CLOCK = "clock"


class Rule(msgspec.Struct, frozen=True):
    """In state ``frm``, ``happening`` (caused by ``who``) leads to ``to``."""

    frm: State
    happening: Happening
    who: Who
    to: State


_S = State
_H = Happening

TABLE: tuple[Rule, ...] = (
    Rule(_S.IN_SERVICE, _H.TAKE_OUT, Who.COORDINATOR, _S.DRAINING),
    Rule(_S.IN_SERVICE, _H.BOOT, Who.AGENT, _S.VERIFYING),
    # The record says in-service, the host says out: what we took out of service we bring back.
    Rule(_S.IN_SERVICE, _H.FOUND_OUT, Who.AGENT, _S.VERIFYING),
    Rule(_S.DRAINING, _H.DRAIN_DONE, Who.AGENT, _S.DRAINED),
    Rule(_S.DRAINING, _H.DRAIN_FAILED, Who.AGENT, _S.ENABLING),
    Rule(_S.DRAINING, _H.RETURN, Who.COORDINATOR, _S.ENABLING),
    Rule(_S.DRAINING, _H.BOOT, Who.AGENT, _S.VERIFYING),
    Rule(_S.DRAINING, _H.DEADLINE, Who.CLOCK, _S.QUARANTINED),
    Rule(_S.DRAINED, _H.PERMIT, Who.COORDINATOR, _S.REBOOTING),
    Rule(_S.DRAINED, _H.HOLD, Who.OPERATOR, _S.HELD),
    Rule(_S.DRAINED, _H.RETURN, Who.COORDINATOR, _S.ENABLING),
    Rule(_S.DRAINED, _H.REBOOT_FAILED, Who.AGENT, _S.ENABLING),
    Rule(_S.DRAINED, _H.BOOT, Who.AGENT, _S.VERIFYING),
    Rule(_S.DRAINED, _H.DEADLINE, Who.CLOCK, _S.QUARANTINED),
    Rule(_S.REBOOTING, _H.BOOT, Who.AGENT, _S.VERIFYING),
    Rule(_S.REBOOTING, _H.REBOOT_FAILED, Who.AGENT, _S.QUARANTINED),
    Rule(_S.REBOOTING, _H.DEADLINE, Who.CLOCK, _S.QUARANTINED),
    Rule(_S.VERIFYING, _H.VERIFIED, Who.COORDINATOR, _S.ENABLING),
    Rule(_S.VERIFYING, _H.VERIFY_FAILED, Who.COORDINATOR, _S.QUARANTINED),
    Rule(_S.VERIFYING, _H.HOLD, Who.OPERATOR, _S.HELD),
    Rule(_S.VERIFYING, _H.BOOT, Who.AGENT, _S.VERIFYING),
    Rule(_S.VERIFYING, _H.DEADLINE, Who.CLOCK, _S.QUARANTINED),
    Rule(_S.ENABLING, _H.ENABLED, Who.AGENT, _S.IN_SERVICE),
    Rule(_S.ENABLING, _H.ENABLE_FAILED, Who.AGENT, _S.QUARANTINED),
    Rule(_S.ENABLING, _H.BOOT, Who.AGENT, _S.VERIFYING),
    Rule(_S.ENABLING, _H.DEADLINE, Who.CLOCK, _S.QUARANTINED),
    # A technician power-cycles a held or quarantined machine: recorded, and it stays where it is.
    Rule(_S.HELD, _H.BOOT, Who.AGENT, _S.HELD),
    Rule(_S.HELD, _H.RELEASE, Who.OPERATOR, _S.ENABLING),
    Rule(_S.HELD, _H.PERMIT, Who.COORDINATOR, _S.REBOOTING),
    Rule(_S.QUARANTINED, _H.BOOT, Who.AGENT, _S.QUARANTINED),
    Rule(_S.QUARANTINED, _H.CLEAR, Who.OPERATOR, _S.VERIFYING),
    # Break-glass on the host: it *is* in service, so the record says so.
    *(Rule(s, _H.BY_HAND, Who.AGENT, _S.IN_SERVICE) for s in State if s is not _S.IN_SERVICE),
)

_TARGET: dict[tuple[State, Happening], State] = {(r.frm, r.happening): r.to for r in TABLE}

WORKING = frozenset({_S.DRAINING, _S.DRAINED, _S.REBOOTING, _S.VERIFYING, _S.ENABLING})
"""States in which a machine keeps its rack open (held and quarantined ones count in limits only)."""


def target(state: State, happening: Happening) -> State | None:
    """The state that follows, or None when ``happening`` does not apply in ``state``."""
    return _TARGET.get((state, happening))


def diagram() -> str:
    """The table as a Mermaid state diagram (docs/architecture.md holds a copy; a test compares)."""
    lines = ["stateDiagram-v2", "    direction LR"]
    lines += [f'    state "{s.value}" as {s.name}' for s in State]
    lines.append("    [*] --> VERIFYING: first report")
    merged: dict[tuple[State, State], list[str]] = {}
    for r in TABLE:
        merged.setdefault((r.frm, r.to), []).append(f"{r.happening.value} ({r.who.value})")
    lines += [f"    {frm.name} --> {to.name}: {', '.join(what)}" for (frm, to), what in merged.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(diagram(), end="")  # noqa: T201  run as a module it prints the picture for docs/architecture.md

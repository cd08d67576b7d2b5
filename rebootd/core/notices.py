"""Which events are worth telling somebody, and in which words. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from rebootd.core.errors import InvalidInput
from rebootd.core.model import CycleState, State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rebootd.core.model import Event

KINDS = ("cycle-started", "cycle-halted", "cycle-done", "quarantined", "halt")
_CYCLE = {CycleState.HALTED: "cycle-halted", CycleState.DONE: "cycle-done"}
_OPERATOR = {"cycle-start": "cycle-started", "halt": "halt"}
LISTED = 20
"""Notices that one message names."""


class Notice(msgspec.Struct, frozen=True):
    """One thing to tell: ``kind`` is one of :data:`KINDS`."""

    kind: str
    title: str
    body: str


def parse_kinds(text: str, field: str) -> frozenset[str]:
    """``cycle-started,quarantined``. Raises InvalidInput."""
    kinds = [word.strip() for word in text.split(",") if word.strip()]
    for kind in kinds:
        if kind not in KINDS:
            raise InvalidInput(field, kind, f"some of {','.join(KINDS)}")
    if not kinds:
        raise InvalidInput(field, text, f"at least one of {','.join(KINDS)}")
    return frozenset(kinds)


def notice(event: Event) -> Notice | None:
    """What is to be told of an event; None for most."""
    kind = _kind(event)
    match kind:
        case "quarantined":
            place = f"{event.machine} (rack {event.rack})" if event.rack else event.machine
            return Notice(kind, f"{event.machine} is quarantined", _said(f"{place}: {event.cause}", event))
        case "halt":
            return Notice(kind, "everything is halted", event.detail)
        case "":
            return None
    word = kind.removeprefix("cycle-")
    return Notice(kind, f"cycle {event.cycle} {'is done' if word == 'done' else word}", event.detail)


def _kind(event: Event) -> str:
    if event.kind == "transition" and event.to == State.QUARANTINED and event.frm != State.QUARANTINED:
        return "quarantined"
    if event.kind == "operator":
        return _OPERATOR.get(event.cause, "")
    if event.kind == "cycle" and event.to == CycleState.RUNNING and not event.frm:
        return "cycle-started"
    if event.kind == "cycle" and event.to in {s.value for s in _CYCLE}:
        return _CYCLE[CycleState(event.to)]
    return ""


def _said(what: str, event: Event) -> str:
    return f"{what}; {event.detail}" if event.detail else what


def gathered(notices: Sequence[Notice]) -> Notice:
    """Several notices as one message; raises ValueError for none."""
    if not notices:
        raise ValueError("nothing to tell")
    if len(notices) == 1:
        return notices[0]
    lines = [f"{n.title}: {n.body}" if n.body else n.title for n in notices[:LISTED]]
    if len(notices) > LISTED:
        lines.append(f"... and {len(notices) - LISTED} more (rebootctl events)")
    return Notice("several", f"{len(notices)} things happened", "\n".join(lines))

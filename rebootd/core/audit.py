"""The audit log's lines and its chain: what is written of each change, and how one line follows from another. Pure.

A line is one JSON object. Two chains run through the lines (docs/audit.md):

- ``above`` is the digest of the line before it in the same daemon's file, over rotations too. It shows what was edited,
  removed or reordered inside of a file.
- ``prev`` is the digest of the entry that was committed before it, by whichever leader. The digest of the last
  committed entry is the *head*, which is committed in Consul in the very transaction that makes the change. It shows
  what is missing from the files of all daemons together.

A digest is SHA-256 over the bytes of a line without its newline, in hex.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from rebootd.core.caller import Caller
from rebootd.core.model import State

if TYPE_CHECKING:
    from rebootd.core.decision import Change, MachineStep
    from rebootd.core.model import Event


class Kind(StrEnum):
    """What a line is.

    ``entry``: a change, written before it is committed; ``outcome``: what became of an entry; ``refused``: a change
    that somebody asked for and did not get; ``file``: where a file begins, or goes on after a line that a crash cut
    short.
    """

    ENTRY = "entry"
    OUTCOME = "outcome"
    REFUSED = "refused"
    FILE = "file"


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """Who asked for a change, and how: ``what`` is the request's method and path, ``request`` its id.

    ``by`` is the name that the request gave itself, ``reason`` why.
    """

    caller: Caller
    what: str = ""
    by: str = ""
    reason: str = ""
    request: str = ""


class Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line. Times are seconds since the Unix epoch on the leader's clock.

    ``what`` is the action (``halt``, ``permit``, ...), ``who`` proved to ask for it (None: the leader decided it),
    ``by`` the name that the request gave itself. ``writes`` are the keys that an operator's change writes, each with
    the digest of its value (``-``: deleted). ``leader`` and ``epoch`` say who wrote it. ``seq`` counts committed
    entries; an entry that was not committed leaves its number to the next. ``result`` is that of an outcome, a refusal
    or a file line, ``of`` the digest of the entry that an outcome is about.
    """

    kind: Kind
    time: float
    seq: int = 0
    epoch: int = 0
    leader: str = ""
    what: str = ""
    who: Caller | None = None
    by: str = ""
    reason: str = ""
    machine: str = ""
    rack: str = ""
    cycle: str = ""
    boot_id: str = ""
    detail: str = ""
    request: str = ""
    writes: tuple[str, ...] = ()
    result: str = ""
    of: str = ""
    prev: str = ""
    above: str = ""


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The value of the one key in Consul: the last committed entry."""

    seq: int = 0
    hash: str = ""
    epoch: int = 0
    leader: str = ""
    time: float = 0.0
    write_id: str = ""


TORN = "torn"
"""The result of a file line that follows a line which a crash cut short."""
COMMITTED = "committed"
MOST = 4000
"""Characters of a free text that are kept: a line stays far below what a log stream or a transaction takes."""

_encoder = msgspec.json.Encoder()


def encode_line(line: Line) -> bytes:
    """The bytes of a line, without a newline; JSON escapes those inside of texts."""
    return _encoder.encode(line)


def digest(raw: bytes) -> str:
    """The digest of a line's bytes."""
    return hashlib.sha256(raw).hexdigest()


def of_change(change: Change, asked: Asked | None, now: float) -> Line | None:
    """The entry of an operator's change, or of one that the leader makes by itself; None when nothing is written."""
    events = (*change.events, *(e for step in change.steps for e in step.events))
    if not (change.writes or change.steps or change.unlock):
        return None
    told = next((e for e in events if e.kind != "transition"), events[0] if events else None)
    writes = tuple(f"{w.key} {'-' if w.value is None else digest(w.value)}" for w in change.writes)
    steps = tuple(f"machines/{s.name} {'-' if s.after is None else s.after.state.value}" for s in change.steps)
    line = of_event(told) if told is not None else Line(kind=Kind.ENTRY, time=now)
    line = msgspec.structs.replace(line, writes=(*writes, *steps))
    return line if asked is None else _asked_by(line, asked)


def of_step(step: MachineStep, now: float) -> Line | None:
    """The entry of a machine's step that gives a permit; None for every other step."""
    after, before = step.after, step.before
    if after is None or after.permit is None or after.state is not State.REBOOTING:
        return None
    if before is not None and before.permit == after.permit:
        return None
    why = next((e.detail for e in step.events if e.detail), "")
    return Line(
        kind=Kind.ENTRY,
        time=now,
        what="permit",
        machine=after.name,
        rack=after.rack,
        cycle=after.cycle,
        boot_id=after.permit.boot_id,
        reason=_cut(after.cause),
        detail=_cut(why),
    )


def of_refusal(asked: Asked, why: str, now: float) -> Line:
    """The line of a change that was asked for and refused."""
    return _asked_by(Line(kind=Kind.REFUSED, time=now, what="refused", result=_cut(why)), asked)


def of_event(event: Event) -> Line:
    """The entry of something that the leader decides and tells in one event (a power cycle, the end of a cycle)."""
    return Line(
        kind=Kind.ENTRY,
        time=event.time,
        what=_cut(event.cause),
        machine=event.machine,
        rack=event.rack,
        cycle=event.cycle,
        boot_id=event.boot_id,
        detail=_cut(event.detail),
    )


def _asked_by(line: Line, asked: Asked) -> Line:
    return msgspec.structs.replace(
        line,
        who=asked.caller,
        by=_cut(asked.by),
        reason=_cut(asked.reason),
        request=asked.request,
        detail=_cut(asked.what) if line.kind is Kind.REFUSED else line.detail,
    )


def _cut(text: str) -> str:
    # Text that came in undecodable has surrogates, which no JSON encoder takes.
    return text[:MOST].encode("utf-8", "replace").decode()

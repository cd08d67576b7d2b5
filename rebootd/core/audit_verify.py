"""Whether the audit files of all daemons, together, are what was written: nothing cut, edited, reordered or missing.

Pure: it is given the lines of each file and the head, and reads each line once, in order, so that a million of them
take seconds and no memory to speak of. What a crash leaves behind is told apart from what only a hand can have done:

- an entry without an outcome: the daemon ended between its write and its answer. The chain tells whether it was
  committed. No fault.
- a last line that is cut short, also when the next one says so: the daemon ended while it wrote. It had not been
  committed, since an entry is durable before that. No fault.
- a committed entry that no file has; a line whose digest is not what the next one says; an outcome that the chain
  contradicts: a fault, for no crash of a daemon does that. (A disk that lost what it had confirmed does.)
"""

from __future__ import annotations

import heapq
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from rebootd.core.audit import COMMITTED, TORN, Head, Kind, digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

MOST = 50
"""Findings that are kept; one edited line can make every later one doubtful."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was found, at a line (counted from 1; 0: none) of a file. ``fault``: no crash explains it."""

    file: str
    line: int
    what: str
    fault: bool


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a verification came to. ``committed`` entries form the chain ``first`` to ``last``; ``dropped`` ones were
    written and not committed; ``unanswered`` have no outcome line. ``more`` findings were left out.
    """

    lines: int
    committed: int
    dropped: int
    unanswered: int
    first: int
    last: int
    head_checked: bool
    findings: tuple[Finding, ...]
    more: int = 0

    @property
    def whole(self) -> bool:
        """Whether nothing was found that no crash explains."""
        return not any(f.fault for f in self.findings)


class _Seen(msgspec.Struct):
    """What is read of a line here."""

    kind: Kind
    seq: int = 0
    result: str = ""
    of: str = ""
    prev: str = ""
    above: str = ""


class _Entry(NamedTuple):
    seq: int
    hash: str
    prev: str
    file: str
    line: int


_decoder = msgspec.json.Decoder(_Seen)


class _File:
    """One file while it is read. ``first``: what its first line says of the one above it; ``last``: its last digest."""

    def __init__(self, name: str, lines: Iterable[bytes], verifier: _Verifier) -> None:
        self.name = name
        self.first: str | None = None
        self.last = ""
        self._lines = lines
        self._verifier = verifier
        self._open: dict[str, int] = {}

    def entries(self) -> Iterator[_Entry]:
        """Its entries in order; everything else about its lines is judged on the way."""
        verifier, fault = self._verifier, self._fault
        number = seq = 0
        cut = ""
        for number, raw in enumerate(self._lines, 1):
            line = raw.removesuffix(b"\n")
            verifier.lines += 1
            hash_ = digest(line)
            try:
                seen = _decoder.decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                self._cut(cut, number - 1)
                cut = hash_
                continue
            if self.first is None:
                # A cut line at the very beginning stands where the file's first line was.
                self.first = "" if cut else seen.above
            elif seen.above != (cut or self.last):
                fault(number - 1, f"edited, moved, or a line is missing: line {number} was written below another one")
            if cut:
                self._marked(cut, number, seen)
                cut = ""
            self.last = hash_
            if seen.kind is Kind.ENTRY:
                if seen.seq < seq:
                    fault(number, f"entry {seen.seq} is written below entry {seq}")
                    continue
                seq = seen.seq
                self._open[hash_] = number
                verifier.unanswered += 1
                yield _Entry(seen.seq, hash_, seen.prev, self.name, number)
            elif seen.kind is Kind.OUTCOME:
                self._outcome(number, seen)
        if cut:
            self.last = cut
            verifier.note(self.name, number, "the last line is cut short: its daemon ended while it wrote", False)

    def _cut(self, cut: str, number: int) -> None:
        if cut:
            self._fault(number, "this is no line of an audit log")

    def _marked(self, cut: str, number: int, seen: _Seen) -> None:
        if seen.kind is Kind.FILE and seen.result == TORN and seen.above == cut:
            self._verifier.note(self.name, number - 1, "cut short by a crash, and marked so", False)
        else:
            self._fault(number - 1, "this is no line of an audit log, and no crash is marked below it")

    def _outcome(self, number: int, seen: _Seen) -> None:
        if self._open.pop(seen.of, 0):
            self._verifier.unanswered -= 1
        if seen.result == COMMITTED:
            self._verifier.claims.setdefault(seen.seq, []).append((seen.of, self.name, number))

    def _fault(self, number: int, what: str) -> None:
        self._verifier.note(self.name, number, what, True)


class _Verifier:
    def __init__(self) -> None:
        self.lines = 0
        self.unanswered = 0
        self.claims: dict[int, list[tuple[str, str, int]]] = {}
        self.findings: list[Finding] = []
        self.more = 0

    def note(self, file: str, line: int, what: str, fault: bool) -> None:
        # Faults come before notes where there is no room for all.
        if len(self.findings) >= MOST:
            self.more += 1
            at = next((i for i, f in enumerate(self.findings) if not f.fault), None)
            if not fault or at is None:
                return
            del self.findings[at]
        self.findings.append(Finding(file=file, line=line, what=what, fault=fault))


class _Chain:
    """The walk along the chain. ``level`` are the entries of the last number that may be the committed one."""

    def __init__(self, verifier: _Verifier, head: Head | None) -> None:
        self._verifier = verifier
        self._head = head
        self.head_checked = head is not None and not head.seq
        self.level: list[_Entry] = []
        self.first = self.last = 0
        self.committed = self.written = 0

    def step(self, seq: int, found: list[_Entry]) -> None:
        """All entries with the number ``seq``, which is above every one before."""
        entries = list({e.hash: e for e in found}.values())
        self.written += len(entries)
        if not self.level:
            self.first = seq
        elif seq != self.last + 1:
            self._gap(seq, entries[0])
        else:
            entries = self._follow(entries)
        self.level, self.last = self._by_head(seq, entries), seq

    def _gap(self, seq: int, entry: _Entry) -> None:
        self._settle(self.level)
        missing = f"entry {self.last + 1}" if seq == self.last + 2 else f"entries {self.last + 1} to {seq - 1}"
        self._verifier.note(entry.file, entry.line, f"{missing} before this one: in none of the files", True)

    def _follow(self, entries: list[_Entry]) -> list[_Entry]:
        """Which of ``entries`` go on from the level before, which is settled by that."""
        parents = {e.hash: e for e in self.level}
        good = [e for e in entries if e.prev in parents]
        if not good:
            entry = entries[0]
            what = f"it follows another entry {entry.seq - 1} than any in the files: that one was edited or is missing"
            self._verifier.note(entry.file, entry.line, what, True)
            self._settle(self.level)
            return entries
        chosen = {e.prev for e in good}
        if len(chosen) > 1:
            self._verifier.note(good[1].file, good[1].line, "two chains: it follows another entry than its rival", True)
        self._settle([parents[hash_] for hash_ in chosen])
        return good

    def _settle(self, chosen: list[_Entry]) -> None:
        """``chosen`` are what was committed of the level before, as far as can be told."""
        hashes = {e.hash for e in chosen}
        self.committed += bool(chosen)
        self.check_claims(self.last, hashes)

    def check_claims(self, seq: int, hashes: set[str]) -> None:
        """No outcome may say committed of what is not on the chain."""
        for of, file, line in self._verifier.claims.pop(seq, ()):
            if of not in hashes:
                self._verifier.note(file, line, f"says entry {seq} was committed, and the chain says it was not", True)

    def end(self) -> None:
        """The last level. Nothing follows from it: the head tells what was committed of it, else its outcomes do."""
        head = self._head
        if head is not None and head.seq > self.last:
            at = self.level[0] if self.level else None
            missing = f"entry {head.seq}" if head.seq == self.last + 1 else f"entries {self.last + 1} to {head.seq}"
            what = f"{missing} (the last by {head.leader}, epoch {head.epoch}): in none of the files"
            self._verifier.note(at.file if at else "", at.line if at else 0, what, True)
        chosen = self.level
        if head is None or head.seq != self.last:
            claimed = {of for of, _, _ in self._verifier.claims.get(self.last, ())}
            chosen = [e for e in self.level if e.hash in claimed]
        self._settle(chosen)
        if self.level and not chosen:
            # Written, and its daemon ended before it was committed.
            self.last -= 1

    def _by_head(self, seq: int, entries: list[_Entry]) -> list[_Entry]:
        """The one that Consul named, where the head is this far along."""
        if self._head is None or self._head.seq != seq:
            return entries
        self.head_checked = True
        named = [e for e in entries if e.hash == self._head.hash]
        if not named:
            entry = entries[0]
            what = f"the head in Consul names another entry {seq}: this one was edited, or never committed"
            self._verifier.note(entry.file, entry.line, what, True)
        return named or entries


def verify(files: Mapping[str, Iterable[bytes]], head: Head | None, *, partial: bool = False) -> Verdict:
    """The verdict on the lines of ``files`` (by name; with or without newlines), together.

    ``head`` None: the end of the chain is not checked, so that lines cut off there are not missed. A head that was read
    before the files is reached on the way. ``partial``: the oldest files are gone by intent, so the chain may begin in
    the middle.
    """
    verifier = _Verifier()
    read = [_File(name, lines, verifier) for name, lines in files.items()]
    chain = _Chain(verifier, head)
    merged = heapq.merge(*(file.entries() for file in read), key=_number)
    for seq, found in groupby(merged, key=_number):
        chain.step(seq, list(found))
    chain.end()
    if chain.first > 1:
        verifier.note("", 0, f"the chain begins with entry {chain.first}: older files were not given", not partial)
    _joined(read, verifier, partial)
    for seq in sorted(verifier.claims):
        chain.check_claims(seq, set())
    return Verdict(
        lines=verifier.lines,
        committed=chain.committed,
        dropped=chain.written - chain.committed,
        unanswered=verifier.unanswered,
        first=chain.first,
        last=chain.last,
        head_checked=chain.head_checked,
        findings=tuple(sorted(verifier.findings, key=lambda f: not f.fault)),
        more=verifier.more,
    )


def _number(entry: _Entry) -> int:
    return entry.seq


def _joined(read: list[_File], verifier: _Verifier, partial: bool) -> None:
    """Each file begins below the last line of another one of its daemon, or anew."""
    ends = {file.last for file in read}
    for file in read:
        if file.first and file.first not in ends:
            what = "it goes on from an older file that was not given, or whose end was cut or edited"
            verifier.note(file.name, 1, what, not partial)

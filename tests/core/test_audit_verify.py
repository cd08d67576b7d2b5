"""What the verification of audit files finds: every way to damage them, and nothing in those that are whole."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebootd.core.audit import COMMITTED, TORN, Head, Kind, Line, digest, encode_line
from rebootd.core.audit_verify import verify

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebootd.core.audit_verify import Verdict

Files = dict[str, list[bytes]]


class Scribe:
    """Daemons that lead one after another and write as the coordinator does."""

    def __init__(self) -> None:
        self.files: Files = {}
        self.current: dict[str, str] = {}
        self.head = Head()

    def write(self, daemon: str, line: Line) -> str:
        name = self.current.setdefault(daemon, f"{daemon}.0")
        lines = self.files.setdefault(name, [])
        above = digest(lines[-1]) if lines else self._before(daemon, name)
        lines.append(encode_line(Line(**{f: getattr(line, f) for f in Line.__struct_fields__} | {"above": above})))
        return digest(lines[-1])

    def _before(self, daemon: str, name: str) -> str:
        older = f"{daemon}.{int(name.rpartition('.')[2]) - 1}"
        return digest(self.files[older][-1]) if older in self.files else ""

    def start(self, daemon: str, result: str = "") -> None:
        self.write(daemon, Line(kind=Kind.FILE, time=1.0, leader=daemon, result=result))

    def rotate(self, daemon: str) -> None:
        name = self.current.get(daemon, f"{daemon}.-1")
        self.current[daemon] = f"{daemon}.{int(name.rpartition('.')[2]) + 1}"
        self.start(daemon)

    def entry(self, daemon: str, fate: str = "committed") -> None:
        """``fate``: committed, dropped, or ``lost`` (committed, and no outcome), or ``died`` (neither)."""
        line = Line(kind=Kind.ENTRY, time=1.0, seq=self.head.seq + 1, prev=self.head.hash, what="halt", leader=daemon)
        hash_ = self.write(daemon, line)
        if fate in {"committed", "lost"}:
            self.head = Head(seq=line.seq, hash=hash_, leader=daemon)
        if fate in {"committed", "dropped"}:
            result = COMMITTED if fate == "committed" else "not committed: a conflict"
            self.write(daemon, Line(kind=Kind.OUTCOME, time=1.0, seq=line.seq, of=hash_, result=result))

    def refused(self, daemon: str) -> None:
        self.write(daemon, Line(kind=Kind.REFUSED, time=1.0, result="no such machine"))

    def verdict(self, *, head: bool = True, partial: bool = False, files: Files | None = None) -> Verdict:
        return verify(self.files if files is None else files, self.head if head else None, partial=partial)


def story(seed: int, steps: int = 40) -> Scribe:
    """A random history of three daemons, with crashes and rotations."""
    rng = random.Random(seed)
    scribe = Scribe()
    for daemon in "abc":
        scribe.start(daemon)
    leader = "a"
    for _ in range(steps):
        if rng.random() < 0.15:
            leader = rng.choice("abc")
        if rng.random() < 0.1:
            scribe.rotate(leader)
        if rng.random() < 0.1:
            scribe.refused(leader)
        scribe.entry(leader, rng.choices(["committed", "dropped", "lost", "died"], [8, 1, 1, 1])[0])
    scribe.entry("a")
    return scribe


@pytest.mark.parametrize("seed", range(30))
def test_what_was_written_is_whole(seed: int) -> None:
    scribe = story(seed)
    verdict = scribe.verdict()
    assert verdict.findings == ()
    assert (verdict.first, verdict.last, verdict.committed) == (1, scribe.head.seq, scribe.head.seq)
    assert verdict.head_checked


@given(seed=st.integers(0, 300), where=st.floats(0, 0.999), how=st.sampled_from(["edit", "remove", "swap", "twice"]))
@settings(max_examples=300, deadline=None)
def test_any_line_that_is_edited_removed_moved_or_doubled_is_found(seed: int, where: float, how: str) -> None:
    scribe = story(seed)
    places = [(name, at) for name, lines in scribe.files.items() for at in range(len(lines))]
    name, at = places[int(where * len(places))]
    lines = scribe.files[name]
    # What stands after the last entry of a file is vouched for by nothing but the file: see the test below.
    if at >= len(lines) - 1 or (how == "swap" and at + 1 >= len(lines) - 1):
        return
    if how == "edit":
        lines[at] = lines[at].replace(b'"time":1.0', b'"time":2.0')
    elif how == "remove":
        del lines[at]
    elif how == "swap":
        lines[at], lines[at + 1] = lines[at + 1], lines[at]
    else:
        lines.insert(at, lines[at])
    verdict = scribe.verdict()
    assert not verdict.whole
    assert any(f.file == name and abs(f.line - 1 - at) <= 2 for f in verdict.findings if f.fault), verdict.findings


@pytest.mark.parametrize("seed", range(10))
def test_a_file_that_is_missing_is_found(seed: int) -> None:
    scribe = story(seed)
    for name, lines in scribe.files.items():
        if any(b'"kind":"entry"' in line for line in lines):
            left = {other: kept for other, kept in scribe.files.items() if other != name}
            committed = scribe.verdict(files=left)
            if committed.whole:
                # Nothing of it was committed: all its entries died with their daemon.
                assert committed.committed == scribe.head.seq
            else:
                said = ("in none of the files", "older file", "or is missing")
                assert any(words in f.what for f in committed.findings for words in said)


@pytest.mark.parametrize("kept", range(1, 8))
def test_a_tail_that_is_cut_is_found_by_the_head_alone(kept: int) -> None:
    scribe = Scribe()
    scribe.start("a")
    for _ in range(4):
        scribe.entry("a")
    del scribe.files["a.0"][kept:]
    blind = scribe.verdict(head=False)
    assert blind.whole
    assert not blind.head_checked
    verdict = scribe.verdict()
    assert not verdict.whole
    assert "in none of the files" in verdict.findings[0].what
    # Behind its last entry, which an outcome may follow.
    assert kept == 1 or (verdict.findings[0].file == "a.0" and kept - verdict.findings[0].line in {0, 1})


def test_what_follows_the_last_entry_of_a_file_is_vouched_for_by_that_file_alone() -> None:
    """The limit that docs/audit.md names: refusals and outcomes at the very end can be cut without a trace."""
    scribe = Scribe()
    scribe.start("a")
    scribe.entry("a")
    scribe.refused("a")
    scribe.refused("a")
    del scribe.files["a.0"][-2:]
    assert scribe.verdict().whole


def test_an_entry_that_was_edited_and_rechained_is_found_by_the_next_one_and_by_the_head() -> None:
    scribe = Scribe()
    for daemon in "ab":
        scribe.start(daemon)
    scribe.entry("a", "lost")
    forged = Scribe()
    forged.start("a")
    forged.write("a", Line(kind=Kind.ENTRY, time=9.0, seq=1, what="nothing happened"))
    for head in (True, False):
        verdict = scribe.verdict(files={**forged.files, "b.0": scribe.files["b.0"]}, head=head)
        assert verdict.whole is not head
    scribe.entry("b")
    verdict = scribe.verdict(files={**forged.files, "b.0": scribe.files["b.0"]}, head=False)
    assert [(f.file, f.line) for f in verdict.findings if f.fault] == [("b.0", 2)]


def test_an_outcome_that_the_chain_contradicts_is_found() -> None:
    scribe = Scribe()
    scribe.start("a")
    scribe.entry("a", "died")
    scribe.entry("a")
    dead = digest(scribe.files["a.0"][1])
    scribe.write("a", Line(kind=Kind.OUTCOME, time=1.0, seq=1, of=dead, result=COMMITTED))
    verdict = scribe.verdict()
    assert [(f.file, f.line) for f in verdict.findings if f.fault] == [("a.0", 5)]


def test_a_crash_is_no_tampering() -> None:
    scribe = Scribe()
    scribe.start("a")
    scribe.entry("a", "lost")
    scribe.entry("a", "died")
    scribe.files["a.0"].append(b'{"kind":"entry","tim')
    assert [(f.line, f.fault) for f in scribe.verdict().findings] == [(4, False)]
    assert scribe.verdict().unanswered == 2
    # The next daemon marks the line, and goes on.
    scribe.start("a", TORN)
    scribe.entry("a")
    verdict = scribe.verdict()
    assert [(f.line, f.fault) for f in verdict.findings] == [(4, False)]
    assert (verdict.committed, verdict.dropped, verdict.unanswered) == (2, 1, 2)


def test_garbage_that_no_crash_left_is_found() -> None:
    scribe = Scribe()
    scribe.start("a")
    scribe.entry("a")
    scribe.files["a.0"].insert(1, b"garbage")
    assert [(f.line, f.fault) for f in scribe.verdict().findings if f.fault] != []
    scribe.files["a.0"].insert(1, b"\xff\x00")
    assert not scribe.verdict().whole


def test_two_chains_are_found() -> None:
    scribe = Scribe()
    scribe.start("a")
    scribe.start("b")
    scribe.entry("a")
    scribe.entry("a")
    scribe.head = Head()
    scribe.entry("b")
    scribe.entry("b")
    assert any("two chains" in f.what for f in scribe.verdict().findings)


def test_files_that_retention_removed_are_missed_only_when_they_should_be_there() -> None:
    scribe = Scribe()
    scribe.start("a")
    scribe.entry("a")
    scribe.rotate("a")
    scribe.entry("a")
    young = {"a.1": scribe.files["a.1"]}
    assert not scribe.verdict(files=young).whole
    verdict = scribe.verdict(files=young, partial=True)
    assert verdict.whole
    assert (verdict.first, verdict.last) == (2, 2)


@pytest.mark.parametrize("after", range(5))
def test_a_head_that_was_read_before_the_files_is_reached_on_the_way(after: int) -> None:
    scribe = Scribe()
    scribe.start("a")
    scribe.entry("a")
    head = scribe.head
    for _ in range(after):
        scribe.entry("a")
    verdict = verify(scribe.files, head)
    assert verdict.whole
    assert verdict.head_checked
    assert verdict.last == after + 1
    assert not verify(scribe.files, Head(seq=1, hash="00")).whole


def test_nothing_at_all_is_whole_only_where_nothing_was_committed() -> None:
    assert verify({}, Head()).whole
    assert verify({}, None).whole
    assert not verify({}, Head(seq=3, hash="ab", leader="x")).whole


def test_a_hundred_faults_are_not_all_told_and_no_note_hides_one() -> None:
    scribe = Scribe()
    scribe.start("a")
    for _ in range(200):
        scribe.entry("a")
    lines: list[bytes] = [line for n, line in enumerate(scribe.files["a.0"]) if n % 3]
    verdict = scribe.verdict(files={"a.0": lines})
    assert len(verdict.findings) == 50
    assert verdict.more > 0
    assert all(f.fault for f in verdict.findings)


def _shuffle(order: Callable[[list[str]], list[str]], scribe: Scribe) -> Verdict:
    return scribe.verdict(files={name: scribe.files[name] for name in order(list(scribe.files))})


def test_the_order_in_which_files_are_named_does_not_matter() -> None:
    scribe = story(7)
    assert _shuffle(sorted, scribe) == _shuffle(lambda names: names[::-1], scribe)

"""``rebootctl audit``: what it says of files that are whole and that are not, and its exit codes."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING

import msgspec

from rebootd.core.audit import COMMITTED, Head, Kind, Line, digest, encode_line

if TYPE_CHECKING:
    from pathlib import Path

    from tests.api.server import Api
    from tests.cli.ctl_runner import Ctl


def written(file: Path, entries: int = 3) -> Head:
    """A daemon's file with committed entries; the head that they end at."""
    lines = [encode_line(Line(kind=Kind.FILE, time=1.0, leader="d1"))]
    head = Head()
    for seq in range(1, entries + 1):
        entry = Line(kind=Kind.ENTRY, time=1.0, seq=seq, what="halt", prev=head.hash, above=digest(lines[-1]))
        lines.append(encode_line(entry))
        head = Head(seq=seq, hash=digest(lines[-1]), epoch=3, leader="d1")
        told = Line(kind=Kind.OUTCOME, time=1.0, seq=seq, of=head.hash, result=COMMITTED, above=head.hash)
        lines.append(encode_line(told))
    file.write_bytes(b"".join(line + b"\n" for line in lines))
    return head


async def test_the_head_is_asked_of_the_leader(api: Api, ctl: Ctl) -> None:
    head = written(ctl.folder / "a.log")
    api.desk.audit.head = head
    said = await ctl.good("audit", "verify", "a.log")
    assert "3 committed" in said
    assert said.endswith("whole\n")
    assert "not checked" not in said
    api.desk.audit.head = Head(seq=4, hash="ab", epoch=9, leader="d2")
    ran = await ctl("audit", "verify", "a.log")
    assert (ran.code, ran.err) == (1, "")
    assert "FAULT a.log:6: entry 4 (the last by d2, epoch 9): in none of the files" in ran.out


async def test_the_head_as_a_file_and_none_at_all(ctl: Ctl) -> None:
    head = written(ctl.folder / "a.log")
    for shape in (msgspec.to_builtins(head), {"head": msgspec.to_builtins(head), "enabled": True}):
        (ctl.folder / "head.json").write_text(json.dumps(shape))
        ran = await ctl("audit", "verify", "--head", "head.json", "a.log", server="http://127.0.0.1:9")
        assert (ran.code, ran.err) == (0, "")
    ran = await ctl("audit", "verify", "--offline", "a.log", server="http://127.0.0.1:9")
    assert (ran.code, ran.err) == (0, "")
    assert "the end of the chain was not checked" in ran.out
    assert (await ctl("audit", "verify", "a.log", server="http://127.0.0.1:9")).code == 3


async def test_a_damaged_line_is_named_and_packed_files_are_read(ctl: Ctl) -> None:
    head = written(ctl.folder / "a.log")
    (ctl.folder / "head.json").write_bytes(msgspec.json.encode(head))
    text = (ctl.folder / "a.log").read_bytes()
    with gzip.open(ctl.folder / "a.log.1.gz", "wb") as packed:
        packed.write(text)
    assert (await ctl("audit", "verify", "--head", "head.json", "a.log.1.gz")).code == 0
    lines = text.splitlines(keepends=True)
    lines[3] = lines[3].replace(b'"halt"', b'"hold"')
    (ctl.folder / "a.log").write_bytes(b"".join(lines))
    ran = await ctl("audit", "verify", "--head", "head.json", "a.log")
    assert ran.code == 1
    assert "FAULT a.log:4: edited" in ran.out
    shown = (await ctl("audit", "verify", "--head", "head.json", "a.log", "--json")).json()
    assert {(f["file"], f["line"]) for f in shown["findings"]} >= {("a.log", 4)}


async def test_bad_input_says_what_is_wrong(ctl: Ctl) -> None:
    written(ctl.folder / "a.log")
    (ctl.folder / "head.json").write_text("[]")
    assert "--head" in await ctl.bad(2, "audit", "verify", "--head", "head.json", "a.log")
    (ctl.folder / "head.json").write_text('{"seq": "x"}')
    assert "seq" in await ctl.bad(2, "audit", "verify", "--head", "head.json", "a.log")
    assert "none.log" in await ctl.bad(2, "audit", "verify", "--offline", "none.log")
    assert "--offline" in await ctl.bad(2, "audit", "verify", "--offline", "--head", "head.json", "a.log")
    (ctl.folder / "b.log.gz").write_bytes(b"not packed")
    assert "cannot be read" in await ctl.bad(2, "audit", "verify", "--offline", "b.log.gz")


async def test_the_chain_is_shown(api: Api, ctl: Ctl) -> None:
    said = await ctl.good("audit", "show")
    assert "whole" in said
    api.desk.audit.broken, api.desk.audit.problem = "somebody cut it", "the disk is full"
    said = await ctl.good("audit", "show")
    assert "BROKEN: somebody cut it" in said
    assert "the disk is full" in said
    api.desk.audit.enabled = False
    assert "no daemon" in await ctl.good("audit", "show")


async def test_who_asked_for_what_reaches_the_leader(api: Api, ctl: Ctl) -> None:
    await ctl.good("halt", "--reason", "smoke in r7")
    asked = api.desk.asked[-1]
    assert asked is not None
    assert (asked.reason, asked.what) == ("smoke in r7", "PUT /v1/halt")
    assert asked.caller.address == "127.0.0.1"
    assert asked.request

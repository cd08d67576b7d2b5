"""How long `rebootctl audit verify` takes: a million changes in the files of three daemons."""

from __future__ import annotations

import hashlib
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from rebootd.core.audit import COMMITTED, Head, Kind, Line, digest, encode_line
from rebootd.core.caller import Caller
from tests.bench.figures import Figure

ENTRIES = 1_000_000
TERM = 1000
"""Entries of one leadership."""
WHO = Caller(identity="ann@example.com", kind="person", role="operator", address="10.1.2.3")


def write(folder: Path, entries: int) -> None:
    """Files of three daemons that lead in turns, and the head."""
    files = {name: (folder / f"{name}.log").open("wb") for name in "abc"}
    above = dict.fromkeys(files, "")
    head = Head()

    def put(name: str, line: Line) -> str:
        raw = encode_line(msgspec.structs.replace(line, above=above[name]))
        files[name].write(raw + b"\n")
        above[name] = digest(raw)
        return above[name]

    for seq in range(1, entries + 1):
        name = "abc"[seq // TERM % 3]
        entry = Line(
            kind=Kind.ENTRY,
            time=1.7e9 + seq,
            seq=seq,
            epoch=seq // TERM,
            leader=name,
            what="hold",
            who=WHO,
            by="ann@desk",
            reason="disk swap, ticket 4711",
            machine=f"web{seq % 10_000}",
            rack="r7",
            request="0123456789abcdef0123456789abcdef",
            writes=(f"holds/machine/web{seq % 10_000} {above[name]}",),
            detail="by ann@example.com: disk swap, ticket 4711",
            prev=head.hash,
        )
        head = Head(seq=seq, hash=put(name, entry), epoch=seq // TERM, leader=name)
        told = Line(
            kind=Kind.OUTCOME, time=1.7e9 + seq, seq=seq, epoch=seq // TERM, leader=name, of=head.hash, result=COMMITTED
        )
        put(name, told)
    for file in files.values():
        file.close()
    (folder / "head.json").write_bytes(msgspec.json.encode(head))


def run(entries: int = ENTRIES) -> list[Figure]:
    """One figure: the command as it is typed, from its start to its end."""
    with tempfile.TemporaryDirectory(prefix="rebootd-audit-") as made:
        folder = Path(made)
        write(folder, entries)
        files = sorted(str(path) for path in folder.glob("*.log"))
        size = sum(Path(name).stat().st_size for name in files)
        command = ["-m", "rebootd.cli.ctl", "audit", "verify", "--head", str(folder / "head.json"), *files]
        began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
        took, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        began = time.monotonic()
        for name in files:
            with Path(name).open("rb") as file:
                for line in file:
                    hashlib.sha256(line).hexdigest()
        bare = time.monotonic() - began
    beside = f"{2 * entries:,} lines, {size / 1e6:.0f} MB; {cpu:.1f} s of CPU; reading and hashing alone {bare:.1f} s"
    return [Figure(what=f"rebootctl audit verify of {entries:,} changes", value=f"{took:.1f} s", beside=beside)]

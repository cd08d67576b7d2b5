"""The audit log on a daemon's disk: appended to, made durable, never rewritten; rotation by renaming.

All that touches the disk runs in one thread, so that a disk that hangs stops nothing but changes, and its timeout
bounds those. Whoever may read the file reads who changed what: it is 0600, and locked, so that no two daemons share
one.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import msgspec
import structlog

from rebootd.core.audit import COMMITTED, TORN, Kind, Line, digest, encode_line
from rebootd.core.errors import InvalidInput, Refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from pathlib import Path

log = structlog.get_logger(__name__)

PATIENCE = 2.0
"""Seconds that one line may take to be on the disk."""
TAIL = 256 * 1024
"""Bytes from the end that are read at the start: the last lines are in them."""

_decoder = msgspec.json.Decoder(Line)


class AuditFile:
    """One daemon's file. ``problem`` says why the last line could not be written (``""``: it was); ``tampered`` what
    somebody else did to the file while it was ours. ``last`` is the sequence number and the digest of the last entry
    in it that was known to be committed.

    Raises ``InvalidInput`` when it cannot be opened, or another process has it.
    """

    def __init__(self, path: Path, daemon: str, wall: Callable[[], float]) -> None:
        self.path = path
        self.problem = ""
        self.tampered = ""
        self.last: tuple[int, str] = (0, "")
        self.daemon = daemon
        self._wall = wall
        self._above = ""
        self._size = 0
        self._torn = False
        self._fd = -1
        self._closing = False
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="audit")
        self._under_way: Future[bytes] | None = None
        try:
            self._open()
            self._read_tail()
            self._begin()
        except OSError as error:
            raise InvalidInput("audit-log", str(path), f"a file that can be written ({error.strerror})") from error

    async def append(self, line: Line) -> bytes:
        """Writes a line and returns its bytes once it is durable. Raises ``Refused`` when that fails or takes long.

        The line may be in the file all the same; it is not committed then, and says so to whoever verifies.
        """
        if self._under_way is not None and not self._under_way.done():
            raise Refused(self._failed("the disk has not answered yet"))
        self._under_way = self._worker.submit(self._write, line)
        try:
            async with asyncio.timeout(PATIENCE):
                raw = await asyncio.shield(asyncio.wrap_future(self._under_way))
        except TimeoutError:
            raise Refused(self._failed(f"no answer of the disk within {PATIENCE:g} s")) from None
        except (OSError, InvalidInput) as error:
            raise Refused(self._failed(getattr(error, "strerror", None) or str(error))) from None
        self.problem = ""
        return raw

    def later(self, line: Line) -> None:
        """Writes a line behind all others, and waits for nothing: what it says can be told without it too."""
        if not self._closing:
            self._worker.submit(self._quietly, line)

    async def close(self) -> None:
        """Waits until all is written, a moment at most, and lets go of the file."""
        self._closing = True
        closing = self._worker.submit(self._close)
        await asyncio.wait([asyncio.wrap_future(closing)], timeout=PATIENCE)
        self._worker.shutdown(wait=False)

    def _failed(self, why: str) -> str:
        self.problem = f"the audit log {self.path} cannot be written: {why}"
        return self.problem

    # --- in the thread -------------------------------------------------------------------

    def _quietly(self, line: Line) -> None:
        try:
            self._write(line, durable=False)
        except OSError as error:
            log.warning("audit-line-lost", file=str(self.path), error=str(error))

    def _write(self, line: Line, durable: bool = True) -> bytes:
        self._follow_rotation()
        self._look_for_others()
        if self._torn:
            self._put(self._mark(TORN), lead=b"\n")
            self._torn = False
        return self._put(line, durable=durable)

    def _put(self, line: Line, lead: bytes = b"", durable: bool = True) -> bytes:
        raw = encode_line(msgspec.structs.replace(line, above=self._above))
        data = memoryview(lead + raw + b"\n")
        written = 0
        try:
            while written < len(data):
                written += os.write(self._fd, data[written:])
            if durable:
                os.fdatasync(self._fd)
        except OSError:
            self._take_back()
            raise
        self._size += len(data)
        self._above = digest(raw)
        return raw

    def _take_back(self) -> None:
        """Half a line is taken away again, if the disk lets us; else it is marked as soon as it does."""
        try:
            os.ftruncate(self._fd, self._size)
        except OSError:
            self._torn = True
            half = os.pread(self._fd, os.fstat(self._fd).st_size - self._size, self._size)
            self._size += len(half)
            self._above = digest(half)

    def _follow_rotation(self) -> None:
        """Renamed or removed: the next file begins where the last one ended."""
        ours = os.fstat(self._fd)
        try:
            named = self.path.stat()
        except FileNotFoundError:
            named = None
        if named is None or (named.st_dev, named.st_ino) != (ours.st_dev, ours.st_ino):
            old = self._fd
            self._open()
            os.close(old)
            self._size = os.fstat(self._fd).st_size
            self._put(self._mark(""))

    def _look_for_others(self) -> None:
        size = os.fstat(self._fd).st_size
        if size != self._size:
            self.tampered = f"{self.path} was {self._size} bytes long and is {size} now: somebody else wrote or cut it"
            log.error("audit-file-changed", file=str(self.path), expected=self._size, size=size)
            self._size = size

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self.path, flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.fchmod(fd, 0o600)
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except BlockingIOError:
            os.close(fd)
            raise InvalidInput("audit-log", str(self.path), "a file that no other daemon writes") from None
        except OSError:
            os.close(fd)
            raise
        self._fd = fd

    def _read_tail(self) -> None:
        self._size = os.fstat(self._fd).st_size
        start = max(0, self._size - TAIL)
        *lines, rest = os.pread(self._fd, self._size - start, start).split(b"\n")
        self._torn = bool(rest)
        last = rest or (lines[-1] if lines else b"")
        self._above = digest(last) if last else ""
        for raw in reversed(lines):
            try:
                line = _decoder.decode(raw)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                continue
            if line.kind is Kind.OUTCOME and line.result == COMMITTED:
                self.last = (line.seq, line.of)
                return

    def _begin(self) -> None:
        if self._torn:
            self._put(self._mark(TORN), lead=b"\n")
            self._torn = False
        else:
            self._put(self._mark(""))

    def _mark(self, result: str) -> Line:
        return Line(kind=Kind.FILE, time=self._wall(), leader=self.daemon, result=result)

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

"""The journal's file on disk: replaced as a whole, or not at all."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

Stamp = tuple[int, int, int]


class Disk(Protocol):
    """Where the journal's bytes are. Every method may raise ``OSError``."""

    path: Path

    def locked(self) -> AbstractContextManager[None]:
        """Keeps other processes (break-glass) from writing meanwhile."""
        ...

    def read(self) -> bytes:
        """The bytes. Raises ``FileNotFoundError``."""
        ...

    def replace(self, data: bytes) -> None:
        """Returns once ``data`` is what a later :meth:`read` finds, also after the power is cut."""
        ...

    def stamp(self) -> Stamp | None:
        """Differs when somebody else wrote; None when there is nothing to read."""
        ...

    def set_aside(self) -> Path:
        """Moves a damaged file away and tells where it is now."""
        ...


class JournalFile:
    """A :class:`Disk` that is one: written beside, fsynced, renamed, the folder fsynced."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds a lock file beside the journal."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(
            self.path.with_name(f".{self.path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def read(self) -> bytes:
        """The file's bytes."""
        return self.path.read_bytes()

    def replace(self, data: bytes) -> None:
        """Writes the file as a whole."""
        beside = self.path.with_name(f".{self.path.name}.new")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        beside.rename(self.path)
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def stamp(self) -> Stamp | None:
        """Inode, time and size of the file."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def set_aside(self) -> Path:
        """Renames the file; its new name tells when."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        aside = self.path.with_name(f"{self.path.name}.corrupt-{stamp}-{os.getpid()}")
        self.path.rename(aside)
        return aside

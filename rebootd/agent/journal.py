"""The journal: what the agent must not forget when it, or its host, is killed at any moment.

One JSON file, replaced as a whole: written beside, fsynced, renamed, the folder fsynced. A checksum over the content
tells a damaged file from a whole one. The running agent and the break-glass command both write it, each change under
a file lock and on top of what is on disk.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from rebootd.agent.journal_file import JournalFile
from rebootd.core.codec import read_json
from rebootd.core.errors import Refused
from rebootd.core.wire import CheckResult, Result

if TYPE_CHECKING:
    from rebootd.agent.journal_file import Disk, Stamp

RESULTS_KEPT = 16
"""How many results are remembered by directive id; a machine's way through one cycle has three."""


class Intent(msgspec.Struct, frozen=True, kw_only=True):
    """That we are about to run the reboot command. ``sent`` is CLOCK_BOOTTIME when the permit was asked for."""

    directive: str
    boot_id: str
    nonce: str
    sent: float


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The journal's content; everything but ``name``, ``epoch`` and ``results`` speaks of the boot ``boot_id``.

    ``epoch`` is the highest seen. ``results`` are the newest last; the last one is what reports repeat. ``announced``
    is the shutdown by others that is coming, ``stopped`` that the system was going down when the agent was stopped,
    ``last_shutdown`` how the boot before this one ended (words: :class:`rebootd.core.wire.Report`). ``kept_out``
    is the state by which a coordinator last kept the machine out of service, or ``""``.
    """

    boot_id: str = ""
    name: str = ""
    epoch: int = 0
    nonce: str = ""
    intent: Intent | None = None
    results: tuple[Result, ...] = ()
    in_service: bool = False
    by_hand: str = ""
    boot_check: CheckResult = CheckResult()
    since: float = 0.0
    announced: str = ""
    stopped: bool = False
    last_shutdown: str = ""
    kept_out: str = ""

    def result(self, directive: str) -> Result | None:
        """How the directive of that id ended, if it did."""
        return next((r for r in reversed(self.results) if r.id == directive), None)

    def with_result(self, result: Result) -> tuple[Result, ...]:
        """``results`` after one more, bounded; a repeated id replaces its former result."""
        return (*(r for r in self.results if r.id != result.id), result)[-RESULTS_KEPT:]


class _File(msgspec.Struct, frozen=True):
    crc32: str
    journal: msgspec.Raw


class JournalUnwritable(Refused):
    """The journal cannot be written (disk full, read-only, no permission): nothing may be done that relies on it."""


class JournalCorrupt(Refused):
    """The journal's file is damaged."""


def encode(record: Record) -> bytes:
    """The file's bytes."""
    body = msgspec.json.encode(record)
    return b'{"crc32":"%08x","journal":%s}\n' % (zlib.crc32(body), body)


def decode(data: bytes) -> Record:
    """The record in the file's bytes. Raises ``JournalCorrupt``."""
    try:
        file = read_json(data, _File)
        if file.crc32 != f"{zlib.crc32(file.journal):08x}":
            raise JournalCorrupt("its checksum does not fit its content")
        return read_json(file.journal, Record)
    except msgspec.MsgspecError as error:
        raise JournalCorrupt(str(error)) from error


class Journal:
    """The journal at ``where``, a path or a disk. ``record`` is the latest known content, also what is not on disk yet.

    ``problem`` says why the last write failed, or ``""``; ``aside`` is where a damaged file was kept, or None.
    """

    def __init__(self, where: Path | Disk) -> None:
        self._file: Disk = JournalFile(where) if isinstance(where, Path) else where
        self.path = self._file.path
        self.record = Record()
        self.problem = ""
        self.aside: Path | None = None
        self._unsaved: dict[str, Any] = {}
        self._disk = self.record
        self._stamp: Stamp | None = None

    def load(self) -> str:
        """Reads the file: ``absent``, ``whole`` or ``corrupt`` (then it was moved to ``aside``).

        Raises ``JournalUnwritable`` when it can neither be read nor moved aside.
        """
        try:
            with self._file.locked():
                return self._load()
        except OSError as error:
            raise JournalUnwritable(f"{self.path}: {error.strerror or error}") from error

    def _load(self) -> str:
        try:
            data = self._file.read()
        except FileNotFoundError:
            return "absent"
        try:
            self.record = decode(data)
        except JournalCorrupt:
            self.aside = self._file.set_aside()
            return "corrupt"
        self._stamp = self._file.stamp()
        return "whole"

    def refresh(self) -> Record:
        """``record`` with what another process (break-glass) may have written meanwhile."""
        if self._file.stamp() != self._stamp:
            self._reread()
        return self.record

    def update(self, **changes: Any) -> Record:
        """Changes fields and returns once they are on disk.

        Raises ``JournalUnwritable``; then the changes stand in ``record`` only, and ride with the next update.
        """
        self._unsaved.update(changes)
        try:
            with self._file.locked():
                self._reread()
                if self._stamp is None or self._differs():
                    self._file.replace(encode(self.record))
                    self._stamp = self._file.stamp()
        except OSError as error:
            self.record = msgspec.structs.replace(self.record, **self._unsaved)
            self.problem = f"the journal {self.path} cannot be written: {error.strerror or error}"
            raise JournalUnwritable(self.problem) from error
        self._unsaved.clear()
        self.problem = ""
        return self.record

    def add_result(self, result: Result, **changes: Any) -> Record:
        """Journals how a directive ended, together with other changes. Raises ``JournalUnwritable``."""
        return self.update(results=self.record.with_result(result), **changes)

    def _differs(self) -> bool:
        return self._disk != self.record

    def _reread(self) -> None:
        try:
            self._disk = decode(self._file.read())
            self._stamp = self._file.stamp()
        except (OSError, JournalCorrupt):
            # Damaged while we run: what we hold in memory is the better copy, and the next update writes it.
            self._disk, self._stamp = self.record, None
        self.record = msgspec.structs.replace(self._disk, **self._unsaved)

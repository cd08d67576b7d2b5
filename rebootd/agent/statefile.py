"""The state file: where this machine stands and what it waits for, for people and scripts on the host."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from rebootd.core.codec import read_json
from rebootd.core.errors import NotFound

if TYPE_CHECKING:
    from pathlib import Path


class AgentState(msgspec.Struct, frozen=True, kw_only=True):
    """Times are seconds since the Unix epoch, 0: never. ``state`` is the coordinator's word, ``doing`` our own.

    ``by_itself``: enabled without anybody's word (``on_unreachable``). ``shutdown_delay``: seconds that a shutdown by
    others waits for a drain, 0 while it does not. ``announced``, ``last_shutdown``: as in the report.
    ``waiting_for`` is what the machine waits for and ``since`` since when; ``problem`` is what is wrong on this host.
    """

    machine: str = ""
    boot_id: str = ""
    in_service: bool = False
    state: str = ""
    doing: str = ""
    waiting_for: str = ""
    since: float = 0.0
    last_contact: float = 0.0
    coordinator: str = ""
    epoch: int = 0
    reboot_required: str = "unknown"
    reboot_reasons: tuple[str, ...] = ()
    boot_check: str = "pending"
    out_mark: str = ""
    by_hand: str = ""
    by_itself: bool = False
    announced: str = ""
    last_shutdown: str = ""
    shutdown_delay: float = 0.0
    problem: str = ""
    pid: int = 0
    updated: float = 0.0


def write_atomically(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replaces a file as a whole, without fsync. Raises ``OSError``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(data)
        beside.chmod(mode)
        beside.rename(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def write(path: Path, state: AgentState) -> None:
    """Writes the state file. Raises ``OSError``."""
    write_atomically(path, msgspec.json.format(msgspec.json.encode(state)) + b"\n")


def read(path: Path) -> AgentState:
    """The state file's content. Raises ``NotFound`` when there is none that can be read."""
    try:
        return read_json(path.read_bytes(), AgentState)
    except (OSError, msgspec.MsgspecError) as error:
        raise NotFound(f"no readable state file at {path} (does the agent run?): {error}") from error

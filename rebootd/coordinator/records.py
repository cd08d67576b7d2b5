"""Where records live in the store, and how they are read and written: one codec, one place."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from msgspec.structs import replace

from rebootd.core.codec import read_json
from rebootd.core.model import Cycle, Halt
from rebootd.core.selectors import parse_selector
from rebootd.core.stamps import record_by

T = TypeVar("T", bound=msgspec.Struct)

_ENCODER = msgspec.json.Encoder()


def encode(record: msgspec.Struct) -> bytes:
    """A record as JSON bytes, readable with ``consul kv get``."""
    return _ENCODER.encode(record)


def decode(value: bytes, kind: type[T]) -> T:
    """Raises ``msgspec.MsgspecError`` (it says where) when ``value`` is not such a record."""
    return read_json(value, kind)


def checked(record: T, name: str) -> T:
    """The record, if its words can be used. Raises ``msgspec.ValidationError`` or InvalidInput."""
    inside = getattr(record, "id", name)
    if inside != name:
        # Its next write would go to the other key, again and again.
        raise msgspec.ValidationError(f"the id inside is {inside!r}")
    if isinstance(record, Cycle):
        parse_selector(record.selector)
        if record.target:
            parse_selector(record.target, "target")
    return record


def halt_of(value: bytes, now: float) -> Halt:
    """Any value is a halt: the emergency stop is a plain ``consul kv put``."""
    try:
        halt = record_by(decode(value, Halt), now)
        return replace(halt, since=halt.since or now)
    except msgspec.MsgspecError:
        return Halt(reason=value.decode(errors="replace").strip(), since=now)


class Keys:
    """The keys under one prefix (by default ``rebootd/``)."""

    def __init__(self, prefix: str = "rebootd/") -> None:
        self.prefix = prefix
        self.leader = prefix + "leader"
        self.epoch = prefix + "epoch"
        self.policy = prefix + "policy"
        self.halt = prefix + "control/halt"
        self.machines = prefix + "machines/"
        self.cycles = prefix + "cycles/"
        self.holds = prefix + "holds/"
        self.windows = prefix + "windows/"
        self.power = prefix + "power/"
        self.control = prefix + "control/"
        self.racks = prefix + "racks/"
        self.events = prefix + "events/"
        self.durations = prefix + "durations"
        self.audit = prefix + "audit"

    def machine(self, name: str) -> str:
        """``machines/<name>``."""
        return self.machines + name

    def cycle(self, cycle_id: str) -> str:
        """``cycles/<id>``."""
        return self.cycles + cycle_id

    def machine_hold(self, name: str) -> str:
        """``holds/machine/<name>``."""
        return f"{self.holds}machine/{name}"

    def rack_hold(self, rack: str) -> str:
        """``holds/rack/<rack>``."""
        return f"{self.holds}rack/{rack}"

    def power_cycle(self, name: str) -> str:
        """``power/<machine>``."""
        return self.power + name

    def rack_lock(self, rack: str) -> str:
        """``racks/<rack>/.lock``: the key that ``consul lock <prefix>racks/<rack>`` uses."""
        return f"{self.racks}{rack}/.lock"

    def rack_record(self, rack: str) -> str:
        """``racks/<rack>/record``."""
        return f"{self.racks}{rack}/record"

    def event_slot(self, slot: int) -> str:
        """``events/<three digits>``."""
        return f"{self.events}{slot:03d}"

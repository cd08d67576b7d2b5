"""What can be told, after an answer was lost, from what is stored now. Pure; the reasons are in the writer."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from rebootd.store.port import CheckIndex, Delete, Entry, Op, Set

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rebootd.core.errors import Failed


class _Stamp(msgspec.Struct):
    write_id: str = ""


_decoder = msgspec.json.Decoder(_Stamp)


class Witness(NamedTuple):
    """A write with ``cas`` whose stored value can testify. ``write_id`` is "" if the value has none."""

    op: Set
    write_id: str

    def judge(self, entry: Entry | None) -> int | None:
        """The index at which ours landed, 0 if it landed and was edited since, -1 if it did not land
        until now, None if the stored value does not tell.
        """
        if (entry.modify_index if entry else 0) == self.op.cas:
            return -1 if self.op.cas else None  # an absent key may have been created by us and deleted since
        if entry is None:
            return None
        if entry.value == self.op.value:
            return entry.modify_index
        return 0 if self.write_id and write_id(entry.value) == self.write_id else None


def write_id(value: bytes) -> str:
    """The write id inside a JSON record, or ""."""
    try:
        return _decoder.decode(value).write_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def witnesses(ops: Iterable[Op]) -> list[Witness]:
    """The writes that testify for the whole transaction.

    Those with a write id; only when there is none, those whose bytes must speak for themselves.
    """
    found = [Witness(op, write_id(op.value)) for op in ops if isinstance(op, Set) and op.cas is not None]
    return [witness for witness in found if witness.write_id] or found


def is_dead(ops: Sequence[Op], failed: Iterable[Failed]) -> bool:
    """Whether ``ops`` can never land any more: it needs an index that its key has left for good."""
    return any(
        (isinstance(op, CheckIndex) and f.reason in {"cas", "missing"})
        or (isinstance(op, Set | Delete) and bool(op.cas) and f.reason == "cas")
        for f in failed
        for op in ops[f.index : f.index + 1]
    )


def looks_landed(ops: Sequence[Op], failed: Iterable[Failed]) -> bool:
    """Whether every write with ``cas`` was refused for it, as it would be if the same had landed before."""
    refused = {f.index for f in failed if f.reason == "cas"}
    return all(i in refused for i, op in enumerate(ops) if isinstance(op, Set) and op.cas is not None)

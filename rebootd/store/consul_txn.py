"""Transactions in Consul's words: how operations are written, and what each refusal means.

``PUT /v1/txn`` answers 200 when all was done, and 409 with ``Errors`` (``OpIndex``, ``What``) when nothing was.
Measured on Consul 1.8.7, by operation:

====================  ====================================================================  =========
operation             What                                                                  reason
====================  ====================================================================  =========
any                   Permission denied (all denied operations at once, before any other)   denied
cas, delete-cas       failed to set|delete key "k", index is stale (cas: also if absent)    cas
check-index           failed index check for key "k", current modify index 15 != 5          cas
check-index           failed to check index, key "k" doesn't exist (also for index 0)       missing
check-session         failed session check for key "k", current session "" != "..."         session
check-session         failed to check session, key "k" doesn't exist                        missing
check-not-exists      key "k" exists                                                        exists
lock                  failed to lock key "k", lock is already held                          locked
lock                  failed to lock key "k" due to lock delay                              locked
lock                  invalid session "..."; failed session lookup: ... (not a UUID)        session
unlock                failed to unlock key "k", lock isn't held, or is held by another ...  session
====================  ====================================================================  =========

Also measured: every failed operation is reported, not only the first; but denials, and then lock-delays, are looked
for before anything is tried, and hide the other reasons. Operations see what earlier ones of the same transaction did.
A write that changes nothing keeps the ModifyIndex. A delete-cas of an absent key succeeds at any index. A plain ``set``
on a locked key keeps the holder, but resets LockIndex to 0 and the flags to those given. A lock that its holder takes
again succeeds. An unknown token is a 403, one without rights a 409; more than 64 operations, or 512 kB of body, a 413.
"""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING, Any

import msgspec

from rebootd.core.codec import read_json
from rebootd.core.errors import Conflict, Denied, Failed, OutcomeUnknown, StoreError, TooLarge
from rebootd.store.port import (
    MAX_BODY,
    MAX_OPS,
    CheckIndex,
    CheckNotExists,
    CheckSession,
    Delete,
    Lock,
    Op,
    Set,
    Unlock,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


_LOCKING: dict[type[Op], str] = {Lock: "lock", Unlock: "unlock", CheckSession: "check-session"}


class _Written(msgspec.Struct, rename="pascal"):
    key: str
    modify_index: int


class _Result(msgspec.Struct):
    KV: _Written | None = None


class _Error(msgspec.Struct, rename="pascal"):
    op_index: int
    what: str


class _Answer(msgspec.Struct, rename="pascal"):
    results: list[_Result] | None = None
    errors: list[_Error] | None = None


def writes(op: Op) -> bool:
    """Whether ``op`` changes its key (the others only check)."""
    return isinstance(op, Set | Delete | Lock | Unlock)


def encode(ops: Sequence[Op]) -> bytes:
    """The body of the request.

    Raises ``ValueError`` for more than ``MAX_OPS`` operations, an empty key or an empty session, and ``TooLarge``.
    """
    if len(ops) > MAX_OPS:
        raise ValueError(f"{len(ops)} operations in one transaction; at most {MAX_OPS}")
    body = msgspec.json.encode([{"KV": _verb(op)} for op in ops])
    if len(body) > MAX_BODY:
        raise TooLarge(f"a transaction of {len(body)} bytes; at most {MAX_BODY}")
    return body


def _verb(op: Op) -> dict[str, Any]:
    if not op.key or op.key.startswith("/"):
        raise ValueError(f"the key {op.key!r} is empty or starts with a slash")
    if isinstance(op, Lock | Unlock | CheckSession) and not op.session:
        # Consul lets a check-session with an empty session pass on an unlocked key.
        raise ValueError(f"an empty session for {op.key}")
    words: dict[str, Any] = {"Verb": "check-not-exists"}
    match op:
        case Set(cas=cas) | Delete(cas=cas):
            verb = "set" if isinstance(op, Set) else "delete"
            if cas is not None:
                verb = "cas" if isinstance(op, Set) else "delete-cas"
            words = {"Verb": verb} if cas is None else {"Verb": verb, "Index": cas}
        case Lock() | Unlock() | CheckSession():
            words = {"Verb": _LOCKING[type(op)], "Session": op.session}
        case CheckIndex():
            words = {"Verb": "check-index", "Index": op.index}
    if isinstance(op, Set | Lock | Unlock):
        words |= {"Value": b64encode(op.value).decode(), "Flags": op.flags}
    return {**words, "Key": op.key}


def judge(ops: Sequence[Op], status: int, body: bytes) -> dict[str, int]:
    """What an answer with status 200 or 409 means: the new ModifyIndex of each key written (not of deleted ones).

    Raises ``Conflict``, ``Denied``, or ``OutcomeUnknown`` when the answer cannot be read.
    """
    try:
        answer = read_json(body, _Answer)
    except msgspec.DecodeError as error:
        raise OutcomeUnknown(f"{status} with an answer that cannot be read: {error}") from error
    if answer.errors or status != 200:
        raise _refusal(ops, answer.errors or [], status)
    # Checks answer with the index of their key as well; of a key in several operations the last index is the highest.
    keys = {op.key for op in ops if isinstance(op, Set | Lock | Unlock)}
    indexes: dict[str, int] = {}
    for result in answer.results or ():
        if result.KV is not None and result.KV.key in keys:
            indexes[result.KV.key] = max(result.KV.modify_index, indexes.get(result.KV.key, 0))
    return indexes


def _refusal(ops: Sequence[Op], errors: list[_Error], status: int) -> StoreError:
    if not errors:
        return OutcomeUnknown(f"{status} without a word why")
    failed = tuple(
        Failed(
            error.op_index,
            reason(ops[error.op_index] if 0 <= error.op_index < len(ops) else None, error.what),
            error.what,
        )
        for error in errors
    )
    if all(one.reason == "denied" for one in failed):
        return Denied("; ".join(f"op {one.index} ({ops[one.index].key}): {one.what}" for one in failed), failed)
    return Conflict(failed)


def reason(op: Op | None, what: str) -> str:
    """The reason of :class:`Failed` for the sentence with which Consul refused ``op``."""
    # Judged by operation and by the ends of the sentence: its middle is a key, which may contain anything.
    if what.startswith("Permission denied"):
        return "denied"
    match op:
        case Set() | Delete() if what.endswith("index is stale"):
            return "cas"
        case CheckIndex() if what.startswith("failed index check"):
            return "cas"
        case CheckSession() if what.startswith("failed session check"):
            return "session"
        case CheckIndex() | CheckSession() if what.endswith("doesn't exist"):
            return "missing"
        case CheckNotExists() if what.endswith("exists"):
            return "exists"
        case Lock() if what.endswith(("lock is already held", "due to lock delay")):
            return "locked"
        case Lock() if what.startswith(("invalid session", "failed session lookup", "missing session")):
            return "session"
        case Unlock() if what.startswith(("failed to unlock", "missing session")):
            return "session"
    return "other"

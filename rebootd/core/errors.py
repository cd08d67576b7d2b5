"""The one error tree of rebootd.

Operating errors (``RebootdError``) are expected and are handled where they can be.
Programming errors are ordinary Python exceptions and are never caught broadly.
"""

from __future__ import annotations

from dataclasses import dataclass


class RebootdError(Exception):
    """The root of every error that operating rebootd can meet."""


class InvalidInput(RebootdError):
    """Bad input: names the field, the value and what would be accepted. Exit code 2, HTTP 400."""

    def __init__(self, field: str, value: object, accepted: str) -> None:
        self.field = field
        self.value = value
        self.accepted = accepted
        super().__init__(f"{field}: {value!r} is not accepted; expected {accepted}")


class NotFound(RebootdError):
    """What was named does not exist. Exit code 1, HTTP 404."""


class Refused(RebootdError):
    """A well-formed request that the present state forbids. Exit code 1, HTTP 409."""


class Unauthorized(RebootdError):
    """The caller did not prove who it is. Exit code 1, HTTP 401."""


class Forbidden(RebootdError):
    """The caller proved who it is, and may not do this. Exit code 1, HTTP 403."""


class NotLeader(RebootdError):
    """This daemon does not lead (any more); nothing was done. HTTP 307 or 503."""


class FenceLost(NotLeader):
    """A write of ours was refused because we no longer hold the leader key, or the writer was closed.

    Nothing that is sent from now on lands; what was sent before and got no answer may have landed.
    """


class StoreError(RebootdError):
    """The root of what the store can answer instead of success."""


class Unreachable(StoreError):
    """A read or a session call got no answer: nothing is known and nothing was changed by it."""


class OutcomeUnknown(StoreError):
    """A write was sent and its outcome is not known: it may land later, or never."""


class Denied(StoreError):
    """The store refused for lack of permission (ACL). Blocked and alarming, not deposed.

    ``failed`` tells which operations of a transaction it was, where that is known.
    """

    def __init__(self, what: str = "Permission denied", failed: tuple[Failed, ...] = ()) -> None:
        self.failed = failed
        super().__init__(what)


class TooLarge(StoreError):
    """The body or the number of operations exceeds what the store accepts (Consul: 413)."""


class SessionLost(StoreError):
    """The session named does not exist (any more)."""


@dataclass(frozen=True)
class Failed:
    """One operation of a refused transaction.

    ``index`` is its position in the transaction, ``reason`` one of ``session`` (check-session,
    lock or unlock with a session that is gone or not the holder), ``cas`` (stale index),
    ``exists`` (check-not-exists on a key that exists), ``missing`` (the key is absent),
    ``locked`` (lock held by another, or lock-delay), ``denied`` (ACL) and ``other``.
    ``what`` is the store's own sentence.
    """

    index: int
    reason: str
    what: str


class Conflict(StoreError):
    """A transaction was definitely refused as a whole; ``failed`` tells which operations and why.

    Consul reports lost fence, CAS conflict, lock-delay and denied alike as HTTP 409; they are
    told apart by OpIndex and What (measured on Consul 1.8.7).
    """

    def __init__(self, failed: tuple[Failed, ...]) -> None:
        self.failed = failed
        super().__init__("; ".join(f"op {f.index}: {f.what}" for f in failed) or "refused")


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """One leaf of a group of errors, for a caller that can tell of only one."""
    inner = group.exceptions[0]
    return first_of(inner) if isinstance(inner, BaseExceptionGroup) else inner

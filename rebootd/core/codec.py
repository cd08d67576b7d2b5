"""JSON from outside: one way to read it, with one error."""

from __future__ import annotations

from typing import TypeVar

import msgspec

T = TypeVar("T")


def read_json(data: bytes | str | msgspec.Raw, kind: type[T]) -> T:
    """The value in ``data``. Raises ``msgspec.MsgspecError`` and nothing else.

    Bytes that are no text and brackets without end are none of msgspec's own errors.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error

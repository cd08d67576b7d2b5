"""What a planted bug is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager


@dataclass(frozen=True)
class Planted:
    """``patches`` makes the context managers that plant it; ``profile`` is where it shows soonest ("": anywhere)."""

    name: str
    what: str
    patches: Callable[[], Iterable[AbstractContextManager[Any]]]
    profile: str = ""


def put(where: Any, name: str, value: Any) -> Callable[[], list[AbstractContextManager[Any]]]:
    """One attribute is another."""
    return lambda: [mock.patch.object(where, name, value)]

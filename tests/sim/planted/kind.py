"""What a planted bug is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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

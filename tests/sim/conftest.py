"""What a simulated run in this process leaves behind is put back after each file."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
import structlog

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True, scope="module")
def logs_as_before() -> Iterator[None]:
    """A run silences the logs, and each logger remembers that for good: other tests read what is logged."""
    yield
    structlog.reset_defaults()
    for name, module in list(sys.modules.items()):
        log: Any = getattr(module, "log", None) if name.startswith("rebootd.") else None
        # A logger that has cached how it logs has done so in an attribute of its own.
        if "bind" in getattr(log, "__dict__", {}):
            del log.bind

"""Times as sentences show them."""

from __future__ import annotations

from datetime import UTC, datetime


def utc(at: float) -> str:
    """A time as ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")

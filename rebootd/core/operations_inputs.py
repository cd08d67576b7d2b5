"""What every operator's request carries (who and why), and the times that people type."""

from __future__ import annotations

import difflib
import re
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from rebootd.core.errors import InvalidInput
from rebootd.core.inputs import DAY, parse_text

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_REASON = 500
YEAR = 366 * DAY
MOMENT = "'now', an ISO 8601 time with its timezone (2026-03-01T22:00:00+01:00) or seconds since 1970, within a year"

_UNIX = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,9})?")


class Because(msgspec.Struct, frozen=True):
    """Who asks for a change and why. Both may be empty, and both end up in the events, with the request's id."""

    by: str = ""
    reason: str = ""
    request: str = ""

    def checked(self) -> Because:
        """Itself, trimmed. Raises InvalidInput for text that is too long or not printable."""
        return Because(
            by=parse_text(self.by, "by", maximum=128),
            reason=parse_text(self.reason, "reason", maximum=MAX_REASON),
            request=self.request,
        )

    def sentence(self) -> str:
        """``by alice: disk swap``, or as much of it as is known."""
        who = f"by {self.by}" if self.by else "by an operator"
        return f"{who}: {self.reason}" if self.reason else who


def parse_moment(value: object, field: str, now: float) -> float:
    """Seconds since 1970, from None, ``""`` or ``"now"``, from ISO 8601 with a timezone, or from a number."""
    if value is None or (isinstance(value, str) and value.strip().lower() in {"", "now"}):
        return now
    seconds = _seconds(value, field)
    if not now - YEAR <= seconds <= now + YEAR:
        raise InvalidInput(field, value, MOMENT)
    return seconds


def _seconds(value: object, field: str) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e12:
        return float(value)
    text = value.strip() if isinstance(value, str) else ""
    if _UNIX.fullmatch(text):
        return float(text)
    try:
        parsed = datetime.fromisoformat(text)
        if parsed.tzinfo is not None:
            return parsed.timestamp()
    except (ValueError, OverflowError):
        raise InvalidInput(field, value, MOMENT) from None
    raise InvalidInput(field, value, f"{MOMENT}; this one names no timezone")


def alike(wanted: str, known: Iterable[str]) -> str:
    """``; nearest: a, b`` for a message, or ``""`` when nothing known is near."""
    near = difflib.get_close_matches(wanted[:128], sorted(set(known)), n=3, cutoff=0.5)
    return f"; nearest: {', '.join(near)}" if near else ""

"""Amounts: how many of something, as a number or as per cent of a total."""

from __future__ import annotations

import re

import msgspec

from rebootd.core.inputs import bad_input

MAX_AMOUNT = 1_000_000
_AMOUNT = re.compile(r"([0-9]{1,7})\s*(%?)")


class Amount(msgspec.Struct, frozen=True):
    """``value`` machines, or ``value`` per cent of them. 0 (or 0%) means never."""

    value: int
    percent: bool = False

    def of(self, total: int) -> int:
        """How many of ``total``. Per cents round down, but to at least 1 unless written 0."""
        if not self.percent:
            return self.value
        return max(1, total * self.value // 100) if self.value else 0

    def __str__(self) -> str:
        """The text that :func:`parse_amount` reads back as the same amount."""
        return f"{self.value}%" if self.percent else str(self.value)


def parse_amount(value: object, field: str) -> Amount:
    """``2``, ``"2"`` or ``"25%"``. Raises InvalidInput for all else, and beyond 100%."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**9 else value
    match = _AMOUNT.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is not None:
        number, percent = int(match[1]), match[2] == "%"
        if number <= (100 if percent else MAX_AMOUNT):
            return Amount(number, percent)
    raise bad_input(field, value, f"a number from 0 to {MAX_AMOUNT} such as 2, or per cent from 0% to 100%")

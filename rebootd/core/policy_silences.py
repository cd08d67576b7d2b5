"""The policy's section ``silences``: where Alertmanager is, and which alerts are a machine's own."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from rebootd.core.inputs import Fields, bad_input
from rebootd.core.policy_gates import parse_address, parse_matchers

FIELDS = ("alertmanager", "matchers")
DEFAULT = ('instance=~"{name}(:[0-9]+)?"',)
_PARTS = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(=~|!~|!=|=)"(.*)"', re.DOTALL)


class Matcher(msgspec.Struct, frozen=True):
    """One matcher of a silence, in Alertmanager's words. ``value`` is a regular expression where ``regex`` says so."""

    name: str
    value: str
    regex: bool = False
    equal: bool = True


class Silences(msgspec.Struct, frozen=True):
    """``address`` of Alertmanager, ``""``: no silences. In ``matchers``, ``{name}`` stands for the machine's name and
    ``{rack}`` for its rack (escaped where the matcher is a regular expression).
    """

    address: str = ""
    matchers: tuple[str, ...] = DEFAULT

    def of(self, name: str, rack: str) -> tuple[Matcher, ...]:
        """The matchers of one machine."""
        return tuple(_filled(text, name, rack) for text in self.matchers)


def parse_silences(fields: Fields) -> Silences:
    """The section's values. Raises InvalidInput."""
    address = fields.take("alertmanager", _address, "")
    return Silences(address, fields.take("matchers", _matchers, DEFAULT))


def _address(value: object, field: str) -> str:
    return "" if value == "" else parse_address(value, field)


def _matchers(value: object, field: str) -> tuple[str, ...]:
    found = parse_matchers(value, field)
    named = [text for text in found if "{name}" in text and not text.partition('"')[0].endswith(("!=", "!~"))]
    if not named:
        raise bad_input(field, value, "a matcher with {name}: else every machine's alerts were silenced at once")
    return found


def _filled(text: str, name: str, rack: str) -> Matcher:
    match = _PARTS.fullmatch(text)
    if match is None:
        raise ValueError(f"{text} is no matcher")
    regex = "~" in match[2]
    value = match[3].replace('\\"', '"').replace("\\\\", "\\")
    for word, meant in (("{name}", name), ("{rack}", rack)):
        value = value.replace(word, re.escape(meant) if regex else meant)
    return Matcher(match[1], value, regex, match[2].startswith("="))


def render_silences(silences: Silences) -> dict[str, Any]:
    """As the file lays it out."""
    return {"alertmanager": silences.address, "matchers": ", ".join(silences.matchers)}

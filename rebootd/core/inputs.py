"""How input from people, files and the wire becomes values, or an InvalidInput that says why not.

Every function takes the value as it came and ``field``, the dotted path that a person can find it
by; it returns the parsed value or raises :class:`~rebootd.core.errors.InvalidInput`, never
anything else. Numbers may come as text, since YAML files and command lines have nothing else.
"""

from __future__ import annotations

import difflib
import math
import re
import reprlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

from rebootd.core.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")

MAX_NAME = 128
MAX_TOKEN = 128
MAX_TEXT = 1000
MAX_SHOWN = 200
"""How much of a refused value an error repeats."""
DAY = 86400.0
MAX_DURATION = 366 * DAY
"""The longest duration (seconds) that is accepted anywhere unless a caller sets less."""

_NAME = re.compile(r"[A-Za-z0-9._-]+")
_TOKEN = re.compile(r"[A-Za-z0-9._:@/+=-]+")
_NUMBER = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,9})?")
_DURATION = re.compile(
    r"(?:([0-9]{1,9})d)?(?:([0-9]{1,9})h)?(?:([0-9]{1,9})m(?!s))?"
    r"(?:([0-9]{1,9}(?:\.[0-9]{1,3})?)s)?(?:([0-9]{1,9})ms)?"
)
_UNITS_MS = (86_400_000, 3_600_000, 60_000, 1000, 1)
_UNIT_NAMES = ("d", "h", "m", "s", "ms")


def bad_input(field: str, value: object, accepted: str) -> InvalidInput:
    """The error for a value that came from outside: cut to a length that fits a log line.

    It can always be encoded, whatever the value was (text with lone surrogates cannot, and the
    repr of a number of thousands of digits raises).
    """
    return InvalidInput(field, _shown(value), accepted)


def _shown(value: object) -> object:
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, int):
        return value if abs(value) < 10**30 else "a number of more than 30 digits"
    if not isinstance(value, str):
        return _REPR.repr(value)
    text = value.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that ``word`` was most likely meant to be, or None."""
    found = difflib.get_close_matches(word[:MAX_NAME], list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def join(path: str, name: str) -> str:
    """The dotted path of ``name`` inside ``path`` (``""`` is the top)."""
    return f"{path}.{name}" if path else name


def parse_duration(value: object, field: str, *, minimum: float = 0.0, maximum: float = MAX_DURATION) -> float:
    """Seconds from ``"90s"``, ``"10m"``, ``"1h30m"``, ``"2d"``, ``"250ms"``, or a bare number of seconds.

    Kept to whole milliseconds, so that :func:`format_duration` gives the same value back.
    """
    accepted = f"a duration such as 90s, 10m, 1h30m or 2d, {_range(minimum, maximum)}"
    milliseconds = _milliseconds(value)
    if milliseconds is None:
        raise bad_input(field, value, accepted)
    seconds = milliseconds / 1000
    if not minimum <= seconds <= maximum:
        raise bad_input(field, value, accepted)
    return seconds


def _range(minimum: float, maximum: float) -> str:
    return f"from {format_duration(minimum)} to {format_duration(maximum)}"


def _milliseconds(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if isinstance(value, str):
        text = value.strip()
        if _NUMBER.fullmatch(text):
            return _whole_milliseconds(float(text))
        match = _DURATION.fullmatch(text)
        if match is None or not text:
            return None
        parts = zip(match.groups(default="0"), _UNITS_MS, strict=True)
        return sum(round(float(part) * unit) for part, unit in parts)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if not 0 <= value <= 10 * MAX_DURATION:
        return None
    return _whole_milliseconds(float(value))


def _whole_milliseconds(seconds: float) -> int | None:
    """Whole milliseconds; None for what would round a wish greater than zero down to nothing."""
    rounded = round(seconds * 1000)
    return None if rounded == 0 and seconds > 0 else rounded


def format_duration(seconds: float) -> str:
    """Text that :func:`parse_duration` reads back as the same value: ``5400.0`` -> ``"1h30m"``."""
    rest = round(seconds * 1000)
    parts = []
    for name, unit in zip(_UNIT_NAMES, _UNITS_MS, strict=True):
        count, rest = divmod(rest, unit)
        if count:
            parts.append(f"{count}{name}")
    return "".join(parts) or "0s"


def counted(number: int, noun: str) -> str:
    """``1 machine``, ``3 machines``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def parse_name(value: object, field: str) -> str:
    """A name of a machine, rack, cycle, window or limit: ``[A-Za-z0-9._-]+``, at most 128 characters.

    Names that consist of dots alone are refused: they become parts of keys and URLs, where ``..``
    climbs.
    """
    if not isinstance(value, str) or len(value) > MAX_NAME or not _NAME.fullmatch(value) or not value.strip("."):
        raise bad_input(field, value, f"1 to {MAX_NAME} characters of A-Z a-z 0-9 . _ - (not dots alone)")
    return value


def rack_name(value: str) -> str:
    """``value`` if it is a name, else ``""``: a rack that nobody could hold or unlock is as good as unknown."""
    return value if len(value) <= MAX_NAME and _NAME.fullmatch(value) and value.strip(".") else ""


def parse_token(value: object, field: str) -> str:
    """An opaque identifier (boot_id, machine-id, nonce, directive id): printable ASCII without spaces."""
    if not isinstance(value, str) or len(value) > MAX_TOKEN or not _TOKEN.fullmatch(value):
        raise bad_input(field, value, f"1 to {MAX_TOKEN} characters of A-Z a-z 0-9 . _ : @ / + = -")
    return value


def parse_text(value: object, field: str, *, required: bool = False, maximum: int = MAX_TEXT) -> str:
    """Free text such as a reason: one line without control characters, outer spaces removed."""
    text = value.strip() if isinstance(value, str) else None
    if text is None or len(text) > maximum or not text.isprintable() or (required and not text):
        low = 1 if required else 0
        raise bad_input(field, value, f"one line of {low} to {maximum} printable characters")
    return text


def parse_count(value: object, field: str, *, minimum: int = 0, maximum: int = 1_000_000) -> int:
    """A whole number, as such or as text."""
    number: int | None = None
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, str) and re.fullmatch(r"[0-9]{1,12}", value.strip()):
        number = int(value)
    if number is None or not minimum <= number <= maximum:
        raise bad_input(field, value, f"a whole number from {minimum} to {maximum}")
    return number


def parse_share(value: object, field: str) -> float:
    """A share of something as a fraction: ``"20%"`` or ``0.2``; from 1% to 100%, kept to 0.01%."""
    fraction: float | None = None
    if isinstance(value, str):
        text = value.strip()
        digits = text.removesuffix("%").strip()
        if _NUMBER.fullmatch(digits):
            fraction = float(digits) / 100 if text.endswith("%") else float(digits)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        fraction = value if 0 <= value <= 1 else None
    if fraction is None or not 0.01 <= round(fraction, 4) <= 1:
        raise bad_input(field, value, "a share from 1% to 100%")
    return round(fraction, 4)


def format_share(fraction: float) -> str:
    """Text that :func:`parse_share` reads back as the same value: ``0.2`` -> ``"20%"``."""
    return f"{round(fraction * 100, 2):g}%"


def parse_flag(value: object, field: str) -> bool:
    """A boolean, as such or as the text ``true`` or ``false``."""
    if isinstance(value, bool):
        return value
    flag = {"true": True, "false": False}.get(value) if isinstance(value, str) else None
    if flag is None:
        raise bad_input(field, value, "true or false")
    return flag


def parse_choice(value: object, field: str, choices: Iterable[str]) -> str:
    """One of ``choices``; the error names the nearest one."""
    known = list(choices)
    if isinstance(value, str) and value in known:
        return str(value)
    raise bad_input(field, value, f"one of {', '.join(known)}{_hint(value, known)}")


def _hint(word: object, known: Iterable[str]) -> str:
    near = nearest(word, known) if isinstance(word, str) else None
    return f" (did you mean {near}?)" if near else ""


QUOTES = " (within { }, a value with commas needs quotes)"
"""``{selector: role in (a,b)}`` is a mapping with the keys ``selector`` and ``b)``."""


class Fields:
    """A strict reader of one mapping: every field must be known, and is taken by its own parser.

    ``value`` None or ``""`` (a YAML section with nothing below it) reads as an empty mapping.
    Raises InvalidInput at once for anything else that is no mapping, and for the first unknown
    field, naming the nearest known one.
    """

    def __init__(self, value: object, path: str, known: Iterable[str]) -> None:
        self.path = path
        names = list(known)
        if value is None or value == "":
            value = {}
        if not isinstance(value, Mapping):
            raise bad_input(path or "document", value, f"a mapping with the fields {', '.join(names)}")
        self._given: Mapping[object, object] = value
        for key in value:
            if key not in names:
                plain = isinstance(key, str) and key.isprintable() and key.strip()
                where = join(path, key[:MAX_NAME] if plain else _REPR.repr(key))
                hint = _hint(key, names) or (QUOTES if value[key] in ("", None) else "")
                raise bad_input(where, value[key], f"a known field: {', '.join(names)}{hint}")

    def take(self, name: str, parse: Callable[[object, str], T], default: T) -> T:
        """The field parsed by ``parse(value, path)``, or ``default`` when it is not given."""
        if name not in self._given:
            return default
        return parse(self._given[name], join(self.path, name))

    def need(self, name: str, parse: Callable[[object, str], T]) -> T:
        """The field parsed by ``parse(value, path)``; InvalidInput when it is not given."""
        if name not in self._given:
            raise bad_input(join(self.path, name), None, f"the field {name}, which must be given")
        return parse(self._given[name], join(self.path, name))

    def section(self, name: str, known: Iterable[str]) -> Fields:
        """The mapping below ``name``, empty when it is not given."""
        return Fields(self._given.get(name), join(self.path, name), known)

    def items(self, name: str) -> list[tuple[str, object]]:
        """The list below ``name`` as (dotted path, value) pairs, empty when it is not given."""
        value = self._given.get(name)
        where = join(self.path, name)
        if value is None or value == "":
            return []
        if not isinstance(value, (list, tuple)):
            raise bad_input(where, value, "a list")
        return [(f"{where}[{index}]", item) for index, item in enumerate(value)]

"""Selectors: which machines are meant, as text that people write and a predicate that is fast.

Terms are joined by commas and must all hold: ``*`` (every machine), ``key=value``, ``key!=value``,
``key in (a,b)``, ``key notin (a,b)``, ``key`` (present), ``!key`` (absent). Values may be globs
(``web-*``, ``r?``, ``r[1-4]``). The keys ``name``, ``rack``, ``chassis``, ``kernel`` and ``state`` are
the machine's own, and absent when empty; all others are labels, and ``label.<key>`` is a label
whatever its name. As in Kubernetes, ``!=`` and ``notin`` also hold for a machine without the key.
"""

from __future__ import annotations

import fnmatch
import re
from functools import lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from rebootd.core.inputs import bad_input, nearest
from rebootd.core.model import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebootd.core.model import Machine

    Predicate = Callable[[Machine], bool]
    Getter = Callable[[Machine], str | None]

OWN_KEYS = ("name", "rack", "chassis", "kernel", "state")
MAX_SELECTOR = 16_384
GRAMMAR = (
    "terms joined by commas: * (all), key=value, key!=value, key in (a,b), key notin (a,b), key (present), "
    "!key (absent); values may be globs such as web-*"
)

_KEY = r"(?!label\.(?![A-Za-z0-9]))[A-Za-z0-9][A-Za-z0-9._/-]{0,127}"
_PRESENT = re.compile(rf"(!?)\s*({_KEY})")
_EQUALS = re.compile(rf"({_KEY})\s*(!?=)\s*(\S*)")
_AMONG = re.compile(rf"({_KEY})\s+(in|notin)\s*\(([^()]*)\)")
_VALUE = re.compile(r"[A-Za-z0-9._:+~@%/*?\[\]!-]{1,255}")
_WILD = re.compile(r"[*?\[]")


class Selector:
    """A parsed selector. Equal to another one with the same text; hashable; never changed.

    ``text`` is what was written, ``matches(machine)`` the predicate.
    """

    __slots__ = ("_keys", "matches", "text")

    text: str
    matches: Predicate

    def __init__(self, text: str, matches: Predicate, keys: frozenset[str]) -> None:
        self.text = text
        self.matches = matches
        self._keys = keys

    def keys(self) -> frozenset[str]:
        """What it looks at: own keys by name, labels as ``label.<key>``."""
        return self._keys

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Selector) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Selector({self.text!r})"


def parse_selector(text: str, field: str = "selector") -> Selector:
    """The selector that ``text`` says. Raises InvalidInput, also for empty text (``*`` selects all)."""
    if not text.strip():
        raise bad_input(field, text, f"{GRAMMAR}. To select every machine, write *")
    if len(text) > MAX_SELECTOR:
        raise bad_input(field, text, f"at most {MAX_SELECTOR} characters")
    return _parse(text.strip(), field)


@lru_cache(maxsize=1024)
def _parse(text: str, field: str) -> Selector:
    predicates: list[Predicate] = []
    keys: set[str] = set()
    for term in _split(text):
        key, predicate = _parse_term(term, text, field)
        if key:
            keys.add(key)
        predicates.append(predicate)
    return Selector(text, _all_of(predicates), frozenset(keys))


class Term(NamedTuple):
    """One term: its key (``label.`` left out), the values it names (none: only whether there is one), and ``!``."""

    key: str
    values: tuple[str, ...]
    negated: bool

    def fits(self, value: str) -> bool:
        """Whether one of its values is this one, or a glob that matches it."""
        return any(fnmatch.fnmatchcase(value, wanted) for wanted in self.values)


def terms_of(selector: Selector) -> list[Term]:
    """The terms of a selector but for ``*``, for those who explain why it matches nothing."""
    found = []
    for text in _split(selector.text):
        if present := _PRESENT.fullmatch(text):
            term = Term(present[2], (), bool(present[1]))
        elif among := _AMONG.fullmatch(text):
            term = Term(among[1], tuple(value.strip() for value in among[3].split(",")), among[2] == "notin")
        elif equals := _EQUALS.fullmatch(text):
            term = Term(equals[1], (equals[3],), equals[2] == "!=")
        else:
            continue
        found.append(term._replace(key=term.key.removeprefix("label.")))
    return found


def _split(text: str) -> list[str]:
    """The terms: cut at commas that are outside parentheses."""
    terms, depth, begin = [], 0, 0
    for index, char in enumerate(text):
        if char == "(":
            depth += 1
        elif char == ")":
            depth -= 1
        elif char == "," and depth <= 0:
            terms.append(text[begin:index].strip())
            begin = index + 1
    return [*terms, text[begin:].strip()]


def _parse_term(term: str, text: str, field: str) -> tuple[str, Predicate]:
    """The key that a term looks at (``""`` for ``*``) and its predicate."""
    if term == "*":
        return "", lambda _machine: True
    if present := _PRESENT.fullmatch(term):
        name, get = _getter(present[2])
        return name, (lambda m: get(m) is None) if present[1] else (lambda m: get(m) is not None)
    if among := _AMONG.fullmatch(term):
        key, wanted, negated = among[1], [value.strip() for value in among[3].split(",")], among[2] == "notin"
    elif equals := _EQUALS.fullmatch(term):
        key, wanted, negated = equals[1], [equals[3]], equals[2] == "!="
    else:
        raise bad_input(field, text, f"{GRAMMAR} (in the term {term[:80]!r})")
    for value in wanted:
        _check_value(key, value, text, field)
    name, get = _getter(key)
    if name not in OWN_KEYS and not any(_WILD.search(value) for value in wanted):
        return name, _label_test(name.removeprefix("label."), wanted, negated)
    return name, _compile(get, wanted, negated)


def _check_value(key: str, value: str, text: str, field: str) -> None:
    if not _VALUE.fullmatch(value):
        accepted = "letters, digits, . _ : + ~ @ % / - and globs; for an absent key write !key"
        raise bad_input(field, text, f"in place of the value {value[:80]!r}: {accepted}")
    states = [state.value for state in State]
    if key == "state" and not fnmatch.filter(states, value):
        # It would match nothing, and look like a quiet fleet.
        near = nearest(value, states)
        hint = f" (did you mean {near}?)" if near else ""
        raise bad_input(field, text, f"a state in place of {value[:80]!r}: {', '.join(states)}{hint}")


def _getter(key: str) -> tuple[str, Getter]:
    """The normal name of a key and what reads it from a machine (None: absent)."""
    if key in OWN_KEYS:
        own = attrgetter(key)
        return key, lambda m: own(m) or None
    label = key.removeprefix("label.")
    return f"label.{label}", lambda m: m.labels.get(label)


def _compile(get: Getter, wanted: list[str], negated: bool) -> Predicate:
    if len(wanted) == 1 and not _WILD.search(wanted[0]):
        (only,) = wanted
        return (lambda m: get(m) != only) if negated else (lambda m: get(m) == only)
    fits = _value_test(wanted)
    return (lambda m: not fits(get(m))) if negated else (lambda m: fits(get(m)))


def _label_test(label: str, wanted: list[str], negated: bool) -> Predicate:
    """The commonest terms, without a call between: limits are counted over the whole fleet in every decision."""
    if len(wanted) == 1:
        (only,) = wanted
        return (lambda m: m.labels.get(label) != only) if negated else (lambda m: m.labels.get(label) == only)
    among = frozenset(wanted)
    return (lambda m: m.labels.get(label) not in among) if negated else (lambda m: m.labels.get(label) in among)


def _value_test(wanted: list[str]) -> Callable[[str | None], bool]:
    if len(wanted) == 1 and wanted[0].endswith("*") and not _WILD.search(wanted[0][:-1]):
        prefix = wanted[0][:-1]
        return lambda value: value is not None and value.startswith(prefix)
    exact = frozenset(value for value in wanted if not _WILD.search(value))
    globs = [re.compile(fnmatch.translate(value)).match for value in wanted if value not in exact]
    if not globs:
        return exact.__contains__
    if len(globs) == 1 and not exact:
        (match,) = globs
        return lambda value: value is not None and match(value) is not None
    return lambda value: value is not None and (value in exact or any(match(value) for match in globs))


def _all_of(predicates: list[Predicate]) -> Predicate:
    if len(predicates) == 1:
        return predicates[0]
    several = tuple(predicates)

    def every(machine: Machine) -> bool:
        for predicate in several:  # noqa: SIM110 - all() over a generator takes twice as long
            if not predicate(machine):
                return False
        return True

    return every

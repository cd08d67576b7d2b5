"""The policy's sections ``gates``, ``quorums`` and ``forget_after``: what they say, parsed, written and checked."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

import msgspec

from rebootd.core.amounts import Amount, parse_amount
from rebootd.core.inputs import (
    DAY,
    Fields,
    bad_input,
    format_duration,
    parse_choice,
    parse_duration,
    parse_flag,
    parse_name,
    parse_text,
)
from rebootd.core.selectors import Selector, parse_selector

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_AGE = 60.0
MAX_BLOCK = 6 * 3600.0
FORGET_AFTER = DAY
COMMON = ("name", "kind", "covers", "max_age", "max_block")

_COMPARISON = re.compile(r"(<=|>=|==|!=|<|>)\s*(-?[0-9]{1,15}(?:\.[0-9]{1,9})?(?:[eE][+-]?[0-9]{1,2})?)")
_MATCHER = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"')
_WORD = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Comparison(msgspec.Struct, frozen=True):
    """What a number is held against: ``< 5``."""

    operator: str
    number: float

    def holds(self, value: float) -> bool:
        """Whether ``value`` satisfies it. Never, for a value that is no number."""
        tests: dict[str, Callable[[float, float], bool]] = {
            "<": float.__lt__,
            "<=": float.__le__,
            ">": float.__gt__,
            ">=": float.__ge__,
            "==": float.__eq__,
            "!=": float.__ne__,
        }
        return not math.isnan(value) and tests[self.operator](value, self.number)

    def __str__(self) -> str:
        return f"{self.operator} {self.number:.15g}"


class ConsulService(msgspec.Struct, frozen=True, kw_only=True):
    """At least ``minimum`` passing instances of a Consul service are left without the machine (per cents round up)."""

    kind: ClassVar[str] = "consul-service"
    service: str
    minimum: Amount
    tag: str = ""


class ConsulQuorum(msgspec.Struct, frozen=True):
    """Every Consul server is healthy, and one more may fail when a server is to go."""

    kind: ClassVar[str] = "consul-quorum"


class NomadQuorum(msgspec.Struct, frozen=True, kw_only=True):
    """The same for Nomad's servers, through its HTTP API at ``address``."""

    kind: ClassVar[str] = "nomad-quorum"
    address: str


class PrometheusQuery(msgspec.Struct, frozen=True, kw_only=True):
    """The instant query's value satisfies ``holds_when``: every series of it, or (``series: any``) at least one."""

    kind: ClassVar[str] = "prometheus"
    address: str
    query: str
    holds_when: Comparison
    every: bool = True


class NoAlerts(msgspec.Struct, frozen=True, kw_only=True):
    """No alert that matches ``matchers`` (all of them) fires, silenced and inhibited ones aside."""

    kind: ClassVar[str] = "alertmanager"
    address: str
    matchers: tuple[str, ...]


Test = ConsulService | ConsulQuorum | NomadQuorum | PrometheusQuery | NoAlerts


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """A condition that must hold before one more machine goes out.

    ``covers`` None is the kind's own choice: the machines that run an instance for a service, else all. ``max_age`` is
    how old a reading may be, ``max_block`` after how long a shut gate alarms (both seconds).
    """

    name: str
    test: Test
    covers: Selector | None = None
    max_age: float = MAX_AGE
    max_block: float = MAX_BLOCK


class Quorum(msgspec.Struct, frozen=True, kw_only=True):
    """A group of machines that never loses more than one member by our hand."""

    name: str
    selector: Selector
    allow_outage: bool = False


# --------------------------------------------------------------------------------------------------------- reading


def parse_gates(items: list[tuple[str, object]]) -> tuple[Gate, ...]:
    """The gates of (dotted path, value) pairs. Raises InvalidInput."""
    gates: list[Gate] = []
    for path, item in items:
        gate = _gate(path, item)
        if gate.name in {g.name for g in gates}:
            raise bad_input(f"{path}.name", gate.name, "a name that no other gate has")
        gates.append(gate)
    return tuple(gates)


def parse_quorums(items: list[tuple[str, object]]) -> tuple[Quorum, ...]:
    """The quorum groups. Two groups of the same machines would be one with two answers: refused."""
    groups: list[Quorum] = []
    for path, item in items:
        fields = Fields(item, path, ("name", "selector", "allow_outage"))
        group = Quorum(
            name=fields.need("name", parse_name),
            selector=fields.need("selector", _selector),
            allow_outage=fields.take("allow_outage", parse_flag, False),
        )
        for other in groups:
            if other.name == group.name:
                raise bad_input(f"{path}.name", group.name, "a name that no other quorum group has")
            if _normal(other.selector) == _normal(group.selector):
                field, value = "selector", str(group.selector)
                if other.allow_outage != group.allow_outage:
                    field, value = "allow_outage", str(group.allow_outage).lower()
                raise bad_input(
                    f"{path}.{field}", value, f"no second group of the same machines: {other.name} has that selector"
                )
        groups.append(group)
    return tuple(groups)


def parse_forget_after(value: object, field: str) -> float:
    """Seconds after which a machine that Consul's catalog no longer has is forgotten; at least a minute."""
    return parse_duration(value, field, minimum=60.0)


def _normal(selector: Selector) -> frozenset[str]:
    return frozenset(re.sub(r"\s+", "", term) for term in re.split(r",(?![^(]*\))", selector.text))


def _selector(value: object, field: str) -> Selector:
    if not isinstance(value, str):
        raise bad_input(field, value, "a selector as text")
    return parse_selector(value, field)


def _gate(path: str, item: object) -> Gate:
    kind = Fields(item, path, _fields_of(item)).need("kind", partial(parse_choice, choices=KINDS))
    own, parse = KINDS[kind]
    fields = Fields(item, path, (*COMMON, *own))
    span = partial(parse_duration, minimum=1.0, maximum=30 * DAY)
    return Gate(
        name=fields.need("name", parse_name),
        test=parse(fields),
        covers=fields.take("covers", _selector, None),
        max_age=fields.take("max_age", partial(span, maximum=DAY), MAX_AGE),
        max_block=fields.take("max_block", span, MAX_BLOCK),
    )


def _fields_of(item: object) -> tuple[str, ...]:
    """Every field that any kind has, so that a bad ``kind`` is named before fields that only it would explain."""
    every = {*COMMON, *(name for own, _ in KINDS.values() for name in own)}
    return tuple(every | {key for key in item if isinstance(key, str)}) if isinstance(item, dict) else tuple(every)


def _consul_service(fields: Fields) -> ConsulService:
    return ConsulService(
        service=fields.need("service", _word),
        minimum=fields.need("minimum", _minimum),
        tag=fields.take("tag", _word, ""),
    )


def _word(value: object, field: str) -> str:
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise bad_input(field, value, "1 to 128 characters of A-Z a-z 0-9 . _ -")
    return value


def _minimum(value: object, field: str) -> Amount:
    amount = parse_amount(value, field)
    if amount.value == 0:
        raise bad_input(field, value, "at least 1 or 1%: a minimum of nothing holds nobody back")
    return amount


def _consul_quorum(_fields: Fields) -> ConsulQuorum:
    return ConsulQuorum()


def _nomad_quorum(fields: Fields) -> NomadQuorum:
    return NomadQuorum(address=fields.need("address", parse_address))


def _prometheus(fields: Fields) -> PrometheusQuery:
    return PrometheusQuery(
        address=fields.need("address", parse_address),
        query=fields.need("query", partial(parse_text, required=True, maximum=4000)),
        holds_when=fields.need("holds_when", parse_comparison),
        every=fields.take("series", partial(parse_choice, choices=("all", "any")), "all") == "all",
    )


def _alertmanager(fields: Fields) -> NoAlerts:
    return NoAlerts(
        address=fields.need("address", parse_address),
        matchers=fields.need("matchers", parse_matchers),
    )


def parse_comparison(value: object, field: str) -> Comparison:
    """``< 5``, ``>= 0.99``, ``== 0``. Raises InvalidInput."""
    match = _COMPARISON.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or not math.isfinite(float(match[2])):
        raise bad_input(field, value, "one of < <= > >= == != and a number, such as '< 5'")
    return Comparison(match[1], float(match[2]))


def parse_matchers(value: object, field: str) -> tuple[str, ...]:
    """``severity="page", team=~"net|sys"`` as Alertmanager's matchers. Raises InvalidInput."""
    accepted = 'label matchers joined by commas, such as severity="page", team=~"net|sys"'
    text = parse_text(value, field, required=True)
    matchers, at = [], 0
    while True:
        match = _MATCHER.match(text, at)
        if match is None:
            raise bad_input(field, value, accepted)
        if "~" in match[2]:
            _check_pattern(match[3], value, field)
        matchers.append(f'{match[1]}{match[2]}"{match[3]}"')
        rest = text[match.end() :].lstrip()
        if not rest:
            return tuple(matchers)
        if not rest.startswith(","):
            raise bad_input(field, value, accepted)
        at = len(text) - len(rest[1:].lstrip())


def _check_pattern(pattern: str, value: object, field: str) -> None:
    try:
        re.compile(pattern.replace('\\"', '"').replace("\\\\", "\\"))
    except re.error as error:
        raise bad_input(field, value, f"a regular expression in place of {pattern[:80]!r} ({error})") from None


def parse_address(value: object, field: str) -> str:
    """The URL of a service, without a slash at its end. Raises InvalidInput."""
    text = parse_text(value, field, required=True)
    url = urlsplit("")
    port: int | None = 0
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        port = 0
    fits = port != 0 and url.scheme in {"http", "https"} and url.hostname and not (url.query or url.fragment)
    if not fits or "@" in url.netloc or " " in text:
        raise bad_input(
            field,
            value,
            "an address such as http://prometheus.service.consul:9090 (tokens are files of the daemon)",
        )
    return text.rstrip("/")


KINDS: dict[str, tuple[tuple[str, ...], Callable[[Fields], Test]]] = {
    "consul-service": (("service", "minimum", "tag"), _consul_service),
    "consul-quorum": ((), _consul_quorum),
    "nomad-quorum": (("address",), _nomad_quorum),
    "prometheus": (("address", "query", "holds_when", "series"), _prometheus),
    "alertmanager": (("address", "matchers"), _alertmanager),
}

# --------------------------------------------------------------------------------------------------------- writing


def describe(test: Test) -> str:
    """What a gate looks at, in a few words."""
    match test:
        case ConsulService():
            tag = f" with tag {test.tag}" if test.tag else ""
            return f"at least {test.minimum} passing instances of {test.service}{tag} are left"
        case ConsulQuorum():
            return "all Consul servers are well"
        case NomadQuorum():
            return f"all Nomad servers are well, says {test.address}"
        case PrometheusQuery():
            return f"{test.query} {test.holds_when}{'' if test.every else ' for any series'}, says {test.address}"
        case NoAlerts():
            return f"no alert with {', '.join(test.matchers)} fires, says {test.address}"


def layout_gates(gates: tuple[Gate, ...]) -> list[dict[str, Any]]:
    """The gates as the policy file lays them out."""
    return [
        {
            "name": g.name,
            "kind": g.test.kind,
            **_layout(g.test),
            **({"covers": g.covers.text} if g.covers is not None else {}),
            "max_age": format_duration(g.max_age),
            "max_block": format_duration(g.max_block),
        }
        for g in gates
    ]


def layout_quorums(groups: tuple[Quorum, ...]) -> list[dict[str, Any]]:
    """The quorum groups as the policy file lays them out."""
    return [{"name": q.name, "selector": q.selector.text, "allow_outage": q.allow_outage} for q in groups]


def _layout(test: Test) -> dict[str, Any]:
    out: dict[str, Any] = {}
    match test:
        case ConsulService():
            least: int | str = str(test.minimum) if test.minimum.percent else test.minimum.value
            out = {"service": test.service, "minimum": least, "tag": test.tag}
        case NomadQuorum():
            out = {"address": test.address}
        case PrometheusQuery():
            out = {
                "address": test.address,
                "query": test.query,
                "holds_when": str(test.holds_when),
                "series": "all" if test.every else "any",
            }
        case NoAlerts():
            out = {"address": test.address, "matchers": ", ".join(test.matchers)}
    return {key: value for key, value in out.items() if value != ""}

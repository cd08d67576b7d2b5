"""The policy's section ``failures``: what is tried again, power-cycled, held back, and when it is given up."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from rebootd.core.inputs import (
    DAY,
    Fields,
    bad_input,
    format_duration,
    parse_count,
    parse_duration,
    parse_flag,
    parse_name,
    parse_text,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

SECTIONS = ("retry", "power", "breaker", "flapping", "repeat")
MAX_TRIES = 5
MAX_LABELS = 16
KEPT_BOOTS = 16
"""How many unplanned boots a machine's record remembers at most; flapping cannot ask for more."""

_PLACE = re.compile(r"\{([^{}]*)\}")
_META = re.compile(r"meta\.[A-Za-z0-9._-]{1,128}")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?(:[0-9]{1,5})?")
_ADDRESS = re.compile(r"https?://[A-Za-z0-9._{}:-]+/?")


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """How many more times a failed drain, and failed checks after a boot, are tried; ``after`` so many seconds."""

    drains: int = 1
    checks: int = 1
    after: float = 60.0


class Power(msgspec.Struct, frozen=True, kw_only=True):
    """Out-of-band power through Redfish. ``address`` "" means that nothing is ever power-cycled.

    ``address`` and ``system`` are templates over ``{name}``, ``{rack}`` and ``{meta.KEY}`` (the machine's Consul node
    meta). ``system`` names the one of several systems behind one address (its Id, Name or UUID). ``after`` is how long
    (s) beyond its deadline a machine must be overdue; ``at_once`` and ``per_hour`` cap the whole fleet.
    """

    address: str = ""
    system: str = ""
    after: float = 60.0
    at_once: int = 1
    per_hour: int = 6


class Breaker(msgspec.Struct, frozen=True, kw_only=True):
    """``failures`` quarantined machines within ``within`` seconds that share a value of one of ``labels`` hold back
    every machine with that value. ``lasts`` 0: until they are cleared; else at most so many seconds.
    """

    labels: tuple[str, ...] = ("kernel", "model", "firmware", "role", "rack")
    failures: int = 5
    within: float = 3600.0
    lasts: float = 0.0


class Flapping(msgspec.Struct, frozen=True, kw_only=True):
    """More than ``boots`` unplanned boots within ``within`` seconds: quarantined. ``boots`` 0 is off."""

    boots: int = 3
    within: float = 3600.0


class Failures(msgspec.Struct, frozen=True, kw_only=True):
    """The whole section. ``repeat`` False: a machine that still wants what a reboot should have brought is not
    rebooted for it again.
    """

    retry: Retry = Retry()
    power: Power = Power()
    breaker: Breaker = Breaker()
    flapping: Flapping = Flapping()
    repeat: bool = False


_DEFAULT = Failures()


def parse_failures(top: Fields) -> Failures:
    """The section ``failures`` of the file. Raises InvalidInput with a dotted path."""
    section = top.section("failures", SECTIONS)
    return Failures(
        retry=_retry(section.section("retry", Retry.__struct_fields__)),
        power=_power(section.section("power", Power.__struct_fields__)),
        breaker=_breaker(section.section("breaker", Breaker.__struct_fields__)),
        flapping=_flapping(section.section("flapping", Flapping.__struct_fields__)),
        repeat=section.take("repeat", parse_flag, _DEFAULT.repeat),
    )


def _retry(fields: Fields) -> Retry:
    default = _DEFAULT.retry
    tries = partial(parse_count, maximum=MAX_TRIES)
    return Retry(
        drains=fields.take("drains", tries, default.drains),
        checks=fields.take("checks", tries, default.checks),
        after=fields.take("after", _span(1.0), default.after),
    )


def _power(fields: Fields) -> Power:
    default = _DEFAULT.power
    return Power(
        address=fields.take("address", _address, default.address),
        system=fields.take("system", _template, default.system),
        after=fields.take("after", partial(parse_duration, maximum=DAY), default.after),
        at_once=fields.take("at_once", partial(parse_count, minimum=1, maximum=1000), default.at_once),
        per_hour=fields.take("per_hour", partial(parse_count, minimum=1, maximum=10_000), default.per_hour),
    )


def _breaker(fields: Fields) -> Breaker:
    default = _DEFAULT.breaker
    return Breaker(
        labels=fields.take("labels", _labels, default.labels),
        failures=fields.take("failures", partial(parse_count, minimum=2, maximum=1000), default.failures),
        within=fields.take("within", _span(1.0), default.within),
        lasts=fields.take("lasts", partial(parse_duration, maximum=366 * DAY), default.lasts),
    )


def _labels(value: object, field: str) -> tuple[str, ...]:
    given = () if value in (None, "") else value
    if not isinstance(given, (list, tuple)) or len(given) > MAX_LABELS:
        raise bad_input(field, value, f"a list of at most {MAX_LABELS} labels; [] is no breaker")
    labels = tuple(parse_name(label, f"{field}[{index}]") for index, label in enumerate(given))
    for index, label in enumerate(labels):
        if label in labels[:index]:
            raise bad_input(f"{field}[{index}]", label, "a label that is not listed before")
    return labels


def _flapping(fields: Fields) -> Flapping:
    default = _DEFAULT.flapping
    return Flapping(
        boots=fields.take("boots", partial(parse_count, maximum=KEPT_BOOTS - 1), default.boots),
        within=fields.take("within", _span(1.0), default.within),
    )


def _span(minimum: float) -> partial[float]:
    return partial(parse_duration, minimum=minimum, maximum=31 * DAY)


def _template(value: object, field: str) -> str:
    text = parse_text(value, field)
    for place in _PLACE.findall(text):
        if place not in {"name", "rack"} and not _META.fullmatch(place):
            raise bad_input(field, value, "places {name}, {rack} and {meta.KEY} only")
    if "{" in _PLACE.sub("", text) or "}" in _PLACE.sub("", text):
        raise bad_input(field, value, "text in which each { has its }")
    return text


def _address(value: object, field: str) -> str:
    text = _template(value, field)
    if text and not _ADDRESS.fullmatch(text):
        raise bad_input(field, value, "a URL without a path, such as https://{name}.bmc.example.net")
    if text and not _PLACE.search(text):
        raise bad_input(field, value, "a URL with {name} or {meta.KEY}: each machine has a controller of its own")
    return text.rstrip("/")


def fill(template: str, name: str, rack: str, meta: Mapping[str, str]) -> str:
    """The template for one machine; ``""`` when a place has no value, or one that is no host name, address or port.

    The values come from the catalog; none of them can change where in the URL the host is.
    """
    values = {"name": name, "rack": rack} | {f"meta.{key}": value for key, value in meta.items()}
    for place in _PLACE.findall(template):
        if not _HOST.fullmatch(values.get(place, "")):
            return ""
    return _PLACE.sub(lambda found: values[found[1]], template)


def render_failures(failures: Failures) -> dict[str, Any]:
    """The section as the file lays it out."""
    retry, power, breaker, flapping = failures.retry, failures.power, failures.breaker, failures.flapping
    return {
        "retry": {"drains": retry.drains, "checks": retry.checks, "after": format_duration(retry.after)},
        "power": {
            "address": power.address,
            "system": power.system,
            "after": format_duration(power.after),
            "at_once": power.at_once,
            "per_hour": power.per_hour,
        },
        "breaker": {
            "labels": list(breaker.labels),
            "failures": breaker.failures,
            "within": format_duration(breaker.within),
            "lasts": format_duration(breaker.lasts),
        },
        "flapping": {"boots": flapping.boots, "within": format_duration(flapping.within)},
        "repeat": failures.repeat,
    }

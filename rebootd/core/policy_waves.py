"""The policy's sections on pace: ``waves``, ``racks.order``, ``standing`` and ``forecast``."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec

from rebootd.core.amounts import Amount, parse_amount
from rebootd.core.fleetlock_record import CYCLE
from rebootd.core.inputs import (
    DAY,
    Fields,
    bad_input,
    format_duration,
    nearest,
    parse_duration,
    parse_flag,
    parse_name,
)
from rebootd.core.selectors import Selector, parse_selector

MAX_WAVES = 50
MAX_LISTED = 10_000
MAX_LABELS = 4
ORDERS = ("name", "smallest-first")
PHASES = ("drain", "prepare", "reboot", "verify", "enable")
WAVE_FIELDS = ("name", "machines", "racks", "size", "soak")
STANDING_FIELDS = ("enabled", "id", "selector", "every")
EXPECTED_FIELDS = ("labels", *PHASES)


class Wave(msgspec.Struct, frozen=True, kw_only=True):
    """A part of each cycle's machines that goes before the next part may.

    Exactly one of ``machines`` (those it matches), ``racks`` (those in them) and ``size`` (so many more, of all that
    the cycle selects) says which. ``soak`` is the time (seconds) after its last machine before the next wave begins.
    """

    name: str
    machines: Selector | None = None
    racks: tuple[str, ...] = ()
    size: Amount | None = None
    soak: float = 0.0

    @property
    def rest(self) -> bool:
        """Whether it takes every machine that no wave before it took."""
        return self.size == Amount(100, percent=True) or (self.machines is not None and self.machines.text == "*")


class RackOrder(msgspec.Struct, frozen=True):
    """Which rack is opened next: the ``listed`` ones first, then the others by ``by`` (one of ``ORDERS``)."""

    listed: tuple[str, ...] = ()
    by: str = "name"


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """The cycle that never ends: machines in service that report that a reboot is required.

    ``every`` is the shortest time (seconds) between two cycles' reboots of one machine.
    """

    enabled: bool = False
    id: str = "standing"
    selector: Selector = parse_selector("*")
    every: float = 7 * DAY


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """How long phases are taken to last (seconds) before machines have shown it, and which labels tell them apart."""

    labels: tuple[str, ...] = ("role", "model")
    drain: float = 60.0
    prepare: float = 10.0
    reboot: float = 300.0
    verify: float = 60.0
    enable: float = 60.0


def parse_waves(items: list[tuple[str, object]]) -> tuple[Wave, ...]:
    """The waves in their order. Raises InvalidInput, also when they do not cover every selection."""
    if len(items) > MAX_WAVES:
        raise bad_input("waves", len(items), f"at most {MAX_WAVES} waves")
    waves: list[Wave] = []
    for number, (path, item) in enumerate(items, 1):
        wave = _wave(path, item, number)
        if waves and waves[-1].rest:
            raise bad_input(path, wave.name, f"no wave after {waves[-1].name}, which takes all that is left")
        if any(other.name == wave.name for other in waves):
            raise bad_input(f"{path}.name", wave.name, "a name that no other wave has")
        waves.append(wave)
    if waves and not waves[-1].rest:
        said = 'a last wave that takes all that is left (size: 100%, or machines: "*"): else some would never go'
        raise bad_input(items[-1][0], waves[-1].name, said)
    return tuple(waves)


def _wave(path: str, item: object, number: int) -> Wave:
    fields = Fields(item, path, WAVE_FIELDS)
    wave = Wave(
        name=fields.take("name", parse_name, f"wave-{number}"),
        machines=fields.take("machines", _selector, None),
        racks=fields.take("racks", parse_names, ()),
        size=fields.take("size", _size, None),
        soak=fields.take("soak", partial(parse_duration, maximum=31 * DAY), 0.0),
    )
    if sum((wave.machines is not None, bool(wave.racks), wave.size is not None)) != 1:
        raise bad_input(path, wave.name, "exactly one of machines (a selector), racks (a list) and size (an amount)")
    return wave


def _selector(value: object, field: str) -> Selector:
    if not isinstance(value, str):
        raise bad_input(field, value, "a selector as text")
    return parse_selector(value, field)


def _size(value: object, field: str) -> Amount:
    size = parse_amount(value, field)
    if size.value == 0:
        raise bad_input(field, value, "a size that is not zero: a wave of nobody says nothing")
    return size


def parse_names(value: object, field: str) -> tuple[str, ...]:
    """A list of at least one name, each once."""
    if not isinstance(value, (list, tuple)) or not value:
        raise bad_input(field, value, "a list of names, at least one")
    if len(value) > MAX_LISTED:
        raise bad_input(field, len(value), f"at most {MAX_LISTED} names")
    names = tuple(parse_name(item, f"{field}[{index}]") for index, item in enumerate(value))
    for index, name in enumerate(names):
        if name in names[:index]:
            raise bad_input(f"{field}[{index}]", name, "each name once")
    return names


def parse_order(value: object, field: str) -> RackOrder:
    """``name``, ``smallest-first``, or a list of racks that go first, in that order."""
    if isinstance(value, (list, tuple)):
        return RackOrder(parse_names(value, field))
    if isinstance(value, str) and value in ORDERS:
        return RackOrder((), value)
    near = nearest(value, ORDERS) if isinstance(value, str) else None
    hint = f" (did you mean {near}?)" if near else ""
    raise bad_input(field, value, f"one of {', '.join(ORDERS)}, or a list of racks{hint}")


def parse_standing(fields: Fields) -> Standing:
    """The section ``standing``."""
    default = Standing()
    return Standing(
        enabled=fields.take("enabled", parse_flag, default.enabled),
        id=fields.take("id", _cycle_id, default.id),
        selector=fields.take("selector", _selector, default.selector),
        every=fields.take("every", partial(parse_duration, minimum=60.0), default.every),
    )


def _cycle_id(value: object, field: str) -> str:
    name = parse_name(value, field)
    if len(name) > 64:
        raise bad_input(field, value, "1 to 64 characters of A-Z a-z 0-9 . _ - (not dots alone)")
    if name == CYCLE:
        raise bad_input(field, value, f"an id other than {CYCLE}, which is that of the section {CYCLE}")
    return name


def parse_expected(fields: Fields) -> Expected:
    """The section ``forecast``."""
    default = Expected()
    phases = {
        phase: fields.take(phase, partial(parse_duration, maximum=7 * DAY), getattr(default, phase)) for phase in PHASES
    }
    return Expected(labels=fields.take("labels", _labels, default.labels), **phases)


def _labels(value: object, field: str) -> tuple[str, ...]:
    if value in ("", None, [], ()):
        return ()
    labels = parse_names(value, field)
    if len(labels) > MAX_LABELS:
        raise bad_input(field, value, f"at most {MAX_LABELS} labels")
    return labels


def render_waves(waves: tuple[Wave, ...]) -> list[dict[str, Any]]:
    """As :func:`parse_waves` reads it."""
    return [_shown(wave) for wave in waves]


def _shown(wave: Wave) -> dict[str, Any]:
    out: dict[str, Any] = {"name": wave.name}
    if wave.machines is not None:
        out["machines"] = wave.machines.text
    if wave.racks:
        out["racks"] = list(wave.racks)
    if wave.size is not None:
        out["size"] = str(wave.size) if wave.size.percent else wave.size.value
    return out | {"soak": format_duration(wave.soak)}


def render_order(order: RackOrder) -> str | list[str]:
    """As :func:`parse_order` reads it."""
    return list(order.listed) if order.listed else order.by


def render_standing(standing: Standing) -> dict[str, Any]:
    """As :func:`parse_standing` reads it."""
    return {
        "enabled": standing.enabled,
        "id": standing.id,
        "selector": standing.selector.text,
        "every": format_duration(standing.every),
    }


def render_expected(expected: Expected) -> dict[str, Any]:
    """As :func:`parse_expected` reads it."""
    phases = {phase: format_duration(getattr(expected, phase)) for phase in PHASES}
    return {"labels": list(expected.labels), **phases}

"""The policy: what an operator allows, as one readable YAML file.

The file is explained in docs/policy.md.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import yaml

from rebootd.core.amounts import Amount, parse_amount
from rebootd.core.inputs import (
    DAY,
    Fields,
    bad_input,
    format_duration,
    format_share,
    join,
    parse_count,
    parse_duration,
    parse_flag,
    parse_name,
    parse_share,
    parse_text,
)
from rebootd.core.policy_drains import Drains, parse_drains, render_drains
from rebootd.core.policy_failures import Failures, parse_failures, render_failures
from rebootd.core.policy_fleetlock import FIELDS as FLEETLOCK_FIELDS
from rebootd.core.policy_fleetlock import FleetLocks, parse_fleetlock, render_fleetlock
from rebootd.core.policy_gates import (
    FORGET_AFTER,
    Gate,
    Quorum,
    layout_gates,
    layout_quorums,
    parse_forget_after,
    parse_gates,
    parse_quorums,
)
from rebootd.core.policy_reboot import RebootRule, parse_reboot, render_reboot
from rebootd.core.policy_silences import FIELDS as SILENCE_FIELDS
from rebootd.core.policy_silences import Silences, parse_silences, render_silences
from rebootd.core.policy_waves import (
    EXPECTED_FIELDS,
    STANDING_FIELDS,
    Expected,
    RackOrder,
    Standing,
    Wave,
    parse_expected,
    parse_order,
    parse_standing,
    parse_waves,
    render_expected,
    render_order,
    render_standing,
    render_waves,
)
from rebootd.core.policy_yaml import load_yaml
from rebootd.core.selectors import Selector, parse_selector
from rebootd.core.windows import MAX_WINDOW, CalendarWindow, check_window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rebootd.core.model import State

HOUR = 3600.0
SHORTEST = 0.1
"""Seconds; the shortest of the durations that must not be zero."""
MAX_DEADLINE = 7 * DAY
SECTIONS = (
    "racks",
    "limits",
    "windows",
    "deadlines",
    "soak",
    "permit",
    "settle",
    "unreachable_after",
    "clock",
    "failure_budget",
    "power_loss_share",
    "failures",
    "waves",
    "standing",
    "forecast",
    "gates",
    "quorums",
    "forget_after",
    "drains",
    "reboot",
    "silences",
    "fleetlock",
)
DEADLINE_FIELDS = ("draining", "drained", "rebooting", "verifying", "enabling")


class Deadlines(msgspec.Struct, frozen=True, kw_only=True):
    """How long (seconds) a machine may stay in a state before it is quarantined."""

    draining: float = 900.0
    drained: float = 300.0
    rebooting: float = 900.0
    verifying: float = 600.0
    enabling: float = 600.0

    def of(self, state: State) -> float | None:
        """The deadline of ``state``, or None if it has none (in-service, held, quarantined)."""
        # The fields are named after the states; asked for every machine that is out, in every decision.
        seconds: float | None = getattr(self, state, None)
        return seconds


class Limit(msgspec.Struct, frozen=True):
    """How many of the machines that ``selector`` matches may be unavailable at once."""

    name: str
    selector: Selector
    max: Amount


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """All that is allowed. Durations are seconds; ``power_loss_share`` is a fraction of the fleet."""

    open_racks: int = 1
    rack_unavailable: Amount = Amount(1)
    limits: tuple[Limit, ...] = ()
    windows: tuple[CalendarWindow, ...] = ()
    window_required: bool = False
    deadlines: Deadlines = Deadlines()
    soak: float = 0.0
    permit_valid: float = 60.0
    settle: float = 60.0
    unreachable_after: float = 150.0
    clock_tolerance: float = 30.0
    failure_budget: int = 0
    power_loss_share: float = 0.2
    failures: Failures = Failures()
    rack_order: RackOrder = RackOrder()
    waves: tuple[Wave, ...] = ()
    standing: Standing = Standing()
    expected: Expected = Expected()
    gates: tuple[Gate, ...] = ()
    quorums: tuple[Quorum, ...] = ()
    forget_after: float = FORGET_AFTER
    drains: Drains = Drains()
    reboot: tuple[RebootRule, ...] = ()
    silences: Silences = Silences()
    fleetlock: FleetLocks = FleetLocks()


DEFAULT_POLICY = Policy()

N = TypeVar("N", Limit, CalendarWindow)


class PolicyChange(msgspec.Struct, frozen=True):
    """One difference: ``field`` is the path in the file; ``old`` or ``new`` is ``""`` when absent there."""

    field: str
    old: str
    new: str


@lru_cache(maxsize=8)
def parse_policy(text: str) -> Policy:
    """The policy that the YAML ``text`` says; what it does not mention keeps its default.

    Raises InvalidInput with a dotted path such as ``limits[0].max``; for broken YAML with line and
    column. An empty text is refused: it is more likely a file that got lost than a wish.
    """
    document = load_yaml(text, "policy")
    if document is None or document == "":
        raise bad_input("policy", text, "a YAML mapping; {} is the policy of defaults")
    top = Fields(document, "", SECTIONS)
    racks = top.section("racks", ("open", "unavailable", "order"))
    windows = top.section("windows", ("required", "calendar"))
    default = DEFAULT_POLICY
    deadlines = _deadlines(top.section("deadlines", DEADLINE_FIELDS))
    return Policy(
        open_racks=racks.take("open", _open_racks, default.open_racks),
        rack_unavailable=racks.take("unavailable", parse_amount, default.rack_unavailable),
        limits=_distinct([_limit(path, item) for path, item in top.items("limits")], "limits"),
        windows=_distinct([_window(path, item) for path, item in windows.items("calendar")], "windows.calendar"),
        window_required=windows.take("required", parse_flag, default.window_required),
        deadlines=deadlines,
        soak=top.take("soak", partial(parse_duration, maximum=7 * DAY), default.soak),
        permit_valid=top.section("permit", ("valid",)).take("valid", _up_to(HOUR), default.permit_valid),
        settle=top.take("settle", partial(parse_duration, maximum=DAY), default.settle),
        unreachable_after=top.take("unreachable_after", _up_to(DAY), default.unreachable_after),
        clock_tolerance=top.section("clock", ("tolerance",)).take("tolerance", _up_to(HOUR), default.clock_tolerance),
        failure_budget=top.take("failure_budget", parse_count, default.failure_budget),
        power_loss_share=top.take("power_loss_share", parse_share, default.power_loss_share),
        failures=parse_failures(top),
        rack_order=racks.take("order", parse_order, default.rack_order),
        waves=parse_waves(top.items("waves")),
        standing=parse_standing(top.section("standing", STANDING_FIELDS)),
        expected=parse_expected(top.section("forecast", EXPECTED_FIELDS)),
        gates=parse_gates(top.items("gates")),
        quorums=parse_quorums(top.items("quorums")),
        forget_after=top.take("forget_after", parse_forget_after, default.forget_after),
        drains=parse_drains(top.section("drains", ("nomad",)), deadlines.draining),
        reboot=parse_reboot(top.section("reboot", ("methods",)).items("methods")),
        silences=parse_silences(top.section("silences", SILENCE_FIELDS)),
        fleetlock=parse_fleetlock(top.section("fleetlock", FLEETLOCK_FIELDS)),
    )


def _up_to(maximum: float) -> Callable[[object, str], float]:
    """A duration that must not be zero."""
    return partial(parse_duration, minimum=SHORTEST, maximum=maximum)


def _open_racks(value: object, field: str) -> int:
    return parse_count(value, field, minimum=1, maximum=1000)


def _limit(path: str, item: object) -> Limit:
    fields = Fields(item, path, ("name", "selector", "max"))
    return Limit(
        name=fields.need("name", parse_name),
        selector=fields.need("selector", _selector),
        max=fields.need("max", parse_amount),
    )


def _selector(value: object, field: str) -> Selector:
    if not isinstance(value, str):
        raise bad_input(field, value, "a selector as text")
    return parse_selector(value, field)


def _window(path: str, item: object) -> CalendarWindow:
    fields = Fields(item, path, ("name", "start", "duration", "timezone"))
    window = CalendarWindow(
        name=fields.need("name", parse_name),
        start=" ".join(fields.need("start", partial(parse_text, required=True)).split()),
        duration=fields.need("duration", _up_to(MAX_WINDOW)),
        timezone=fields.take("timezone", partial(parse_text, required=True), "UTC"),
    )
    check_window(window, path)
    return window


def _distinct(items: list[N], where: str) -> tuple[N, ...]:
    seen: set[str] = set()
    for index, item in enumerate(items):
        if item.name in seen:
            raise bad_input(f"{where}[{index}].name", item.name, "a name that no other entry has")
        seen.add(item.name)
    return tuple(items)


def _deadlines(fields: Fields) -> Deadlines:
    default = DEFAULT_POLICY.deadlines
    return Deadlines(
        **{name: fields.take(name, _up_to(MAX_DEADLINE), getattr(default, name)) for name in DEADLINE_FIELDS}
    )


def render_policy(policy: Policy) -> str:
    """Canonical YAML, with every field written out; :func:`parse_policy` reads it back as equal."""
    text: str = yaml.safe_dump(_layout(policy), sort_keys=False, allow_unicode=True, width=1000)
    return text


def _layout(policy: Policy) -> dict[str, Any]:
    """The policy as the file lays it out: nested mappings of text, booleans and whole numbers."""
    return {
        "racks": {
            "open": policy.open_racks,
            "unavailable": _amount(policy.rack_unavailable),
            "order": render_order(policy.rack_order),
        },
        "limits": [
            {"name": limit.name, "selector": limit.selector.text, "max": _amount(limit.max)} for limit in policy.limits
        ],
        "windows": {
            "required": policy.window_required,
            "calendar": [
                {
                    "name": window.name,
                    "start": window.start,
                    "duration": format_duration(window.duration),
                    "timezone": window.timezone,
                }
                for window in policy.windows
            ],
        },
        "deadlines": {name: format_duration(getattr(policy.deadlines, name)) for name in DEADLINE_FIELDS},
        "soak": format_duration(policy.soak),
        "permit": {"valid": format_duration(policy.permit_valid)},
        "settle": format_duration(policy.settle),
        "unreachable_after": format_duration(policy.unreachable_after),
        "clock": {"tolerance": format_duration(policy.clock_tolerance)},
        "failure_budget": policy.failure_budget,
        "power_loss_share": format_share(policy.power_loss_share),
        "failures": render_failures(policy.failures),
        "waves": render_waves(policy.waves),
        "standing": render_standing(policy.standing),
        "forecast": render_expected(policy.expected),
        "gates": layout_gates(policy.gates),
        "quorums": layout_quorums(policy.quorums),
        "forget_after": format_duration(policy.forget_after),
        "drains": render_drains(policy.drains),
        "reboot": {"methods": render_reboot(policy.reboot)},
        "silences": render_silences(policy.silences),
        "fleetlock": render_fleetlock(policy.fleetlock),
    }


def _amount(amount: Amount) -> int | str:
    return str(amount) if amount.percent else amount.value


def diff_policies(old: Policy, new: Policy) -> list[PolicyChange]:
    """What differs, in the order of the file. Limits and windows are matched by name, not by place."""
    before, after = dict(_flat(_layout(old), "")), dict(_flat(_layout(new), ""))
    fields = [*after, *(field for field in before if field not in after)]
    changes = [PolicyChange(field, before.get(field, ""), after.get(field, "")) for field in fields]
    return [change for change in changes if change.old != change.new]


def _flat(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every leaf of a layout with its path; entries of lists are addressed by name: ``limits[web].max``.

    Those that have none go by their place, which says what they do: ``reboot.methods[0].method``.
    """
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _flat(below, join(path, key))
    elif isinstance(value, list) and not all(isinstance(item, dict) for item in value):
        yield path, ", ".join(str(item) for item in value)
    elif isinstance(value, list):
        for place, item in enumerate(value):
            below = {key: inner for key, inner in item.items() if key != "name"}
            yield from _flat(below, f"{path}[{item.get('name', place)}]")
    elif isinstance(value, bool):
        yield path, "true" if value else "false"
    else:
        yield path, str(value)

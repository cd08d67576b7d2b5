"""The policy's section ``drains``: what the leader drains beside what each machine's agent does, parsed and written."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec

from rebootd.core.inputs import (
    DAY,
    Fields,
    bad_input,
    format_duration,
    parse_choice,
    parse_duration,
    parse_text,
)
from rebootd.core.selectors import Selector, parse_selector

AT_DEADLINE = ("fail", "force")
SYSTEM = ("stop", "keep")
NOMAD_FIELDS = ("machines", "datacenter", "deadline", "at_deadline", "system", "services", "patience")


class NomadDrains(msgspec.Struct, frozen=True, kw_only=True):
    """How Nomad clients are drained. Durations are seconds.

    ``machines`` are those that have a Nomad client; ``datacenter`` (``""``: any) is where clients are looked for.
    ``force``: at the deadline Nomad stops what is left, else the drain has failed. ``keep_system``: system jobs run on
    until the reboot. ``services`` is how long a return waits for the service jobs that ran on the machine to be whole
    again, ``patience`` how long it waits for a Nomad that does not answer.
    """

    machines: Selector
    datacenter: str = ""
    deadline: float = 600.0
    force: bool = False
    keep_system: bool = False
    services: float = 300.0
    patience: float = 30.0


class Drains(msgspec.Struct, frozen=True):
    """``nomad`` None: nothing is asked of Nomad."""

    nomad: NomadDrains | None = None


def parse_drains(fields: Fields, draining: float) -> Drains:
    """The section's values; ``draining`` is the deadline of that state. Raises InvalidInput."""
    nomad = fields.take("nomad", partial(_nomad, draining=draining), None)
    return Drains(nomad)


def _nomad(value: object, field: str, draining: float) -> NomadDrains | None:
    if value is None or value == "":
        return None
    fields = Fields(value, field, NOMAD_FIELDS)
    deadline = fields.take("deadline", partial(parse_duration, minimum=1.0, maximum=7 * DAY), min(600.0, draining / 2))
    if deadline >= draining:
        accepted = f"less than deadlines.draining ({format_duration(draining)}): else the machine is quarantined first"
        raise bad_input(f"{field}.deadline", format_duration(deadline), accepted)
    return NomadDrains(
        machines=fields.need("machines", _selector),
        datacenter=fields.take("datacenter", partial(parse_text, maximum=128), ""),
        deadline=deadline,
        force=fields.take("at_deadline", partial(parse_choice, choices=AT_DEADLINE), "fail") == "force",
        keep_system=fields.take("system", partial(parse_choice, choices=SYSTEM), "stop") == "keep",
        services=fields.take("services", partial(parse_duration, maximum=DAY), 300.0),
        patience=fields.take("patience", partial(parse_duration, minimum=1.0, maximum=3600.0), 30.0),
    )


def _selector(value: object, field: str) -> Selector:
    if not isinstance(value, str):
        raise bad_input(field, value, "a selector as text")
    return parse_selector(value, field)


def render_drains(drains: Drains) -> dict[str, Any]:
    """The section as the policy file lays it out."""
    nomad = drains.nomad
    if nomad is None:
        return {}
    return {
        "nomad": {
            "machines": nomad.machines.text,
            **({"datacenter": nomad.datacenter} if nomad.datacenter else {}),
            "deadline": format_duration(nomad.deadline),
            "at_deadline": "force" if nomad.force else "fail",
            "system": "keep" if nomad.keep_system else "stop",
            "services": format_duration(nomad.services),
            "patience": format_duration(nomad.patience),
        }
    }

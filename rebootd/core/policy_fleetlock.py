"""The policy's section ``fleetlock``: whether machines without an agent may ask for reboots, how long a wish lasts."""

from __future__ import annotations

from functools import partial

import msgspec

from rebootd.core.inputs import DAY, Fields, format_duration, parse_duration, parse_flag

FIELDS = ("enabled", "wish")


class FleetLocks(msgspec.Struct, frozen=True):
    """``enabled`` lets FleetLock clients ask for reboots. Their machines come back whatever it says.

    ``wish`` is how long (seconds) a client that asked and was told to wait is taken to want its reboot still. Zincati
    asks again every 5 to 5.5 minutes, so the default lets it miss one call.
    """

    enabled: bool = False
    wish: float = 900.0


def parse_fleetlock(fields: Fields) -> FleetLocks:
    """The section's values. Raises InvalidInput."""
    default = FleetLocks()
    return FleetLocks(
        fields.take("enabled", parse_flag, default.enabled),
        fields.take("wish", partial(parse_duration, minimum=1.0, maximum=DAY), default.wish),
    )


def render_fleetlock(rule: FleetLocks) -> dict[str, bool | str]:
    """As the file lays it out."""
    return {"enabled": rule.enabled, "wish": format_duration(rule.wish)}

"""The record of an out-of-band power cycle, stored at ``power/<machine>``."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class PowerState(StrEnum):
    """Where an out-of-band power cycle is. ``asked`` of an earlier epoch may have been sent, or not."""

    ASKED = "asked"
    SENT = "sent"
    FAILED = "failed"
    CANCELLED = "cancelled"


class PowerCycle(msgspec.Struct, frozen=True, kw_only=True):
    """The leave to power-cycle exactly one boot of one machine once, stored at ``power/<machine>``.

    It is committed before anything is sent, by the leader of ``epoch``, who alone may act on it.
    ``address`` is the controller's URL, ``system`` names one of several behind it. ``since`` is when it was
    decided, ``changed`` when ``state`` became what it is. ``earlier`` is when earlier boots of the machine were given
    such a leave within the hour before: one record stands for all that counts in the hourly cap.
    """

    machine: str
    boot_id: str
    address: str
    since: float
    changed: float
    system: str = ""
    state: PowerState = PowerState.ASKED
    result: str = ""
    epoch: int = 0
    write_id: str = ""
    earlier: tuple[float, ...] = ()

"""Planted in power cycles: twice, too early, too many, for the wrong machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest import mock

from msgspec.structs import replace

from rebootd.coordinator import power
from rebootd.coordinator.power import PowerRoom
from rebootd.core import power as core_power
from rebootd.core import settle
from tests.sim.planted.kind import Planted, put

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

Patches = list["AbstractContextManager[Any]"]


def _power_twice() -> Patches:
    """A machine that did not come back by its power cycle gets another."""
    real = core_power._after

    def again(v: Any, machine: Any, record: Any) -> Any:
        found = real(v, machine, record)
        if found.blocker is None:
            v.power.append(core_power._step(v, machine, (record.address, record.system), record))
            return core_power.Rescue(core_power._waits(machine, "it is being power-cycled"))
        return found

    return [mock.patch.object(core_power, "_after", again)]


def _power_uncommitted() -> Patches:
    """A power cycle is sent as soon as it is decided."""
    from rebootd.coordinator import leader

    real = leader.Leader._tick

    async def tick(self: Any, snapshot: Any) -> Any:
        for step in vars(leader)["decide"](snapshot).power:
            self._rooms.power(step.after)
        return await real(self, snapshot)

    return [mock.patch.object(leader.Leader, "_tick", tick)]


def _power_cap() -> Patches:
    return [mock.patch.object(core_power, "spent", return_value=0)]


def _power_at_once() -> Patches:
    """As many power cycles at once as machines are overdue."""
    real = vars(settle)["rescue"]

    def rescue(v: Any, machine: Any, overdue_by: float) -> Any:
        kept, policy = v.snapshot, v.snapshot.policy
        rule = replace(policy.failures.power, at_once=1000)
        v.snapshot = replace(kept, policy=replace(policy, failures=replace(policy.failures, power=rule)))
        try:
            return real(v, machine, overdue_by)
        finally:
            v.snapshot = kept

    return [mock.patch.object(settle, "rescue", rescue)]


def _power_of_the_last() -> Patches:
    """A new leader goes on with what the last one was about to send."""
    init = PowerRoom.__init__

    def eager(self: Any, fleet: Any, *args: Any, **named: Any) -> None:
        init(self, fleet, *args, **named)
        for record in fleet.power.values():
            if record.state.value == "asked":
                self.committed(record)

    async def run(self: Any) -> None:
        for record in self._fleet.power.values():
            if record.state.value == "asked" and self._asked.empty():
                self.committed(record)
        await real(self)

    real = PowerRoom.run
    return [
        mock.patch.object(PowerRoom, "__init__", eager),
        mock.patch.object(PowerRoom, "run", run),
        mock.patch.object(PowerRoom, "_objection", return_value=""),
    ]


ALL = (
    Planted("power-cycled-twice", "one boot_id is power-cycled again and again", _power_twice, "power"),
    Planted("power-before-commit", "a power cycle is sent before its record has landed", _power_uncommitted, "power"),
    Planted(
        "power-no-second-look",
        "nobody asks once more before the reset",
        put(power, "objection", lambda *_: ""),
        "power",
    ),
    Planted(
        "power-for-the-living",
        "a machine that reports is power-cycled when it is overdue",
        put(core_power, "unheard", lambda *_: True),
        "power",
    ),
    Planted("power-cap-ignored", "there is no hourly cap of power cycles", _power_cap, "power"),
    Planted("power-all-at-once", "any number of power cycles at once", _power_at_once, "power"),
    Planted(
        "power-of-the-last-leader", "a new leader sends what the last one had asked for", _power_of_the_last, "power"
    ),
)

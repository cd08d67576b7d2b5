"""Planted in the dealings with clocks, with records that people spoilt, and in what is told: forecasts and reasons."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any
from unittest import mock

from msgspec.structs import replace

from rebootd.coordinator import forecasts
from rebootd.coordinator.fleet import Fleet
from rebootd.core import limits, view
from rebootd.core.decision import Guard
from rebootd.core.model import State
from tests.sim.planted.cores import guardless
from tests.sim.planted.kind import Planted

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

Patches = list["AbstractContextManager[Any]"]


def _wall_clock() -> Patches:
    """As bug 45: a leader's time is the wall clock, whatever it does."""
    from rebootd.coordinator.clock import LeaderClock

    def now(self: Any) -> float:
        return float(self._wall())

    return [mock.patch.object(LeaderClock, "__call__", now)]


def _future_counts() -> Patches:
    """Stamps are taken as they are, from whichever clock."""
    from rebootd.coordinator import fleet

    def same(record: Any, *_: Any) -> Any:
        return record

    return [mock.patch.object(fleet, "machine_by", same), mock.patch.object(fleet, "record_by", same)]


def _bad_hold() -> Patches:
    """A hold that cannot be read is none."""
    real = Fleet._hold

    def hold(self: Any, kind: str, name: str, entry: Any, now: float) -> None:
        real(self, kind, name, entry, now)
        holds = self.machine_holds if kind == "machine" else self.rack_holds
        if entry is not None and b'"since"' not in entry.value:
            holds.pop(name, None)

    # The transaction looks at the key, too.
    return [mock.patch.object(Fleet, "_hold", hold), *guardless(Guard.NOT_HELD)()]


def _bad_policy() -> Patches:
    """A policy that cannot be read is the one of before."""
    real = Fleet._policy

    def policy(self: Any, entry: Any) -> None:
        real(self, entry)
        self.faults.pop("policy", None)

    return [mock.patch.object(Fleet, "_policy", policy)]


def _bad_machine() -> Patches:
    """A machine whose record cannot be read counts nowhere."""
    init = limits.Capacity.__init__

    def careless(self: Any, snapshot: Any, *args: Any) -> None:
        init(self, replace(snapshot, asides={}), *args)

    return [mock.patch.object(limits.Capacity, "__init__", careless)]


def _bad_forecast() -> Patches:
    """A forecast that stumbles over quarantined machines; the leader goes on, and nobody is told."""
    real = vars(forecasts)["forecast"]

    def stumbling(snapshot: Any, cycle_id: str = "") -> Any:
        if any(m.state is State.QUARANTINED for m in snapshot.machines.values()):
            raise KeyError("quarantined")
        return (yield from real(snapshot, cycle_id))

    return [mock.patch.object(forecasts, "forecast", stumbling)]


def _no_since() -> Patches:
    """Since when a halt or a window keeps machines in is not known."""
    real = view.View._stops

    def stops(self: Any) -> Any:
        return tuple(replace(b, since=math.nan) for b in real(self))

    return [mock.patch.object(view.View, "_stops", stops)]


ALL = (
    Planted("leader-follows-the-wall", "a jump of the wall clock is one of the leader's time", _wall_clock, "leaps"),
    Planted(
        "stamps-from-the-future", "stamps of a clock that was ahead are taken as they are", _future_counts, "leaps"
    ),
    Planted("bad-hold-is-none", "a hold that cannot be read holds nobody", _bad_hold, "records"),
    Planted("bad-policy-is-the-last", "a policy that cannot be read changes nothing", _bad_policy, "records"),
    Planted("bad-machine-is-nobody", "who has an unreadable record counts nowhere", _bad_machine, "records"),
    Planted("forecast-stumbles", "an estimate fails while somebody is quarantined", _bad_forecast, "pace"),
    Planted("reason-without-since", "a halt is a reason without a since", _no_since, "operators"),
)

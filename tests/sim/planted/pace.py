"""Planted in the pace of cycles: waves, the order of racks and members, the standing cycle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest import mock

from msgspec.structs import replace

from rebootd.core import pace, roll, standing, waves, wishes
from rebootd.core.wire import Tri
from tests.sim.planted.kind import Planted

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

Patches = list["AbstractContextManager[Any]"]


def _no_waves() -> Patches:
    real = waves.WavePlan.at

    def at(self: Any, now: float, show: Any) -> Any:
        real(self, now, show)
        self.late = {}
        return self

    return [mock.patch.object(waves.WavePlan, "at", at)]


def _no_soak() -> Patches:
    real = waves.WavePlan.at

    def at(self: Any, now: float, show: Any) -> Any:
        kept, self.waves = self.waves, tuple(replace(w, soak=0.0) for w in self.waves)
        try:
            return real(self, now, show)
        finally:
            self.waves = kept

    return [mock.patch.object(waves.WavePlan, "at", at)]


def _any_order() -> Patches:
    real = wishes.rack_order

    def backwards(*args: Any) -> Any:
        return real(*args)[::-1]

    from rebootd.core import admit

    return [mock.patch.object(admit, "rack_order", backwards)]


def _members_first() -> Patches:
    init = pace.Pace.__init__

    def plain(self: Any, *args: Any) -> None:
        init(self, *args)
        self.last = frozenset()

    return [mock.patch.object(pace.Pace, "__init__", plain)]


def _unknown_required() -> Patches:
    def wants(policy: Any, _cycle: Any, now: float) -> Any:
        rule = policy.standing
        return lambda m: m.reboot_required is not Tri.NO and m.ended <= now - rule.every and rule.selector.matches(m)

    return [mock.patch.object(where, "wants", wants) for where in (wishes, roll)]


def _again_and_again() -> Patches:
    real = standing.wants

    def wants(policy: Any, cycle: Any, now: float) -> Any:
        return real(replace(policy, standing=replace(policy.standing, every=0.0)), cycle, now)

    return [mock.patch.object(where, "wants", wants) for where in (wishes, roll)]


ALL = (
    Planted("waves-together", "all waves come at once", _no_waves, "pace"),
    Planted("waves-do-not-soak", "the next wave comes as soon as the last is over", _no_soak, "pace"),
    Planted("racks-in-any-order", "racks are opened backwards", _any_order, "pace"),
    Planted("members-not-last", "members of quorum groups go with the others", _members_first, "pace"),
    Planted("unknown-is-required", "unknown detection counts as required", _unknown_required, "pace"),
    Planted("standing-again-and-again", "the standing cycle keeps no distance", _again_and_again, "pace"),
)

"""Planted where FleetLock clients ask: yeses too early, clients that free each other, wishes that never end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest import mock

from rebootd.coordinator.fleetlock import Clients
from rebootd.core import fleetlock, limits, waves
from rebootd.core.fleetlock_record import Word
from rebootd.core.model import State
from tests.sim.lock_plan import FLEETLOCK
from tests.sim.planted.kind import Planted, put

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

Patches = list["AbstractContextManager[Any]"]


def _granted_first() -> Patches:
    """Who is drained and not kept in by anything is told 200 while its permit is on its way to the store."""
    real = Clients._out

    async def out(self: Any, machine: Any) -> Any:
        if machine.state is State.DRAINED and {b.kind for b in self._decision().reasons[machine.name]} == {"agent"}:
            self._dirty.set()
            return Word(granted=True, state=State.REBOOTING.value, valid_for=30.0)
        return await real(self, machine)

    return [mock.patch.object(Clients, "_out", out)]


def _back_first() -> Patches:
    """Who says that it is back is believed before that is in the store."""

    def back(self: Any, machine: Any) -> Any:
        return Word(granted=True, state=State.ENABLING.value)

    return [mock.patch.object(Clients, "_back", back)]


def _one_for_all() -> Patches:
    """The lock is the group's: whoever says that it is back gives it back, whosever it is."""
    real = Clients._follow

    async def follow(self: Any, name: str, call: Any) -> Any:
        others = [n for n, m in self._fleet.machines.items() if m.fleetlock is not None and fleetlock.spent(m)]
        calls = {n: call for n in others if call.steady and n not in self._fleet.calls}
        self._fleet.calls |= calls
        try:
            return await real(self, name, call)
        finally:
            for n in calls:
                self._fleet.calls.pop(n, None)

    return [mock.patch.object(Clients, "_follow", follow)]


def _uncounted() -> Patches:
    """No limit counts machines whose clients hold a lock."""
    real = limits.available

    def available(snapshot: Any, machine: Any) -> bool:
        return real(snapshot, machine) or (machine.fleetlock is not None and machine.state is State.REBOOTING)

    return [mock.patch.object(limits, "available", available)]


def _wished_for_ever() -> Patches:
    def wished(machine: Any, policy: Any, _now: float) -> bool:
        return policy.fleetlock.enabled and machine.fleetlock is not None and bool(machine.fleetlock.asked)

    return [mock.patch.object(fleetlock, "wished", wished)]


ALL = (
    Planted(
        "client-granted-early", "a FleetLock client is told 200 before its permit lands", _granted_first, FLEETLOCK
    ),
    Planted("client-back-early", "a FleetLock client's return is confirmed before it lands", _back_first, FLEETLOCK),
    Planted(
        "client-frees-others", "steady-state of one FleetLock client gives every lock back", _one_for_all, FLEETLOCK
    ),
    Planted("limit-forgets-clients", "FleetLock clients that hold a lock do not count", _uncounted, FLEETLOCK),
    Planted("wish-lasts-for-ever", "a FleetLock client that asks no more is drained", _wished_for_ever, FLEETLOCK),
    Planted(
        "waves-wait-for-clients",
        "a wave waits for machines whose FleetLock clients do not ask",
        put(waves, "unasked", lambda _machine: False),
        FLEETLOCK,
    ),
)

"""Management controllers: a Redfish service for each machine, and what a leader gets from it.

What is sent, when and after which second look is the product's; HTTP is not spoken here (the emulator's tests do that).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from rebootd.coordinator.redfish import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebootd.core.model import PowerCycle
    from tests.sim.loop import Process
    from tests.sim.world import World

TIMEOUT = 20.0
LATE = 90.0
"""Seconds by which a slow controller acts after it was asked, at most."""


class Controllers:
    """All controllers of a world. ``trouble`` maps a machine (or ``all``) to what its controller does."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = world.rng("controllers")
        self.trouble: dict[str, str] = {}

    def of(self, name: str) -> str:
        """What is wrong with the controller of a machine: ``away``, ``late``, ``deaf``, ``silent`` or ``""``."""
        return self.trouble.get(name) or self.trouble.get("all", "")

    def reset(self, name: str) -> None:
        """The controller acts: the machine loses its power and gets it back."""
        self.world.say(f"the controller of {name} resets it")
        self.world.machines[name].power_cycle()


class SimRestarter:
    """Implements :class:`rebootd.coordinator.redfish.Restarter` for one daemon."""

    def __init__(self, controllers: Controllers, daemon: str, process: Process) -> None:
        self._controllers = controllers
        self._daemon = daemon
        self._process = process

    async def restart(self, record: PowerCycle, objection: Callable[[], str]) -> Outcome:
        """Looks for the system, asks once more, sends one reset."""
        here = self._controllers
        world, rng, name = here.world, here.rng, record.machine
        if here.of(name) == "away":
            await asyncio.sleep(5.0)
            return Outcome(sent=False, detail="no route to the controller")
        await asyncio.sleep(rng.uniform(0.5, 15.0) if here.of(name) == "late" else rng.uniform(0.2, 6.0))
        self._process.here()
        why = objection()
        if why:
            world.checks.counts["power cycles called off"] += 1
            return Outcome(sent=False, detail=why, cancelled=True)
        trouble = here.of(name)
        world.checks.powers.sending(self._daemon, record)
        if trouble == "deaf":
            return Outcome(sent=False, detail="HTTP 500")
        if trouble != "silent":
            world.loop.after(rng.uniform(1.0, LATE) if trouble == "late" else 0.5, here.reset, name)
        if trouble in {"late", "silent"} and rng.random() < 0.5:
            await asyncio.sleep(TIMEOUT)
            return Outcome(sent=True, detail="no answer to the reset, it may have been done")
        await asyncio.sleep(0.5)
        return Outcome(sent=True, detail="ForceRestart accepted")

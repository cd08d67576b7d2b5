"""Machines without an agent: a host with a FleetLock client that behaves as Zincati does, with shorter pauses.

After each start it says ``steady-state`` until that is answered with 200. Once an update waits, it asks ``pre-reboot``
until that is, waits for people who are logged in, and reboots. It remembers nothing beyond its life, and believes
nothing but a 200.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from rebootd.core.fleetlock import META
from tests.sim.machines import Machine
from tests.sim.net import SimLine

if TYPE_CHECKING:
    from rebootd.agent.client import Reply
    from tests.sim.world import World

TIMEOUT = 30.0
"""Seconds that an answer is waited for; what a daemon takes at most, parked and at work, is 13 and its retries."""
PAUSE = (15.0, 40.0)
"""Seconds between two tries; Zincati's are 300 to 330."""
REST = (70.0, 120.0)
"""Seconds between its start and its first ``pre-reboot``: by then nothing that it said before is still on its way.
The protocol has nothing by which an old ``steady-state`` could be told from a new one."""
LOOK = 10.0
HOPS = 4
GROUPS = ("workers", "infra")


class LockMachine(Machine):
    """One such machine. ``staged``: an update waits; ``steady``: it was told that its word is known."""

    def __init__(self, world: World, name: str, rack: str, labels: dict[str, str], client: str) -> None:
        super().__init__(world, name, rack, labels)
        self.client = client
        self.group = GROUPS[len(world.machines) % len(GROUPS)]
        self.staged = False
        self.steady = False
        self.away = 0
        """More than 0: somebody has stopped the client."""
        self._line = SimLine(world.net, self.box)

    def meta(self) -> dict[str, str]:
        """What the catalog says of its node: beside the rack, its labels and its client."""
        named = {META: self.client} if self.client != self.name else {}
        return {**super().meta(), **self.labels, **named}

    def stage(self) -> None:
        """An update is there, and waits for the next boot."""
        self.staged = True

    def start_agent(self) -> None:
        """Starts the client, unless somebody has stopped it."""
        if not self.away:
            super().start_agent()

    async def _run(self) -> None:
        locks = self.world.checks.locks
        self.steady = False
        await self._until_yes("steady-state")
        self.steady = True
        await asyncio.sleep(self.rng.uniform(*REST))
        while not self.staged:
            await asyncio.sleep(LOOK)
        await self._until_yes("pre-reboot")
        # Now and then somebody is logged in, and is waited for.
        await asyncio.sleep(self.rng.choice([0.0, 0.0, self.rng.uniform(0.5, 5.0), self.rng.uniform(5.0, 60.0)]))
        if self.process is not None:
            self.process.here()
        locks.rebooting(self)
        self.staged = False
        self.go_down()
        await asyncio.sleep(1e9)

    async def _until_yes(self, path: str) -> None:
        while True:
            try:
                reply = await self._post(path)
                if reply[0] == 200:
                    return
            except (OSError, TimeoutError):
                self.world.checks.counts["lock errors"] += 1
            await asyncio.sleep(self.rng.uniform(*PAUSE))

    async def _post(self, path: str) -> Reply:
        """One request, with the redirects that it is answered with. Raises OSError, TimeoutError."""
        body = msgspec.json.encode({"client_params": {"id": self.client, "group": self.group}})
        headers = {"fleet-lock-protocol": "true"}
        if self.world.dns_away:
            self.world.checks.counts["hit dns-away"] += 1
            raise OSError("no such host")
        self.world.checks.locks.saying(self.name, path)
        url = f"{self.rng.choice(list(self.world.net.stations))}/fleetlock/v1/{path}"
        reply: Any = (0, {}, b"")
        for _ in range(HOPS):
            reply = await self._line.post(url, body, headers, TIMEOUT)
            if reply[0] != 307:
                break
            url = reply[1]["Location"]
        return reply  # type: ignore[no-any-return]

"""Checked of machines with FleetLock clients: what they are answered, what they do, and when they count as back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from rebootd.core.model import State

if TYPE_CHECKING:
    from rebootd.agent.client import Reply
    from rebootd.core.model import Machine
    from tests.sim.lock_machine import LockMachine
    from tests.sim.net import Station
    from tests.sim.truth import Truth

PREFIX = "/fleetlock/v1/"
SLACK = 1.0
"""Seconds by which a leader's idea of times may differ from ours."""
NEWS = 30.0
"""Seconds that a wish may be on its way from a client's request to the drain that follows from it."""
OUT = frozenset({State.REBOOTING, State.QUARANTINED, State.HELD})
"""The states in which a machine may be whose client goes by its leave: all of them count as out."""
BACK = frozenset({State.ENABLING, State.IN_SERVICE})


class LockChecks:
    """Beside the other checks of one world."""

    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        clients = truth.world.plan.lock_clients
        self.names = {client: name for name, client in clients.items()}
        self.machines = frozenset(clients)
        self.told: dict[str, float] = {}
        """Machine: when its client was last told to reboot; until it says something else, or people say otherwise."""
        self.kill_next = 0
        """How many clients are still to die at the moment at which they are told."""
        self._steady: dict[str, float] = {}
        """Machine: when its client's word that it is back last reached a daemon."""
        self._wished: dict[str, float] = {}
        """Machine: when its client's wish last reached a daemon."""
        self._permitted: dict[str, tuple[float, float]] = {}
        """Machine: when its last permit landed, and until when that is valid."""
        self._stood: dict[str, list[tuple[float, State]]] = {name: [] for name in clients}
        """Machine: what landed of it, oldest first."""

    # --- what clients do ------------------------------------------------------------------------------

    def saying(self, name: str, path: str) -> None:
        """A client sends a request: who says that it is back goes by no leave any more."""
        if path == "steady-state":
            self.told.pop(name, None)

    def rebooting(self, machine: LockMachine) -> None:
        """A client reboots its host, because it was told 200."""
        truth, name = self.truth, machine.name
        truth.counts["reboots"] += 1
        truth.counts["lock reboots"] += 1
        truth.world.say(f"{name} reboots, as its client was told")
        record = truth.records.get(name)
        if name in self.told and record is not None and record.state not in OUT:
            truth.fail("S3", f"{name} reboots by leave, and is {record.state.value} by its record: nobody counts it")

    # --- what is said ---------------------------------------------------------------------------------

    def on_request(self, path: str, body: bytes) -> None:
        """A daemon takes a request."""
        now = self.truth.world.loop.now
        (self._steady if path.endswith("/steady-state") else self._wished)[self._who(body)] = now

    def on_reply(self, station: Station, path: str, body: bytes, reply: Reply) -> None:
        """A daemon answers."""
        truth, name = self.truth, self._who(body)
        if reply[0] not in {200, 409}:
            return
        self._speaks(station, name)
        said: dict[str, Any] = msgspec.json.decode(reply[2])
        if reply[0] == 409:
            truth.counts["lock refusals"] += 1
            if not (said["kind"] and said["value"]):
                truth.fail("S8", f"the client of {name} is refused and not told why: {said}")
            return
        if said["machine"] != name:
            truth.fail("COMMITTED", f"the client of {name} is answered for {said['machine']}")
        wanted = BACK if path.endswith("/steady-state") else {State.REBOOTING}
        if said["state"] not in {s.value for s in wanted & self._lately(name)}:
            truth.fail("COMMITTED", f"the client of {name} is told 200 as {said['state']}, which is not committed")
        if path.endswith("/pre-reboot"):
            self._granted(name)

    def _granted(self, name: str) -> None:
        truth, now = self.truth, self.truth.world.loop.now
        truth.counts["lock grants"] += 1
        late = now - self._permitted.get(name, (0.0, 0.0))[1]
        if late > SLACK + truth.world.plan.tuning.deadline:
            truth.fail("S3", f"the client of {name} is told 200, {late:.1f} s after its permit ended")

    def on_delivery(self, path: str, reply: Reply) -> None:
        """An answer reaches a client that waits for it."""
        if reply[0] == 200 and path.endswith("/pre-reboot"):
            name, world = msgspec.json.decode(reply[2])["machine"], self.truth.world
            self.told[name] = world.loop.now
            world.say(f"the client of {name} is told 200")
            process = world.machines[name].process
            if self.kill_next and process is not None:
                self.kill_next -= 1
                self.truth.counts["hit ambush-kill-client"] += 1
                process.kill()

    def _speaks(self, station: Station, name: str) -> None:
        truth = self.truth
        seen, late = truth.leadership, truth.world.loop.now - truth.epoch_at - truth.world.plan.tuning.deadline
        if seen is not None and station.url != truth.world.daemons[seen.daemon].url and late > SLACK:
            truth.fail(
                "SPEAK", f"the client of {name} is answered by {station.url}, which was deposed {late:.1f} s ago"
            )

    def _lately(self, name: str) -> set[State]:
        """The states in which the machine's record has been while the leader that answers may have looked at it."""
        since = self.truth.world.loop.now - self.truth.world.plan.tuning.deadline - SLACK
        stood = self._stood[name]
        before = [state for at, state in stood if at < since][-1:]
        return {*before, *(state for at, state in stood if at >= since)}

    def _who(self, body: bytes) -> str:
        return self.names[msgspec.json.decode(body)["client_params"]["id"]]

    # --- what lands -----------------------------------------------------------------------------------

    def wrote(self, name: str, after: Machine | None, *, ours: bool) -> None:
        """A record landed, or was deleted. What people write past the leader, or forget, they take upon themselves."""
        if name not in self.machines:
            return
        if after is not None:
            self._stood[name].append((self.truth.world.loop.now, after.state))
        if after is None or not ours:
            self.told.pop(name, None)

    def permitted(self, name: str, until: float) -> None:
        """A permit landed."""
        self._permitted[name] = (self.truth.world.loop.now, until)

    def transition(self, before: Machine, after: Machine) -> None:
        """A transition of ours landed."""
        name, truth, now = after.name, self.truth, self.truth.world.loop.now
        if name not in self.machines:
            return
        if before.state is State.QUARANTINED and after.state is not State.QUARANTINED:
            # An operator says that it may come back, wherever its client is.
            self.told.pop(name, None)
        if before.state is State.IN_SERVICE and after.state is State.DRAINING and after.cycle:
            asked = now - self._wished.get(name, -1e9)
            truth.counts["lock drains"] += 1
            if not truth.clocks_touched and asked > truth.policy.fleetlock.wish + NEWS:
                truth.fail("S3", f"{name} is drained for {after.cycle}, and its client last asked {asked:.0f} s ago")
        if before.boot_id != after.boot_id and self._steady.get(name, 0.0) < self._permitted.get(name, (0.0, 0.0))[0]:
            truth.fail("S3", f"{name} is taken for back from its reboot, and its client has not said so")

    def unsettled(self, machine: LockMachine) -> str:
        """Why its client has not got all that it wants (L1), or ""."""
        if machine.process is None or not machine.process.alive:
            return f"the client of {machine.name} does not run"
        if not machine.steady:
            return f"the client of {machine.name} was not told that its word is known"
        return f"the client of {machine.name} waits for its turn" if machine.staged else ""

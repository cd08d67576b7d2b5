"""Reads gates while somebody waits: at an interval, and at once after a machine that they cover has changed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog
from msgspec.structs import replace

from rebootd.core.errors import RebootdError
from rebootd.core.gates import Held, Instances, Reading, Servers, overdue
from rebootd.core.inputs import format_duration
from rebootd.core.model import Event, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebootd.coordinator.fleet import Fleet
    from rebootd.coordinator.gates.sight import Sight
    from rebootd.core.decision import Decision
    from rebootd.core.gates import Value, Verdict
    from rebootd.core.model import Machine, Snapshot
    from rebootd.core.policy_gates import Gate

log = structlog.get_logger(__name__)

SHARE = 4
"""A gate is read this often within its ``max_age``."""
LONGEST = 5.0
"""Seconds that a reading may take."""
GAP = 0.2
"""Seconds between the beginnings of two readings of a gate, however many machines change."""
RETRY = 2.0
"""Seconds after which what could not be read is tried again."""
WAITING = frozenset({State.IN_SERVICE, State.DRAINING, State.DRAINED})
"""States in which a machine waits for gates; one that comes back never does."""


class GateKeeper:
    """Belongs to one leadership. Writes ``readings`` and ``gate_since`` of the fleet."""

    def __init__(
        self,
        fleet: Fleet,
        sight: Sight | None,
        dirty: asyncio.Event,
        *,
        wall: Callable[[], float],
        note: Callable[[Event], None],
    ) -> None:
        self._fleet = fleet
        self._sight = sight
        self._dirty = dirty
        self._wall = wall
        self._note = note
        self._poke = asyncio.Event()
        self._wanted = False
        self._due: dict[str, float] = {}
        self._begun: dict[str, float] = {}
        self._busy: set[str] = set()
        self._overdue: set[str] = set()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._poke.clear()
                wait = self._begin_due(group)
                try:
                    async with asyncio.timeout(wait):
                        await self._poke.wait()
                except TimeoutError:
                    pass

    def changed(self, before: Machine | None, machine: Machine) -> None:
        """A new record of the machine has landed: what covers it must be read again before anybody else may go."""
        moved = before is None or before.since != machine.since
        for gate in self._fleet.policy.gates:
            about = self._about(gate, machine)
            if about or gate.covers is None:
                self._due[gate.name] = self._begun.get(gate.name, -GAP) + GAP
                self._poke.set()
                if moved and about:
                    # What was read while the transaction was on its way knows nothing of it, whatever ``since`` says.
                    self._fleet.gate_changed[gate.name] = self._wall()

    def _about(self, gate: Gate, machine: Machine) -> bool:
        """Whether the gate covers the machine, or counts it among servers or instances, as its last reading tells."""
        reading = self._fleet.readings.get(gate.name)
        value = reading.value if reading is not None else None
        if isinstance(value, Instances) and machine.name in value.nodes:
            return True
        if isinstance(value, Servers) and machine.name in value.members:
            return True
        if gate.covers is not None:
            return gate.covers.matches(machine)
        return not isinstance(value, Instances)

    def judged(self, snapshot: Snapshot, decision: Decision) -> None:
        """Takes note of what the gates were found to say, and whether anybody waits for them."""
        machines = snapshot.machines
        wanted = bool(snapshot.policy.gates) and any(
            (m := machines.get(name)) is not None and m.state in WAITING for name in decision.reasons
        )
        readings = self._fleet.readings
        new = any((r := readings.get(g.name)) is None or r.gate != g for g in snapshot.policy.gates)
        if wanted and (new or not self._wanted):
            self._poke.set()
        self._wanted = wanted
        fleet, now = self._fleet, snapshot.now
        said = decision.gates if wanted else {}
        for name in [n for n in fleet.gate_since if n not in said]:
            del fleet.gate_since[name]
        for gate in snapshot.policy.gates:
            verdict = said.get(gate.name)
            # What is being renewed this moment says nothing new.
            if verdict is not None and not verdict.renewing:
                self._say(gate, verdict, now)
        late = set(overdue(replace(snapshot, gate_since=fleet.gate_since)))
        for gate in snapshot.policy.gates:
            if gate.name in late - self._overdue:
                kept = f"gate {gate.name} has kept machines in for longer than {format_duration(gate.max_block)}"
                detail = f"{kept}: {said[gate.name].what}"
                log.warning("gate-overdue", gate=gate.name, detail=detail)
                self._note(Event(time=now, kind="gate", cause="gate overdue", detail=detail))
        self._overdue = late

    def _say(self, gate: Gate, verdict: Verdict, now: float) -> None:
        name, fleet = gate.name, self._fleet
        held = fleet.gate_since.get(name)
        since = held.since if held is not None and held.word == verdict.word.value else now
        shut = 0.0
        if verdict.kept:
            shut = held.shut if held is not None and held.shut else now
        fleet.gate_since[name] = Held(verdict.word.value, since, shut)

    # --- reading -------------------------------------------------------------------------

    def _begin_due(self, group: asyncio.TaskGroup) -> float | None:
        """Begins every reading that is due; seconds until the next one is."""
        gates = {g.name: g for g in self._fleet.policy.gates}
        for name in [n for n in self._fleet.readings if n not in gates]:
            del self._fleet.readings[name]
        if not self._wanted:
            return None
        now = asyncio.get_running_loop().time()
        wait: float | None = None
        for name, gate in gates.items():
            if name in self._busy:
                continue
            reading = self._fleet.readings.get(name)
            left = self._due.get(name, now) - now if reading is not None and reading.gate == gate else 0.0
            if left <= 0:
                self._busy.add(name)
                self._begun[name] = now
                self._due[name] = now + gate.max_age / SHARE
                group.create_task(self._read(gate))
            else:
                wait = left if wait is None else min(wait, left)
        return wait

    async def _read(self, gate: Gate) -> None:
        name, at = gate.name, self._wall()
        limit = min(LONGEST, gate.max_age)
        value: Value | None = None
        error = ""
        try:
            async with asyncio.timeout(limit):
                value = await self._see(gate)
        except TimeoutError:
            error = f"no answer within {limit:g} s"
        except RebootdError as failure:
            error = str(failure)
        finally:
            self._busy.discard(name)
        if value is None:
            log.info("gate-unreadable", gate=name, error=error)
            self._due[name] = min(self._due[name], asyncio.get_running_loop().time() + RETRY)
        before = self._fleet.readings.get(name)
        self._fleet.readings[name] = reading = Reading(gate=gate, at=at, value=value, error=error[:500])
        if before is None or not self._renewed(before, reading):
            self._dirty.set()
        self._poke.set()

    def _renewed(self, before: Reading, reading: Reading) -> bool:
        """Whether the gate could be judged by the reading before until now, and is judged alike: nothing to decide."""
        gate = reading.gate
        if reading.value is None and gate == before.gate:
            # It cannot be read for the same reason as before.
            return before.value is None and before.error == reading.error
        alike = reading.value == before.value and gate == before.gate
        invalid = max(self._fleet.gate_changed.get(gate.name, 0.0), self._wall() - gate.max_age)
        return alike and before.at > invalid

    async def _see(self, gate: Gate) -> Value:
        if self._sight is None:
            raise RebootdError("this daemon cannot look at gates")
        value = await self._sight.read(gate, self._fleet.addresses)
        if not isinstance(value, Instances):
            return value
        # A drain may move an instance elsewhere: the machine that had it stays covered until it is back.
        before = self._fleet.readings.get(gate.name)
        kept = before.value.nodes if before is not None and isinstance(before.value, Instances) else frozenset()
        machines = self._fleet.machines
        stay = {n for n in kept if n in machines and machines[n].state is not State.IN_SERVICE}
        return replace(value, nodes=value.nodes | stay)

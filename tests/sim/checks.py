"""The invariants, checked from outside: put together, with those of decisions and of time (S5, S8, L1)."""

from __future__ import annotations

from itertools import compress
from operator import not_
from typing import TYPE_CHECKING

from rebootd.core.advance import pending
from rebootd.core.model import Cycle, Machine, State
from rebootd.core.states import WORKING

if TYPE_CHECKING:
    from rebootd.core.decision import Decision
    from rebootd.core.model import Snapshot
    from tests.sim.machines import Machine as SimMachine
    from tests.sim.world import World

from tests.sim.checks_reasons import ReasonChecks
from tests.sim.checks_wire import Wire
from tests.sim.truth import BACK_BOUND, ENDED, PREFIX, STORM, STORM_TIME, Violation

__all__ = ["Checks", "Violation"]


class Checks(Wire):
    """Watches one world."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.reasons = ReasonChecks(self)
        self._cycles_then: list[Cycle] = []
        self._unwanted: dict[str, Machine] = {}
        """Machine: its record, in service, which none of those cycles wants."""
        world.servers.before_destroy = self.before_destroy
        world.servers.before_commit = self.before_commit
        world.consul.observers.append(self.committed)
        world.net.hits = world.servers.hits = self.counts
        world.net.on_request = self.on_request
        world.net.on_reply = self.on_reply
        world.net.on_delivery = self.on_delivery
        world.net.delay = self.delay

    def decided(self, snapshot: Snapshot, decision: Decision) -> None:
        """A leader decided: everybody who waits is told why (S8)."""
        self.decided_at[snapshot.epoch] = self.world.loop.now
        if decision.steps:
            self.gates.decided(snapshot, decision)
            self.pace.decided(snapshot, decision)
        self.reasons.decided(snapshot, decision)
        machines, stepping = snapshot.machines, {s.name for s in decision.steps}
        cycles = [c for c in snapshot.cycles.values() if c.state not in ENDED]
        if cycles != self._cycles_then:
            self._cycles_then, self._unwanted = cycles, {}
        for name in compress(machines, map(not_, map(decision.reasons.get, machines))):
            m, verdict = machines[name], decision.permits.get(name)
            if name in stepping or (verdict is not None and verdict.granted) or self._unwanted.get(name) is m:
                continue
            if m.state is not State.IN_SERVICE:
                self.fail("S8", f"{name} is {m.state.value} and nobody says why")
            elif any(pending(c, m) for c in cycles):
                self.fail("S8", f"{name} waits for a cycle and nobody says why")
            else:
                self._unwanted[name] = m

    def disturbed(self, until: float) -> None:
        """Until then, delays may have causes that S5 does not speak of."""
        self.disturbed_until = max(self.disturbed_until, until)

    def look(self) -> None:
        """From time to time: coming back is not delayed (S5), clocks."""
        self._look_at_locks()
        now, world = self.world.loop.now, self.world
        then, before = self._commits_then
        if now - then >= STORM_TIME:
            commits = self.counts["commits"] - before
            self._commits_then = (now, self.counts["commits"])
            if commits > STORM * len(world.machines):
                self.fail("STORM", f"{commits} transactions in {now - then:.0f} s")
        self._look_at_clock()
        for name, record in self.records.items():
            machine = world.machines.get(name)
            if machine is None or record.state not in {State.VERIFYING, State.ENABLING}:
                self.waiting_since.pop(name, None)
                continue
            version, since = self.waiting_since.get(name, (0, now))
            if version != record.version or not self._well(machine) or world.desk() is None:
                since = now
            self.waiting_since[name] = (record.version, since)
            bound = BACK_BOUND + self.policy.soak + world.plan.hook_seconds * 2
            if now - max(since, self.disturbed_until) > bound:
                self.fail("S5", f"{name} is well and {record.state.value} for {now - since:.0f} s")

    def _well(self, machine: SimMachine) -> bool:
        if machine.name in self.locks.machines:
            return True  # Nobody looks into such a host: nothing but the leader is waited for.
        agent = machine.agent
        if not machine.box.up or machine.process is None or not machine.process.alive or agent is None:
            return False
        return machine.disk.data is not None and b'"status":"passed"' in machine.disk.data

    def _look_at_clock(self) -> None:
        seen, world = self.leadership, self.world
        if seen is None:
            return
        offsets = sorted(m.box.offset for m in world.machines.values() if m.box.up)
        if not offsets:
            return
        daemon = world.daemons[seen.daemon].daemon
        leader = daemon._leader if daemon is not None else None
        if leader is None:
            return
        own = leader._clock() - world.true_time()
        low, high = offsets[(len(offsets) - 1) // 2], offsets[len(offsets) // 2]
        far = min(abs(own - low), abs(own - high)) > self.policy.clock_tolerance + 5.0
        if not far:
            seen.off_since = None
        elif seen.off_since is None:
            seen.off_since = world.loop.now

    def unsettled(self) -> str:
        """Why it is not over yet (L1), or ""."""
        for machine in self.world.machines.values():
            said = self._unsettled(machine)
            if said:
                return said
        for cycle in self.cycles.values():
            if cycle.state not in ENDED and not cycle.standing:
                return f"cycle {cycle.id} is {cycle.state.value}"
        for rack in self.world.plan.racks:
            lock = self.world.consul.entries.get(f"{PREFIX}racks/{rack}/.lock")
            if lock is not None and lock.session:
                return f"rack {rack} is still locked"
        return ""

    def _unsettled(self, machine: SimMachine) -> str:
        name, record = machine.name, self.records.get(machine.name)
        if record is None:
            # Deleted by hand, it may still be known to the leader, who writes it with its next step.
            return "" if machine.gone or name in self.known else f"{name} has no record"
        if record.state in WORKING:
            return f"{name} is {record.state.value} ({record.cause})"
        if machine.gone:
            return ""
        if not machine.box.up:
            return f"{name} is down" if record.state is State.IN_SERVICE else ""
        return self._unsettled_host(machine, record)

    def _unsettled_host(self, machine: SimMachine, record: Machine) -> str:
        name, agent = machine.name, machine.agent
        if name in self.world.lock_machines:
            return self.locks.unsettled(self.world.lock_machines[name])
        if agent is None or machine.process is None or not machine.process.alive:
            return f"the agent of {name} does not run"
        marked = machine.consul.checks.get("rebootd", {}).get("Status") == "critical"
        if record.state is State.IN_SERVICE and (marked or not agent._journal.record.in_service):
            return f"{name} is in service by its record, but not on its host"
        if name in self.maintained and "_node_maintenance" not in machine.consul.checks:
            self.fail("S4", f"the maintenance mark of {name} is gone")
        if record.boot_id != machine.boot_id:
            return f"{name} is at {machine.boot_id}, its record at {record.boot_id}"
        return ""

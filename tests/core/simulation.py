"""A small pure simulation: one store, one leader at a time, hosts, operators and mishaps; seconds are only counted.

It applies what :func:`rebootd.core.decide.decide` decides as the edges would: each step lands by itself or is dropped,
after its guards and its compare-and-set were judged on what the store holds *then*. Every decision and every landing
is handed to :class:`tests.core.invariants.Invariants`.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import msgspec

from rebootd.core.decide import decide
from rebootd.core.decision import Guard
from rebootd.core.failures import UNDONE
from rebootd.core.model import (
    Aside,
    Cycle,
    CycleState,
    Halt,
    Hold,
    Machine,
    Observation,
    OpenWindow,
    RackLock,
    Snapshot,
    State,
)
from rebootd.core.operations_cycles import move_cycle
from rebootd.core.operations_inputs import Because
from rebootd.core.states import WORKING
from rebootd.core.wire import DirectiveKind, PermitRequest, Report
from tests.core.hosts import Host
from tests.core.invariants import Invariants
from tests.core.worlds import NOW, OTHER, OURS

if TYPE_CHECKING:
    from rebootd.core.decision import Change, Decision, MachineStep
    from rebootd.core.policy import Policy


class Simulation:
    """The store's content, what the leader has heard, and the hosts. ``faulty`` lets things go wrong."""

    def __init__(self, seed: int, policy: Policy, *, racks: int = 3, per_rack: int = 3) -> None:
        self.rng = random.Random(seed)
        self.policy = policy
        self.time = NOW
        self.offset = 0.0
        self.faulty = False
        self.hosts = {
            f"m{r}{n:02d}": Host(f"m{r}{n:02d}", f"r{r}") for r in range(1, racks + 1) for n in range(1, per_rack + 1)
        }
        self.machines: dict[str, Machine] = {}
        self.cycles: dict[str, Cycle] = {}
        self.machine_holds: dict[str, Hold] = {}
        self.rack_holds: dict[str, Hold] = {}
        self.windows: dict[str, OpenWindow] = {}
        self.halt: Halt | None = None
        self.racks: dict[str, RackLock] = {}
        self.asides: dict[str, Aside] = {}
        self.set_aside: dict[str, Machine] = {}
        self.epoch = 1
        self.leader_node = "m101"
        self.leads_anew()
        self.late: list[Report] = []
        self.nonces = 0
        self.permitted: list[str] = []
        self.invariants = Invariants(self)

    # --- the leader ----------------------------------------------------------------------

    @property
    def now(self) -> float:
        """The leader's clock."""
        return self.time + self.offset

    def leads_anew(self) -> None:
        """Another leader: it has heard nothing, and nobody waits for its answer."""
        self.observed: dict[str, Observation] = {}
        self.asking: dict[str, PermitRequest] = {}
        self.conflicts: dict[str, str] = {}
        self.faults: tuple[str, ...] = ()
        self.leading_since = self.now
        self.epoch += 1

    def snapshot(self) -> Snapshot:
        """What the leader decides on."""
        return Snapshot(
            now=self.now,
            epoch=self.epoch,
            policy=self.policy,
            machines=dict(self.machines),
            observed=dict(self.observed),
            cycles=dict(self.cycles),
            machine_holds=dict(self.machine_holds),
            rack_holds=dict(self.rack_holds),
            windows=tuple(self.windows.values()),
            halt=self.halt,
            racks=dict(self.racks),
            asking=dict(self.asking),
            asides=dict(self.asides),
            conflicts=dict(self.conflicts),
            leading_since=self.leading_since,
            clock_skew=self.offset,
            leader_node=self.leader_node,
            faults=self.faults,
        )

    def called(self, report: Report) -> None:
        """A report arrives; what the reception refuses is refused."""
        record = self.machines.get(report.name)
        if record is not None:
            if report.machine_id != record.machine_id:
                self.conflicts[report.name] = f"two machine-ids report as {report.name}"
                return
            if report.boot_id in record.boots and report.boot_id != record.boot_id:
                return
        # Accepted, and put down only after the next decision has landed: also what the boot before this one said.
        ghost = self.hosts[report.name].ghost
        if ghost is not None and record is not None and record.boot_id == ghost.boot_id and self.mishap(0.2):
            self.late.append(ghost)
        if self.mishap(0.05):
            self.late.append(report)
        if not self.mishap(0.1):
            self.hear(report)

    def hear(self, report: Report) -> None:
        """The report is put down, as the leader's fleet does it."""
        before, enabled_at = self.observed.get(report.name), 0.0
        result = report.result
        if result is not None and result.kind is DirectiveKind.ENABLE and result.ok:
            same = before is not None and before.report.result is not None and before.report.result.id == result.id
            enabled_at = before.enabled_at if same and before is not None and before.enabled_at else self.now
        self.observed[report.name] = Observation(report=report, at=self.now, enabled_at=enabled_at)

    def asks(self, request: PermitRequest) -> None:
        """A permit is asked for."""
        if not self.mishap(0.1):
            self.asking[request.name] = request

    def take_over(self, change: Change) -> None:
        """An operator's change lands as a whole: it was planned on what the store holds now."""
        for step in change.steps:
            assert step.after is not None
            self.machines[step.name] = step.after
        for write in change.writes:
            assert write.key.startswith("cycles/")
            if write.value is not None:
                cycle = msgspec.json.decode(write.value, type=Cycle)
                self.cycles[cycle.id] = cycle

    # --- what happens to hosts -----------------------------------------------------------

    def mishap(self, share: float) -> bool:
        """Whether something goes wrong now; never when all is well."""
        return self.faulty and self.rng.random() < share

    def new_nonce(self) -> str:
        """A nonce that was never used."""
        self.nonces += 1
        return f"n{self.nonces}"

    def reboots(self, host: Host) -> None:
        """The host runs its reboot command, with a permit in hand."""
        self.invariants.on_reboot(host)
        self.permitted.append(host.name)

    def reboots_by_hand(self) -> None:
        """A person reboots those whose boot_id has spent its permit: nothing else helps them."""
        for host in self.hosts.values():
            record = self.machines.get(host.name)
            if host.up and record is not None and record.flag.startswith(UNDONE) and record.boot_id == host.boot_id:
                host.down(self.time + 5)

    # --- one round -----------------------------------------------------------------------

    def round(self, seconds: float) -> Decision:
        """Hosts live, the leader decides, what it decided lands in some order; then time passes."""
        for host in self.rng.sample(list(self.hosts.values()), len(self.hosts)):
            if not self.mishap(0.15):
                host.live(self)
        snapshot = self.snapshot()
        decision = decide(snapshot)
        self.invariants.on_decision(snapshot, decision)
        work = [*decision.steps]
        self.rng.shuffle(work)
        for step in work:
            if not self.mishap(0.15):
                self.land(snapshot, step)
            if self.mishap(0.05):
                self.rng.choice(list(self.hosts.values())).live(self)
        self._land_locks(decision)
        for cycle, _ in decision.cycles:
            if not self.mishap(0.2) and self.cycles.get(cycle.id) is snapshot.cycles.get(cycle.id):
                self.cycles[cycle.id] = cycle
        self._answer(snapshot, decision)
        for report in self.late:
            self.hear(report)
        self.late = []
        self.time += seconds
        return decision

    def _land_locks(self, decision: Decision) -> None:
        for rack in decision.locks:
            if not self.mishap(0.2) and self.racks.get(rack, RackLock()).holder == "free":
                self.racks[rack] = OURS
        for rack in decision.unlocks:
            if not self.mishap(0.2) and self.racks[rack].holder == "ours":
                del self.racks[rack]

    def land(self, snapshot: Snapshot, step: MachineStep) -> bool:
        """One step's transaction, on what the store holds now."""
        record = self.machines.get(step.name)
        after = step.after
        if after is None or record is not step.before or step.name in self.asides or not self._guarded(snapshot, step):
            return False
        if step.lock:
            if self.racks.get(step.lock, RackLock()).holder != "free":
                return False
            self.racks[step.lock] = OURS
        if step.unlock:
            if self.racks.get(step.unlock, RackLock()).holder != "ours":
                return False
            del self.racks[step.unlock]
        self.machines[step.name] = after
        self.invariants.on_landing(step)
        return True

    def _guarded(self, snapshot: Snapshot, step: MachineStep) -> bool:
        rack = step.before.rack if step.before else ""
        return not (
            (Guard.NO_HALT in step.guards and self.halt is not None)
            or (Guard.POLICY_UNCHANGED in step.guards and self.policy is not snapshot.policy)
            or (Guard.NOT_HELD in step.guards and (step.name in self.machine_holds or rack in self.rack_holds))
            or (Guard.RACK_LOCKED in step.guards and self.racks.get(rack, RackLock()).holder != "ours")
        )

    def _answer(self, snapshot: Snapshot, decision: Decision) -> None:
        for name, request in snapshot.asking.items():
            if self.asking.get(name) is request:
                del self.asking[name]
            verdict, record = decision.permits[name], self.machines.get(name)
            permit = record.permit if record else None
            landed = permit is not None and (permit.boot_id, permit.nonce) == (request.boot_id, request.nonce)
            if verdict.granted and landed and permit is not None and not self.mishap(0.15):
                until = self.time + max(0.0, permit.until - snapshot.now)
                self.hosts[name].grant = (request.boot_id, request.nonce, until)

    # --- when all is well again ----------------------------------------------------------

    def heal(self, policy: Policy) -> None:
        """Faults stop, and people tidy up: no halt, no foreign lock, nothing unreadable, every host comes back."""
        self.faulty = False
        self.policy, self.offset, self.faults, self.halt = policy, 0.0, (), None
        self.machines |= self.set_aside
        self.asides, self.set_aside, self.late = {}, {}, []
        self.racks = {rack: lock for rack, lock in self.racks.items() if lock is not OTHER}
        self.windows = {"w": OpenWindow(id="w", start=self.time, end=self.time + 1e6)}
        self.leads_anew()
        for host in self.hosts.values():
            host.agent = host.up
            host.back_at = min(host.back_at, self.time + 30)

    def resumes(self) -> None:
        """An operator resumes every cycle that is paused or has halted itself."""
        for cycle in list(self.cycles.values()):
            if cycle.state in {CycleState.PAUSED, CycleState.HALTED}:
                self.take_over(move_cycle(self.snapshot(), "resume", cycle.id, Because(by="alice")))

    def at_rest(self) -> bool:
        """Nobody is on the way, and every cycle that may end has ended."""
        ended = {CycleState.DONE, CycleState.CANCELLED}
        return (
            len(self.machines) == len(self.hosts)
            and not any(m.state in WORKING for m in self.machines.values())
            and all(c.state in ended for c in self.cycles.values())
            and not self.racks
            and all(self.hosts[m.name].rests(m.state) for m in self.machines.values() if m.state is State.IN_SERVICE)
        )

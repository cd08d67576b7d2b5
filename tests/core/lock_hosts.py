"""Hosts of the pure simulation that have no agent: FleetLock clients, and the leader that speaks for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from rebootd.core.failures import UNDONE
from rebootd.core.fleetlock import machine_id, nonce, spent, voices
from rebootd.core.model import Call, CycleState, Snapshot, State
from rebootd.core.policy_fleetlock import FleetLocks
from rebootd.core.states import WORKING
from rebootd.core.wire import PermitRequest
from tests.core.hosts import Host
from tests.core.simulation import Simulation

if TYPE_CHECKING:
    from rebootd.core.model import Machine
    from rebootd.core.policy import Policy
    from rebootd.core.wire import Report

ASKS = {State.DRAINED, State.REBOOTING, State.HELD}
"""States in which the leader asks for the permit, if the client asks to reboot."""


class LockHost(Host):
    """One machine with a FleetLock client: steady after each start, then, once ``staged``, it asks to reboot."""

    def __init__(self, name: str, rack: str) -> None:
        self.told = ""
        self.staged = False
        super().__init__(name, rack)

    @property
    def boot_id(self) -> str:
        """The boot that its last permit was for: it knows of no other."""
        return self.told

    def start(self) -> None:
        super().start()
        self.steady = False

    def live(self, sim: Simulation) -> None:
        """One turn: what it was answered, and what it asks now."""
        assert isinstance(sim, LockSimulation)
        call = sim.calls.pop(self.name, None)
        if not self.up:
            if sim.time >= self.back_at:
                self.start()
            return
        if not self.agent:
            # Its client starts anew, and has forgotten what it was told.
            self.steady, self.grant = False, None
            return
        record = sim.machines.get(self.name)
        if call is not None and call.steady and record is not None and _back(record) and not sim.mishap(0.1):
            self.steady = True
        if self._goes(sim):
            return
        if self.steady and sim.faulty and sim.rng.random() < 0.1:
            self.staged = True
        if (not self.steady or self.staged) and not sim.mishap(0.2) and sim.may_call(self.name):
            sim.calls[self.name] = Call(self.name, "default", not self.steady)
            if self.steady and record is not None and record.state in ASKS:
                sim.asks(
                    PermitRequest(
                        name=self.name, machine_id=record.machine_id, boot_id=record.boot_id, nonce=nonce(record)
                    )
                )

    def _goes(self, sim: Simulation) -> bool:
        if self.grant is None or not self.steady:
            return False
        boot_id, self.nonce, until = self.grant
        self.grant = None
        if sim.time >= until or sim.mishap(0.1):
            return False
        self.told, self.staged = boot_id, False
        sim.reboots(self)
        self.down(sim.time + (2000.0 if sim.mishap(0.1) else sim.rng.uniform(3, 25)))
        return True

    def rests(self, state: State) -> bool:
        """Whether nothing is left that it wants."""
        return self.up and self.agent and self.steady and not self.staged and state is State.IN_SERVICE


def _back(record: Machine) -> bool:
    client = record.fleetlock
    here = record.state in {State.IN_SERVICE, State.ENABLING}
    return here and client is not None and not client.asked and not spent(record)


class LockSimulation(Simulation):
    """Every second host has a FleetLock client, and the policy mostly lets them ask."""

    def __init__(self, seed: int, policy: Policy, *, racks: int = 3, per_rack: int = 3) -> None:
        self.calls: dict[str, Call] = {}
        super().__init__(seed, policy, racks=racks, per_rack=per_rack)
        self.hosts = {
            name: LockHost(name, host.rack) if index % 2 else host
            for index, (name, host) in enumerate(sorted(self.hosts.items()))
        }

    @property
    def policy(self) -> Policy:
        return self._policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        self._policy = replace(policy, fleetlock=FleetLocks(not self.mishap(0.2), 60.0))

    def mishap(self, share: float) -> bool:
        return getattr(self, "faulty", False) and super().mishap(share)

    @property
    def clients(self) -> list[LockHost]:
        return [host for host in self.hosts.values() if isinstance(host, LockHost)]

    def may_call(self, name: str) -> bool:
        """Whether the leader takes a call for more than a mistake."""
        record = self.machines.get(name)
        known = record is not None and record.fleetlock is not None
        return name not in self.conflicts and name not in self.asides and (known or record is None)

    def leads_anew(self) -> None:
        super().leads_anew()
        self.calls.clear()

    def hear(self, report: Report) -> None:
        if not isinstance(self.hosts[report.name], LockHost):
            super().hear(report)

    def snapshot(self) -> Snapshot:
        """With what the leader says for those that have no agent."""
        plain = super().snapshot()
        nodes = {host.name: {"rack": host.rack, "role": "web"} for host in self.clients}
        heard = dict(voices(self.machines, self.calls, nodes, {}, self.policy, self.now))
        for name in heard:
            assert self.machines.get(name) is None or self.machines[name].machine_id == machine_id(name)
        return replace(plain, observed={**plain.observed, **heard}, calls=dict(self.calls))

    def reboots_by_hand(self) -> None:
        super().reboots_by_hand()
        for host in self.clients:
            record = self.machines.get(host.name)
            if host.up and record is not None and record.flag.startswith(UNDONE):
                host.down(self.time + 5)

    def at_rest(self) -> bool:
        """As ever; the cycle of FleetLock clients never ends."""
        ended = {CycleState.DONE, CycleState.CANCELLED}
        return (
            len(self.machines) == len(self.hosts)
            and not any(m.state in WORKING for m in self.machines.values())
            and all(c.state in ended for c in self.cycles.values() if not c.standing)
            and not self.racks
            and all(self.hosts[m.name].rests(m.state) for m in self.machines.values() if m.state is State.IN_SERVICE)
        )

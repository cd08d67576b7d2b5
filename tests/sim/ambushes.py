"""Ambushes: what happens at the very moment at which a transaction is about to land, or a permit is delivered."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from rebootd.core.model import Hold
from rebootd.core.model import Machine as Record
from rebootd.store.memory_faults import View
from rebootd.store.port import Delete, Set

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rebootd.store.port import Op
    from tests.sim.daemons import SimDaemon
    from tests.sim.people import People
    from tests.sim.plan import Fault
    from tests.sim.world import World

LAG = 10.0
"""Seconds by which a server's answers may be old: what is left of its lease when it is leader no more, and more."""


class Ambushes:
    """Faults that wait for their moment, and what they share with the others."""

    def __init__(self, world: World, people: People) -> None:
        self.world = world
        self.people = people

    def _leader(self) -> SimDaemon | None:
        return self.world.leader()

    def _session_ended(self, fault: Fault) -> None:
        entry = self.world.consul.entries.get("rebootd/leader")
        if entry is not None and entry.session:
            self.world.consul.destroy_session(entry.session)

    def _kill_leader(self, fault: Fault) -> None:
        leader = self._leader()
        if leader is not None and leader.process is not None:
            leader.process.kill()

    def _ambush(self, fault: Fault, what: Callable[[str, str], str]) -> Callable[[], None]:
        """``what`` is called with machine and rack when a transaction that takes a machine to ``target`` is to land."""
        servers, records = self.world.servers, self.world.checks.records

        def ambush(actor: str, ops: Sequence[Op]) -> str | None:
            for op in ops:
                if not isinstance(op, Set) or not op.key.startswith("rebootd/machines/"):
                    continue
                record = msgspec.json.decode(op.value, type=Record)
                before = records.get(record.name)
                if before is not None and before.state == record.state:
                    continue
                if fault.target in {"any", record.state.value}:
                    self.world.checks.counts[f"hit {fault.kind}"] += 1
                    self.world.say(f"AMBUSH {fault.kind} at {record.name} -> {record.state.value} of {actor}")
                    return what(record.name, record.rack)
            return None

        servers.ambushes.append(ambush)
        return lambda: servers.ambushes.remove(ambush) if ambush in servers.ambushes else None

    def _ambush_halt(self, fault: Fault) -> Callable[[], None]:
        def spring(_name: str, _rack: str) -> str:
            self.people.raw(Set("rebootd/control/halt", b"at the worst moment"))
            self.world.loop.after(60.0, self.people.raw, Delete("rebootd/control/halt"))
            return ""

        return self._ambush(fault, spring)

    def _ambush_hold(self, fault: Fault) -> Callable[[], None]:
        def spring(name: str, _rack: str) -> str:
            hold = Hold(kind="machine", name=name, since=self.world.true_time(), reason="at the worst moment")
            self.people.raw(Set(f"rebootd/holds/machine/{name}", msgspec.json.encode(hold)))
            self.world.loop.after(60.0, self.people.raw, Delete(f"rebootd/holds/machine/{name}"))
            return ""

        return self._ambush(fault, spring)

    def _ambush_cancel(self, fault: Fault) -> Callable[[], None]:
        """An operator cancels every cycle."""

        def spring(_name: str, _rack: str) -> str:
            self.people.move("cancel", every=True)
            return ""

        return self._ambush(fault, spring)

    def _ambush_policy(self, fault: Fault) -> Callable[[], None]:
        def spring(_name: str, _rack: str) -> str:
            self.people.raw(Set("rebootd/policy", b"racks:\n  open: 1\n  unavailable: 0\nfailure_budget: 100\n"))
            self.world.loop.after(60.0, self.people.raw, Set("rebootd/policy", self.world.plan.policy.encode()))
            return ""

        return self._ambush(fault, spring)

    def _ambush_lock(self, fault: Fault) -> Callable[[], None]:
        """Our rack lock is ended and taken by an engineer."""

        def spring(_name: str, rack: str) -> str:
            self.people.end_lock_session(rack)
            self.people.take_rack(rack)
            self.world.loop.after(60.0, self.people.give_rack, rack)
            return ""

        return self._ambush(fault, spring)

    def _lag(self) -> Callable[[], None]:
        """One of two servers lags behind from now on, as one does that was their leader until a moment ago."""
        trouble, consul = self.world.servers.trouble, self.world.consul
        view = trouble.stale = View(dict(consul.entries), consul.index)

        def undo() -> None:
            if trouble.stale is view:
                trouble.stale = None

        return undo

    def _ambush_stale(self, fault: Fault) -> Callable[[], None]:
        """The leader loses its leadership, and what landed last is not everywhere when the next one begins."""

        def spring(_name: str, _rack: str) -> str:
            self.world.loop.after(LAG, self._lag())
            self.world.loop.after(0.0, self._session_ended, fault)
            return ""

        return self._ambush(fault, spring)

    def _ambush_session(self, fault: Fault) -> Callable[[], None]:
        """The leader loses its leadership."""

        def spring(_name: str, _rack: str) -> str:
            self._session_ended(fault)
            return ""

        return self._ambush(fault, spring)

    def _ambush_kill(self, fault: Fault) -> Callable[[], None]:
        """The leader is killed after it sent its transaction, which lands."""

        def spring(_name: str, _rack: str) -> str:
            self._kill_leader(fault)
            return ""

        return self._ambush(fault, spring)

    def _ambush_lost(self, fault: Fault) -> Callable[[], None]:
        """It lands, and the answer is lost."""
        return self._ambush(fault, lambda *_: "lost")

    def _ambush_late(self, fault: Fault) -> Callable[[], None]:
        """It lands later, and nobody hears of it."""
        return self._ambush(fault, lambda *_: "late")

    def _ambush_crash(self, fault: Fault) -> Callable[[], None]:
        """The machine loses its power ``value`` seconds later."""

        def spring(name: str, _rack: str) -> str:
            self.world.loop.after(fault.value, self.world.machines[name].down)
            return ""

        return self._ambush(fault, spring)

    def _ambush_kill_client(self, fault: Fault) -> None:
        """The next FleetLock client that is told to go dies just then, and is started anew."""
        self.world.checks.locks.kill_next += 1

    def _ambush_by_hand(self, fault: Fault) -> Callable[[], None]:
        """Break-glass on the machine ``value`` seconds later."""

        def spring(name: str, _rack: str) -> str:
            self.world.loop.after(fault.value, self.world.machines[name].break_glass)
            return ""

        return self._ambush(fault, spring)

    def _ambush_stop_agent(self, fault: Fault) -> Callable[[], None]:
        """The machine's agent stands still for ``value`` seconds."""

        def spring(name: str, _rack: str) -> str:
            process = self.world.machines[name].process
            if process is not None:
                process.stop()
                self.world.loop.after(fault.value, process.go_on)
            return ""

        return self._ambush(fault, spring)

    def _ambush_boot_id(self, fault: Fault) -> None:
        """A boot_id changes under a running agent just as its permit comes (a restored virtual machine)."""
        self.world.checks.permit_trick = "restore"

    def _ambush_freeze(self, fault: Fault) -> None:
        """The agent is stopped just as its permit comes."""
        self.world.checks.permit_trick = "freeze"

    def _ambush_forget(self, fault: Fault) -> None:
        """The agent loses its journal and its life just as its permit comes."""
        self.world.checks.permit_trick = "forget"

    def _ambush_answer(self, fault: Fault) -> None:
        """The permit's answer is held up on its way."""
        self.world.checks.permit_trick = "delay"

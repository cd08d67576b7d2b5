"""Faults of what stands beside the fleet: gates, controllers, detection, clocks that leap, and spoilt records."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import yaml

from rebootd.core.policy_gates import ConsulQuorum, NomadQuorum
from rebootd.core.wire import Tri
from rebootd.store.port import Delete, Set
from tests.sim.ambushes import Ambushes
from tests.sim.instruments import ODD

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rebootd.store.port import Op
    from tests.sim.instruments import Instrument
    from tests.sim.machines import Machine
    from tests.sim.plan import Fault


class MoreFaults(Ambushes):
    """Half of all kinds; the other half is :mod:`tests.sim.faults`."""

    def _machine(self, fault: Fault) -> Machine:
        raise NotImplementedError

    def _to_boot(self, fault: Fault) -> Machine:
        raise NotImplementedError

    def _count(self, where: object, name: str) -> Callable[[], None]:
        setattr(where, name, getattr(where, name) + 1)
        return lambda: setattr(where, name, max(0, getattr(where, name) - 1))

    # --- gates ----------------------------------------------------------------------------------------

    def _instrument(self, fault: Fault) -> Instrument | None:
        """What the fault is about; None when the seed has no gate of that kind."""
        here = self.world.instruments
        return here.by_kind.get(fault.target) if here is not None else None

    def _gate(self, fault: Fault, what: str) -> Callable[[], None] | None:
        instrument = self._instrument(fault)
        return None if instrument is None else self._count(instrument, what)

    def _gate_blocks(self, fault: Fault) -> Callable[[], None] | None:
        return self._gate(fault, "blocks")

    def _gate_away(self, fault: Fault) -> Callable[[], None] | None:
        return self._gate(fault, "away")

    def _gate_hangs(self, fault: Fault) -> Callable[[], None] | None:
        return self._gate(fault, "hangs")

    def _gate_slow(self, fault: Fault) -> Callable[[], None] | None:
        return self._gate(fault, "slow")

    def _gate_odd(self, fault: Fault) -> Callable[[], None] | None:
        instrument = self._instrument(fault)
        if instrument is None:
            return None
        odd = list(ODD)[int(fault.value) % len(ODD)]
        instrument.odd.append(odd)
        return lambda: instrument.odd.remove(odd) if odd in instrument.odd else None

    def _gate_flaps(self, fault: Fault) -> None:
        """It shuts and opens, some seconds each."""
        instrument = self._instrument(fault)
        if instrument is None:
            return
        for turn in range(12):
            at = turn * max(1.0, min(fault.seconds, 20.0))
            if fault.at + at < self.world.plan.faults_for:
                self.world.loop.after(at, self._flip, instrument, turn % 2 == 0)

    @staticmethod
    def _flip(instrument: Instrument, shut: bool) -> None:
        instrument.blocks = int(shut)

    def _service_thin(self, fault: Fault) -> Callable[[], None] | None:
        """An instance fails on a machine that is well."""
        here = self.world.instruments
        web = [n for n, labels in self.world.plan.labels.items() if labels["role"] == "web"]
        if here is None or not web:
            return None
        name = web[int(fault.at * 1000) % len(web)]
        here.thin.add(name)
        return lambda: here.thin.discard(name)

    def _sight_away(self, fault: Fault) -> Callable[[], None] | None:
        here = self.world.instruments
        if here is None:
            return None
        here.blind(1)
        return lambda: here.blind(-1)

    def _node_check(self, fault: Fault) -> Callable[[], None] | None:
        """A check of the node's own fails: its disk, say."""
        here = self.world.instruments
        if here is None:
            return None
        name = self._machine(fault).name
        here.sick[name] = "disk"
        here.changed()

        def undo() -> None:
            here.sick.pop(name, None)
            here.changed()

        return undo

    def _ambush_gate(self, fault: Fault) -> Callable[[], None] | None:
        """A gate shuts just as a machine goes out."""
        here, plan = self.world.instruments, self.world.plan
        if here is None or not plan.features.gates:
            return None
        instrument = here.by_kind[plan.features.gates[0]]

        def spring(_name: str, _rack: str) -> str:
            instrument.blocks = 1
            self.world.loop.after(90.0, self._flip, instrument, False)
            return ""

        return self._ambush(fault, spring)

    # --- power ----------------------------------------------------------------------------------------

    def _stuck(self, fault: Fault) -> None:
        self._to_boot(fault).next_boot = "stuck"

    def _all_stuck(self, fault: Fault) -> None:
        """Whoever boots next in a rack does not come up by itself, and whoever is down there now neither."""
        for machine in self.world.machines.values():
            if machine.box.rack == fault.target:
                machine.next_boot = "stuck"
                machine.stuck = machine.stuck or not machine.box.up

    def _cut_long(self, fault: Fault) -> Callable[[], None]:
        """A machine that nobody reaches for long is not dead for that."""
        return self._count(self._machine(fault).box, "cut_agents")

    def _controller(self, fault: Fault, what: str) -> Callable[[], None]:
        trouble = self.world.controllers.trouble
        trouble[fault.target] = what

        def undo() -> None:
            trouble.pop(fault.target, None)

        return undo

    def _controller_away(self, fault: Fault) -> Callable[[], None]:
        return self._controller(fault, "away")

    def _controller_late(self, fault: Fault) -> Callable[[], None]:
        return self._controller(fault, "late")

    def _controller_deaf(self, fault: Fault) -> Callable[[], None]:
        return self._controller(fault, "deaf")

    def _controller_silent(self, fault: Fault) -> Callable[[], None]:
        return self._controller(fault, "silent")

    def _ambush_power(self, fault: Fault) -> Callable[[], None]:
        """As the leave for a power cycle lands, the leader dies or freezes, or the machine comes back by itself."""
        servers = self.world.servers
        how = int(fault.at * 1000) % 4

        def ambush(actor: str, ops: Sequence[Op]) -> str | None:
            for op in ops:
                if isinstance(op, Set) and op.key.startswith("rebootd/power/") and b'"asked"' in op.value:
                    name = op.key.removeprefix("rebootd/power/")
                    self.world.checks.counts["hit ambush-power"] += 1
                    self.world.say(f"AMBUSH {fault.kind} {how} at the power cycle of {name} by {actor}")
                    return self._spring_power(fault, actor, name, how)
            return None

        servers.ambushes.append(ambush)
        return lambda: servers.ambushes.remove(ambush) if ambush in servers.ambushes else None

    def _spring_power(self, fault: Fault, actor: str, name: str, how: int) -> str:
        daemon, machine = self.world.daemons[actor], self.world.machines[name]
        if how == 0:
            self._kill_leader(fault)
        elif how == 1:
            daemon.stop()
            self.world.loop.after(30.0, daemon.go_on)
        elif how == 2:
            return "lost"
        else:
            # It comes back while the leader is still looking for the system behind the controller.
            self.world.loop.after(60.0, self._controller(replace(fault, target=name), "late"))
            machine.box.cut_agents = 0
            machine.stuck = False
            machine.boot()
        return ""

    # --- pace -----------------------------------------------------------------------------------------

    def _reboot_required(self, fault: Fault) -> None:
        self._machine(fault).find(Tri.YES, "kernel")

    def _detection_breaks(self, fault: Fault) -> Callable[[], None]:
        machine = self._machine(fault)
        machine.find(Tri.UNKNOWN, "the tool is missing")
        return machine.find

    def _still_required(self, fault: Fault) -> Callable[[], None]:
        """A boot does not change what is required."""
        machine = self._machine(fault)
        machine.find(Tri.YES, "a package that wants it for ever")
        machine.sticky = True

        def undo() -> None:
            machine.sticky = False
            machine.find()

        return undo

    def _small_group(self, fault: Fault) -> Callable[[], None]:
        """A policy written past rebootd has a group of two that nobody allowed an outage."""
        plan = self.world.plan
        policy = yaml.safe_load(plan.policy)
        names = [n for members in plan.racks.values() for n in members][:2]
        selector = f"name in ({', '.join(names)})"
        policy["quorums"] = [*policy.get("quorums", []), {"name": "pair", "selector": selector}]
        self.people.raw(Set("rebootd/policy", yaml.safe_dump(policy).encode()))
        return lambda: self.people.raw(Set("rebootd/policy", plan.policy.encode()))

    def _member_down(self, fault: Fault) -> Callable[[], None] | None:
        """A member of a group goes down by itself, or is held."""
        members = [n for n, labels in self.world.plan.labels.items() if labels["role"] in {"consul", "db"}]
        names = members or sorted(self.world.machines)
        name = names[int(fault.at * 1000) % len(names)]
        if int(fault.at) % 2:
            self.world.machines[name].down()
            return None
        self.people.hold("machine", name)
        return lambda: self.people.release("machine", name)

    def _emergency(self, fault: Fault) -> None:
        """A cycle that skips windows, and some of the gates that may be skipped."""
        gates = self.world.checks.policy.gates
        may = [g.name for g in gates if not isinstance(g.test, ConsulQuorum | NomadQuorum)]
        ask = partial(self.people.start, "*", emergency=True, skip=may[: int(fault.value)])
        ask()

        def again() -> None:
            """Who got no answer looks whether it is under way."""
            if not any(c.emergency for c in self.world.checks.cycles.values()):
                ask()

        self.world.loop.after(30.0, again)

    def _client_away(self, fault: Fault) -> Callable[[], None] | None:
        """Somebody stops a FleetLock client, whatever it was told, and starts it again later."""
        names = sorted(self.world.lock_machines)
        if not names:
            return None
        machine = self.world.lock_machines[names[int(fault.at * 1000) % len(names)]]
        machine.away += 1
        self.world.checks.counts["hit client-away"] += machine.name in self.world.checks.locks.told
        if machine.process is not None:
            machine.process.kill()

        def undo() -> None:
            machine.away -= 1
            machine.start_agent()

        return undo

    # --- clocks and records ---------------------------------------------------------------------------

    def _clock_leap(self, fault: Fault) -> Callable[[], None]:
        """Somebody's wall clock leaps, by minutes to years; mostly the leader's, who is then followed by another."""
        self.world.checks.clocks_touched = True
        leader = self._leader()
        if fault.target in self.world.machines or leader is None:
            boxes = [self._machine(fault).box]
        else:
            boxes = list({id(d.box): d.box for d in self.world.daemons.values()}.values())
            if int(fault.at * 1000) % 2:
                boxes = [leader.box]
        for box in boxes:
            box.offset += fault.value
        if leader is not None and len(boxes) > 1:
            self._kill_leader(fault)

        def undo() -> None:
            for box in boxes:
                box.offset -= fault.value

        return undo

    def _spoil(self, fault: Fault) -> Callable[[], None] | None:
        """An engineer writes nonsense where a record is expected; later it is put right or taken away."""
        entries = self.world.consul.entries
        key = self._spoilt(fault)
        if not key:
            return None
        before = entries[key].value if key in entries else None
        junk = JUNK[int(fault.value * 1000) % len(JUNK)]
        self.world.say(f"somebody writes {junk!r} to {key}")
        self.world.checks.edited = True
        self.people.raw(Set(key, junk))

        def undo() -> None:
            entry = entries.get(key)
            if entry is not None and entry.value == junk:
                self.people.raw(Delete(key) if before is None or "/machines/" in key else Set(key, before))

        return undo

    def _spoilt(self, fault: Fault) -> str:
        names, racks = sorted(self.world.machines), list(self.world.plan.racks)
        pick = int(fault.at * 1000)
        name, rack = names[pick % len(names)], racks[pick % len(racks)]
        cycles = sorted(self.world.checks.cycles)
        places = {
            "cycle": f"cycles/{cycles[pick % len(cycles)]}" if cycles else "cycles/k0",
            "window": "windows/w0",
            "hold": f"holds/machine/{name}",
            "hold-rack": f"holds/rack/{rack}",
            "power": f"power/{name}",
            "rack-record": f"racks/{rack}/record",
            "durations": "durations",
            "policy": "policy",
            "halt": "control/halt",
            "machine": f"machines/{name}" if f"rebootd/machines/{name}" in self.world.consul.entries else "",
        }
        return f"rebootd/{places[fault.target]}" if places[fault.target] else ""

    def _edit_stamps(self, fault: Fault) -> None:
        """Somebody edits the times in a record: they are of another year."""
        key = f"rebootd/machines/{self._machine(fault).name}"
        entry = self.world.consul.entries.get(key)
        if entry is None:
            return
        try:
            record = msgspec.json.decode(entry.value)
        except msgspec.MsgspecError:
            return
        if not isinstance(record, dict):
            return
        by = (-400 * 86400.0, 400 * 86400.0, 3600.0)[int(fault.at * 1000) % 3]
        for stamp in ("since", "ended", "required_since", "turned_back_at"):
            if record.get(stamp):
                record[stamp] += by
        self.world.say(f"somebody edits the times in {key} by {by:.0f} s")
        self.people.raw(Set(key, msgspec.json.encode(record)))


JUNK = (b"{", b"", b"[]", b'{"name": 7}', b"\xff\xfe\x00", b'{"id":"other","selector":"*","created":1}', b"null", b"{}")

"""How each kind of fault is done, and undone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rebootd.core.advance import pending
from rebootd.core.model import CycleState, State
from rebootd.store.port import Delete, Set
from tests.sim.faults_more import MoreFaults

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.sim.loop import Process
    from tests.sim.machines import Machine
    from tests.sim.plan import Fault

PATIENT = frozenset(
    {
        "halt", "raw-halt", "hold", "hold-rack", "pause", "cancel", "start", "policy", "window-close", "clear",
        "ambush-lock", "ambush-halt", "ambush-cancel", "end-lock-session",
        "rack-lock", "unlock", "maintenance", "gate-blocks", "gate-away", "gate-hangs", "gate-slow", "gate-odd",
        "gate-flaps", "service-thin", "sight-away", "node-check", "ambush-gate", "reboot-required", "detection-breaks",
        "still-required", "small-group", "emergency", "again",
    }
)  # fmt: skip
"""What people may do without delaying any machine's return (S5 stays in force)."""
AT_ONCE = frozenset({"power-cut", "rack-power", "end-lock-session", "kill-leader", "kill-daemon", "care"})
"""Faults that are over as soon as they have happened: S5 counts from when a host is up and a leader leads again."""
BURNS = 60.0
"""Seconds in which a fuse of 60 steps has burnt, where anything goes on."""
UNDER_WAY, FEW = 8, 0.1
"""Cycles at once, and the share of machines that may have to go when the next one comes."""
AFTERMATH = 120.0
"""Seconds after a fault in which a return may still be delayed by it."""


class Faults(MoreFaults):
    """Schedules a plan's faults in a world."""

    def schedule(self, faults: list[tuple[int, Fault]]) -> None:
        """All of them, by their index in the plan."""
        for index, fault in faults:
            self.world.loop.at(fault.at, self._begin, index, fault)

    def _begin(self, index: int, fault: Fault) -> None:
        world = self.world
        if fault.kind.startswith("ambush"):
            fault = replace(fault, seconds=max(fault.seconds, 300.0))
        seconds = max(0.0, min(fault.seconds, world.plan.faults_for - world.loop.now))
        world.say(f"FAULT {index}: {fault}")
        if fault.kind not in PATIENT:
            world.checks.disturbed(world.loop.now + (30.0 if fault.kind in AT_ONCE else seconds + AFTERMATH))
        done: Callable[[Fault], Callable[[], None] | None] = getattr(self, "_" + fault.kind.replace("-", "_"))
        undo = done(fault)
        world.checks.counts[f"fault {fault.kind}"] += 1
        if undo is not None:
            world.loop.after(seconds, undo)

    # --- who ------------------------------------------------------------------------------------------

    def _machine(self, fault: Fault) -> Machine:
        machines, records = self.world.machines, self.world.checks.records
        if fault.target == "out":
            for name in sorted(records):
                if records[name].state in {
                    State.DRAINING,
                    State.DRAINED,
                    State.REBOOTING,
                    State.VERIFYING,
                    State.ENABLING,
                }:
                    return machines[name]
        if fault.target in machines:
            return machines[fault.target]
        names = sorted(machines)
        return machines[names[int(fault.at * 1000) % len(names)]]

    def _to_boot(self, fault: Fault) -> Machine:
        """Who is about to reboot, or has not yet: what is special about its next boot is to be seen."""
        records = sorted(self.world.checks.records.items())
        about = [n for n, r in records if r.state in {State.DRAINING, State.DRAINED}]
        names = about if fault.target == "out" and about else [n for n, r in records if not r.outcomes]
        return self.world.machines[names[int(fault.at * 1000) % len(names)]] if names else self._machine(fault)

    def _set(self, where: object, name: str, value: float) -> Callable[[], None]:
        setattr(where, name, value)
        return lambda: setattr(where, name, 0.0)

    # --- network --------------------------------------------------------------------------------------

    def _lossy(self, fault: Fault) -> Callable[[], None]:
        return self._set(self.world.net.trouble, "lose", fault.value)

    def _repeats(self, fault: Fault) -> Callable[[], None]:
        return self._set(self.world.net.trouble, "repeat", fault.value)

    def _slow(self, fault: Fault) -> Callable[[], None]:
        self.world.net.trouble.slow_by = 20.0
        return self._set(self.world.net.trouble, "slow", fault.value)

    def _cut_agents(self, fault: Fault) -> Callable[[], None]:
        return self._count(self.world.daemons[fault.target].box, "cut_agents")

    def _cut_machine(self, fault: Fault) -> Callable[[], None]:
        return self._count(self._machine(fault).box, "cut_agents")

    def _dns_away(self, fault: Fault) -> Callable[[], None]:
        return self._count(self.world, "dns_away")

    # --- store ----------------------------------------------------------------------------------------

    def _store_away(self, fault: Fault) -> Callable[[], None]:
        return self._count(self.world.servers.trouble, "away")

    def _store_cut(self, fault: Fault) -> Callable[[], None]:
        return self._count(self.world.daemons[fault.target].box, "cut_store")

    def _store_late(self, fault: Fault) -> Callable[[], None]:
        self.world.servers.trouble.late_by = 15.0
        return self._set(self.world.servers.trouble, "late", fault.value)

    def _store_loses(self, fault: Fault) -> Callable[[], None]:
        trouble = self.world.servers.trouble
        trouble.lose_request, trouble.lose_reply = fault.value / 2, fault.value / 2

        def undo() -> None:
            trouble.lose_request = trouble.lose_reply = 0.0

        return undo

    def _store_twice(self, fault: Fault) -> Callable[[], None]:
        return self._set(self.world.servers.trouble, "twice", fault.value)

    def _store_stale(self, fault: Fault) -> Callable[[], None]:
        return self._lag()

    def _check_flaps(self, fault: Fault) -> Callable[[], None]:
        daemon = self.world.daemons[fault.target]
        self.world.consul.set_check(daemon.box.name, daemon.check, "critical")
        return lambda: self.world.check(daemon, "passing")

    def _index_reset(self, fault: Fault) -> None:
        self.world.consul.reset_index()

    # --- processes ------------------------------------------------------------------------------------

    def _kill_daemon(self, fault: Fault) -> None:
        process = self.world.daemons[fault.target].process
        if process is not None:
            process.kill()

    def _light(self, process: Process, fault: Fault) -> None:
        """It is killed at the await to which it comes after so many steps."""
        process.fuse = int(fault.value)

        def look() -> None:
            self.world.checks.counts["hit fuse"] += process.fuse < 0 and not process.alive

        self.world.loop.after(BURNS, look)

    def _fuse_leader(self, fault: Fault) -> None:
        leader = self._leader()
        if leader is not None and leader.process is not None:
            self._light(leader.process, fault)

    def _stop_leader(self, fault: Fault) -> Callable[[], None] | None:
        leader = self._leader()
        if leader is None:
            return None
        leader.stop()
        return leader.go_on

    def _stop_daemon(self, fault: Fault) -> Callable[[], None]:
        daemon = self.world.daemons[fault.target]
        daemon.stop()
        return daemon.go_on

    def _hand_over(self, fault: Fault) -> None:
        leader = self._leader()
        if leader is not None and leader.daemon is not None and leader.process is not None:
            leader.process.spawn(leader.daemon.stop())

    def _kill_agent(self, fault: Fault) -> None:
        process = self._machine(fault).process
        if process is not None:
            process.kill()

    def _fuse_agent(self, fault: Fault) -> None:
        process = self._machine(fault).process
        if process is not None:
            self._light(process, fault)

    def _stop_agent(self, fault: Fault) -> Callable[[], None] | None:
        process = self._machine(fault).process
        if process is None:
            return None
        process.stop()
        return process.go_on

    def _cut_write(self, fault: Fault) -> None:
        self._machine(fault).disk.cut = "before" if int(fault.at * 1000) % 2 else "after"

    # --- hosts ----------------------------------------------------------------------------------------

    def _power_cut(self, fault: Fault) -> None:
        self._machine(fault).down()

    def _rack_power(self, fault: Fault) -> None:
        for machine in self.world.machines.values():
            if machine.box.rack == fault.target:
                machine.down()

    def _flap(self, fault: Fault) -> None:
        machine = self._machine(fault)
        for i in range(4):
            delay = i * max(20.0, fault.seconds)
            if fault.at + delay < self.world.plan.faults_for:
                self.world.loop.after(delay, machine.down)

    def _hang(self, fault: Fault) -> None:
        self._to_boot(fault).next_boot = "hang"

    def _never(self, fault: Fault) -> None:
        self._to_boot(fault).next_boot = "never"

    def _same_id(self, fault: Fault) -> None:
        self._to_boot(fault).next_boot = "same-id"

    def _other_rack(self, fault: Fault) -> None:
        self._to_boot(fault).next_boot = "rack"

    def _disk_full(self, fault: Fault) -> Callable[[], None]:
        return self._count(self._machine(fault).disk, "full")

    def _bad_journal(self, fault: Fault) -> None:
        self._machine(fault).lose_journal()

    def _clock_jump(self, fault: Fault) -> Callable[[], None]:
        self.world.checks.clocks_touched = True
        leader = self._leader()
        if fault.target == "daemons":
            # A leader takes the time at its election and keeps it: so that one leads by it, the present one ends.
            boxes = list({id(d.box): d.box for d in self.world.daemons.values()}.values())
        else:
            boxes = [leader.box if fault.target == "leader" and leader is not None else self._machine(fault).box]
        for box in boxes:
            box.offset += fault.value
        if fault.target == "daemons" and leader is not None and leader.process is not None:
            leader.process.kill()

        def undo() -> None:
            for box in boxes:
                box.offset -= fault.value

        return undo

    def _hook_fails(self, fault: Fault) -> Callable[[], None]:
        failing = self._machine(fault).failing
        hook = ("drain.d", "pre-reboot.d", "enable.d")[int(fault.at * 1000) % 3]
        failing.add(hook)
        return lambda: failing.discard(hook)

    def _post_boot_fails(self, fault: Fault) -> Callable[[], None]:
        failing = self._machine(fault).failing
        failing.add("post-boot.d")
        return lambda: failing.discard("post-boot.d")

    def _no_reboot(self, fault: Fault) -> Callable[[], None]:
        """The reboot command is taken, and the host stays up."""
        failing = self._machine(fault).failing
        failing.add("reboot")
        return lambda: failing.discard("reboot")

    def _local_consul_away(self, fault: Fault) -> Callable[[], None]:
        return self._count(self._machine(fault).consul, "away")

    # --- people ---------------------------------------------------------------------------------------

    def _halt(self, fault: Fault) -> Callable[[], None]:
        self.people.halt()
        return self.people.unhalt

    def _raw_halt(self, fault: Fault) -> Callable[[], None]:
        self.people.raw(Set("rebootd/control/halt", b"stop, says the engineer"))
        return lambda: self.people.raw(Delete("rebootd/control/halt"))

    def _hold(self, fault: Fault) -> Callable[[], None]:
        name = self._machine(fault).name
        self.people.hold("machine", name)
        return lambda: self.people.release("machine", name)

    def _hold_rack(self, fault: Fault) -> Callable[[], None]:
        self.people.hold("rack", fault.target)
        return lambda: self.people.release("rack", fault.target)

    def _pause(self, fault: Fault) -> Callable[[], None]:
        self.people.move("pause")
        return lambda: self.people.move("resume")

    def _cancel(self, fault: Fault) -> None:
        self.people.move("cancel")

    def _start(self, fault: Fault) -> None:
        self.people.start("role=web" if int(fault.at * 1000) % 3 == 0 else "*")

    def _policy(self, fault: Fault) -> Callable[[], None]:
        plan = self.world.plan
        stricter = "racks:\n  open: 1\n  unavailable: 1\nsoak: 3s\nfailure_budget: 100\n"
        self.people.policy(stricter)
        return lambda: self.people.policy(plan.policy)

    def _window_close(self, fault: Fault) -> Callable[[], None]:
        closed = (
            "windows:\n  required: true\n  calendar:\n"
            "    - {name: later, start: '0 0 1 1 *', duration: 1h, timezone: UTC}\nfailure_budget: 100\n"
        )
        self.people.policy(closed)
        if int(fault.at * 1000) % 2:
            self.world.loop.after(fault.seconds / 2, self.people.open_window, fault.seconds / 4)
        return lambda: self.people.policy(self.world.plan.policy)

    def _clear(self, fault: Fault) -> None:
        for name, record in sorted(self.world.checks.records.items()):
            if record.state is State.QUARANTINED:
                self.people.clear(name)
                return

    def _rack_lock(self, fault: Fault) -> Callable[[], None]:
        self.people.take_rack(fault.target)
        return lambda: self.people.give_rack(fault.target)

    def _unlock(self, fault: Fault) -> None:
        self.people.give_rack(fault.target)

    def _end_lock_session(self, fault: Fault) -> None:
        self.people.end_lock_session(fault.target)

    def _again(self, fault: Fault) -> None:
        """The next cycle, as soon as few machines have to go for those that there are."""
        checks = self.world.checks
        running = [c for c in checks.cycles.values() if c.state is CycleState.RUNNING and not c.standing]
        to_go = sum(any(pending(c, m) for c in running) for m in checks.records.values())
        if len(running) < UNDER_WAY and to_go <= len(checks.records) * FEW:
            self.people.start()

    def _care(self, fault: Fault) -> None:
        """People put right what they can, while everything goes on."""
        self.people.clean_up()

    def _edit_record(self, fault: Fault) -> None:
        self.people.edit_record(self._machine(fault).name, fault.at % 1.0)

    def _maintenance(self, fault: Fault) -> None:
        machine = self._machine(fault)
        machine.consul.checks["_node_maintenance"] = {
            "ID": "_node_maintenance",
            "Status": "critical",
            "Notes": "by hand",
        }
        self.world.looked_different()
        machine.world.checks.maintained.add(machine.name)

    def _by_hand(self, fault: Fault) -> None:
        """Break-glass: what ``rebootd agent enable --local`` leaves in the journal of a machine that is out."""
        self._machine(fault).break_glass()

"""People: operators at the leader's desk, engineers with a shell on Consul, and whoever cleans up afterwards."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec
import yaml

from rebootd.core import operations
from rebootd.core.errors import RebootdError
from rebootd.core.failures import UNDONE
from rebootd.core.model import Cycle, CycleState, Hold, Machine, OpenWindow, PowerCycle, RackRecord, State
from rebootd.core.operations_cycles import move_cycle, start_cycle
from rebootd.core.operations_inputs import Because
from rebootd.core.operations_policy import apply_policy
from rebootd.store.port import Delete, Lock, Session, Set, Unlock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rebootd.core.decision import Change
    from rebootd.core.model import Snapshot
    from rebootd.store.port import Entry
    from tests.sim.world import World

BECAUSE = Because(by="sim", reason="the simulation")
ENGINEER = "engineers"
RECORDS: dict[str, Any] = {
    "machines/": Machine,
    "cycles/": Cycle,
    "holds/": Hold,
    "windows/": OpenWindow,
    "power/": PowerCycle,
    "racks/": RackRecord,
}
"""What is expected under which prefix."""


class People:
    """Everybody who does something to the fleet. Requests that fail are not asked again, except when cleaning up."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.locks: dict[str, str] = {}

    def ask(self, plan: Callable[[Snapshot], Change]) -> None:
        """One request at the leader's desk; a daemon that dies meanwhile answers nobody."""
        desk = self.world.desk()
        daemon = self.world.leader()
        if desk is None or daemon is None or daemon.process is None:
            return
        daemon.process.spawn(self._asked(desk, plan))

    async def _asked(self, desk: Any, plan: Callable[[Snapshot], Change]) -> None:
        try:
            await desk.apply(plan)
        except RebootdError as error:
            self.world.say(f"operator is refused: {error}")

    # --- operators --------------------------------------------------------------------------------

    def start(self, selector: str = "*", cycle: str = "", *, emergency: bool = False, skip: Sequence[str] = ()) -> None:
        """A new cycle; an emergency goes past windows and the gates in ``skip``."""
        self.world.people += 1
        plan = self.world.plan
        name = cycle or f"c{self.world.people}"
        self.ask(
            lambda s: start_cycle(
                s,
                cycle_id=name,
                selector=selector,
                target=plan.target,
                failure_budget=plan.failure_budget,
                because=BECAUSE,
                allow_empty=True,
                emergency=emergency,
                skip_gates=skip,
            )
        )

    def move(self, verb: str, *, every: bool = False) -> None:
        """Pauses, resumes or cancels the first cycle that there is, or all of them."""
        legal = {"pause": {"running"}, "resume": {"paused", "halted"}, "cancel": {"running", "paused", "halted"}}[verb]
        for cycle in sorted(self.world.checks.cycles.values(), key=lambda c: c.id):
            if cycle.state.value in legal and not (cycle.standing and verb == "cancel"):
                name = cycle.id
                self.ask(lambda s, name=name: move_cycle(s, verb, name, BECAUSE))  # type: ignore[misc]
                if not every:
                    return

    def halt(self) -> None:
        """Everything stops."""
        self.ask(lambda s: operations.halt(s, BECAUSE))

    def unhalt(self) -> None:
        """Everything goes on."""
        self.ask(lambda s: operations.unhalt(s, BECAUSE))

    def hold(self, kind: str, name: str) -> None:
        """A machine or a rack stays out."""
        self.ask(lambda s: operations.hold(s, kind, name, BECAUSE))

    def release(self, kind: str, name: str) -> None:
        """It may come back."""
        self.ask(lambda s: operations.release(s, kind, name, BECAUSE))

    def clear(self, name: str) -> None:
        """A quarantined machine may prove itself again."""
        self.ask(lambda s: operations.clear_quarantine(s, name, BECAUSE))

    def policy(self, text: str) -> None:
        """Another policy."""
        self.ask(lambda s: apply_policy(s, text, BECAUSE))

    def open_window(self, seconds: float) -> None:
        """A one-shot window."""
        self.ask(lambda s: operations.open_window(s, window_id="", start=None, length=seconds, because=BECAUSE))

    # --- engineers with a shell -------------------------------------------------------------------

    def raw(self, *ops: Any) -> None:
        """A write past rebootd; nothing happens if Consul refuses it."""
        try:
            self.world.servers.by(ENGINEER, ops)
        except RebootdError as error:
            self.world.say(f"engineer is refused: {error}")

    def take_rack(self, rack: str) -> None:
        """``consul lock rebootd/racks/<rack>``."""
        if rack in self.locks:
            return
        key = f"rebootd/racks/{rack}/.lock"
        entry = self.world.consul.entries.get(key)
        if entry is not None and entry.session:
            return
        session = self.world.consul.create_session(Session(id="", name="consul lock", node="consul"))
        try:
            self.world.servers.by(ENGINEER, [Lock(key, b"", session)])
        except RebootdError:
            self.world.consul.destroy_session(session)
            return
        self.locks[rack] = session
        self.world.say(f"an engineer locks {rack}")

    def give_rack(self, rack: str) -> None:
        """The command ends."""
        session = self.locks.pop(rack, "")
        if session:
            self.world.say(f"the engineer gives {rack} back")
            self.raw(Unlock(f"rebootd/racks/{rack}/.lock", b"", session))
            self.world.consul.destroy_session(session)

    def end_lock_session(self, rack: str) -> None:
        """``consul session destroy`` of our own lock."""
        entry = self.world.consul.entries.get(f"rebootd/racks/{rack}/.lock")
        if entry is not None and entry.session and entry.session not in self.locks.values():
            self.world.say(f"an engineer destroys the session that holds {rack}")
            self.world.consul.destroy_session(entry.session)

    def edit_record(self, name: str, how: float) -> None:
        """A record is changed by hand: made unreadable, or given another label."""
        key = f"rebootd/machines/{name}"
        entry = self.world.consul.entries.get(key)
        if entry is None:
            return
        if how < 0.3:
            self.world.say(f"somebody spoils the record of {name}")
            self.raw(Set(key, b"{"))
            self.world.loop.after(120.0, self.repair, name, entry.value)
        else:
            try:
                record = msgspec.json.decode(entry.value, type=dict[str, Any])
            except msgspec.MsgspecError:
                return  # spoilt already
            self.world.say(f"somebody edits the record of {name}")
            record["labels"] = {**record.get("labels", {}), "edited": "yes"}
            self.raw(Set(key, msgspec.json.encode(record)))

    def repair(self, name: str, value: bytes) -> None:
        """The record is deleted, so that the machine reports anew."""
        entry = self.world.consul.entries.get(f"rebootd/machines/{name}")
        if entry is not None and entry.value == b"{":
            self.raw(Delete(f"rebootd/machines/{name}"))

    def _machines_back(self) -> bool:
        """Technicians press buttons, operators clear what is quarantined and forget what is gone."""
        done = True
        for name, machine in self.world.machines.items():
            if name not in self.world.checks.records:
                machine.revive()
        if self.world.leader() is None:
            # The hosts of the daemons themselves: nobody can say more of them than that they are dark.
            for daemon in self.world.daemons.values():
                if daemon.box.name in self.world.machines:
                    self.world.machines[daemon.box.name].revive()
        for name, record in list(self.world.checks.records.items()):
            machine = self.world.machines[name]
            if machine.stuck and record.state in {State.QUARANTINED, State.HELD, State.IN_SERVICE}:
                machine.power_cycle()
                done = False
            elif machine.gone and record.state in {State.QUARANTINED, State.HELD, State.IN_SERVICE}:
                self.ask(lambda s, name=name: operations.forget(s, name, BECAUSE, force=True))  # type: ignore[misc]
                done = False
            elif record.state is State.QUARANTINED and machine.box.up:
                self.clear(name)
                done = False
        return done

    def _clients_rebooted(self) -> bool:
        """Whose permitted reboot did not happen has no other permit for that boot: it is rebooted by hand."""
        records = self.world.checks.records
        done = True
        for name, machine in self.world.lock_machines.items():
            record = records.get(name)
            if record is not None and record.flag.startswith(UNDONE) and machine.steady and machine.box.up:
                machine.down()
                done = False
        return done

    def end_maintenance(self, name: str) -> None:
        """``consul maint -disable``: the mark must still be there."""
        checks = self.world.checks
        if "_node_maintenance" not in self.world.machines[name].consul.checks:
            checks.fail("S4", f"the maintenance mark of {name} is gone")
        checks.maintained.discard(name)
        self.world.machines[name].consul.checks.pop("_node_maintenance", None)
        self.world.looked_different()

    def _repair(self, entries: Mapping[str, Entry]) -> None:
        """Whatever is no record where one should be is deleted."""
        for key, entry in list(entries.items()):
            kind = next((k for prefix, k in RECORDS.items() if key.startswith(f"rebootd/{prefix}")), None)
            if kind is None or key.endswith("/.lock"):
                continue
            try:
                record = msgspec.json.decode(entry.value, type=kind)
                named = {key.rpartition("/")[2], key.rpartition("/")[0].rpartition("/")[2]}
                whose = getattr(record, "name", "") or getattr(record, "id", "") or getattr(record, "machine", "")
                if not whose or whose in named:
                    continue
            except msgspec.MsgspecError:
                pass
            self.raw(Delete(key))

    def _policy_back(self, entries: Mapping[str, Entry]) -> bool:
        """The plan's policy is in force again; with machines that are gone for good, one without what needs them."""
        plan = self.world.plan
        wanted = _document(plan.policy)
        if any(m.gone for m in self.world.machines.values()):
            wanted = {k: v for k, v in wanted.items() if k not in {"gates", "quorums"}}
        entry = entries.get("rebootd/policy")
        if entry is not None and _same(entry.value, wanted):
            return True
        self.raw(Set("rebootd/policy", yaml.safe_dump(wanted, sort_keys=False).encode()))
        return False

    # --- cleaning up -------------------------------------------------------------------------------

    def clean_up(self) -> bool:
        """One round of putting things right after the faults; whether nothing was left to do."""
        entries = self.world.consul.entries
        for rack in list(self.locks):
            self.give_rack(rack)
        self._repair(entries)
        done = self._policy_back(entries)
        for name in sorted(self.world.checks.maintained):
            self.end_maintenance(name)
        done = self._machines_back() and done
        if "rebootd/control/halt" in entries:
            self.raw(Delete("rebootd/control/halt"))
            done = False
        done = self._clients_rebooted() and done
        for key in list(entries):
            if key.startswith("rebootd/holds/"):
                kind, name = key.removeprefix("rebootd/holds/").split("/")
                self.release(kind, name)
                done = False
        for cycle in self.world.checks.cycles.values():
            if cycle.state in {CycleState.PAUSED, CycleState.HALTED}:
                name = cycle.id
                verb = "resume" if cycle.state is CycleState.PAUSED or cycle.standing else "cancel"
                self.ask(lambda s, name=name, verb=verb: move_cycle(s, verb, name, BECAUSE))  # type: ignore[misc]
                done = False
        return done


def _same(value: bytes, wanted: Any) -> bool:
    try:
        return bool(_document(value) == wanted)
    except (yaml.YAMLError, UnicodeDecodeError):
        return False


@lru_cache(maxsize=64)
def _document(text: str | bytes) -> Any:
    """What the YAML says; nobody changes it. It is looked at after each step of putting things right."""
    return yaml.safe_load(text)

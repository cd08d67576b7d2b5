"""From a decision to writes: adds indexes, write ids and sessions to what the core decided, no rule."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from rebootd.coordinator.records import encode
from rebootd.core import audit
from rebootd.core.codec import read_json
from rebootd.core.decision import Change, Decision, Guard, Lane, MachineStep, PowerStep
from rebootd.core.model import Cycle, Event, Machine, PowerCycle
from rebootd.store.port import (
    CheckIndex,
    CheckNotExists,
    CheckSession,
    Delete,
    Entry,
    Lock,
    Op,
    Set,
)
from rebootd.store.writer import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from rebootd.coordinator.audit import Chain
    from rebootd.coordinator.fleet import Fleet
    from rebootd.coordinator.locks import RackLocks
    from rebootd.coordinator.ring import Ring
    from rebootd.core.audit import Asked, Line


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What lands together: the writer's step, and what it means once it has landed.

    ``keys`` are the keys that the step writes or is guarded by; they are read again when it is dropped.
    """

    step: Step
    events: tuple[Event, ...]
    machine: Machine | None = None
    before: Machine | None = None
    keys: tuple[str, ...] = ()
    lock: str = ""
    unlock: str = ""
    session: str = ""
    power: PowerCycle | None = None
    spare: bool = False
    """Nothing depends on it: when it is denied, that is an alarm, and no reason to stop."""

    @property
    def name(self) -> str:
        """The machine's name, or a key that it writes."""
        return self.machine.name if self.machine is not None else self.keys[0]


DENIED_REST = 600.0
"""Seconds after which what is old, and may not be deleted, is tried again."""


class Planner:
    """Turns decisions and changes into :class:`Work`."""

    def __init__(self, fleet: Fleet, locks: RackLocks, ring: Ring, new_id: Callable[[], str], chain: Chain) -> None:
        self._fleet = fleet
        self._chain = chain
        self._locks = locks
        self._ring = ring
        self._new_id = new_id
        self._epoch = chain.epoch
        self._denied: dict[str, float] = {}

    def plan(self, decision: Decision, now: float) -> tuple[list[Work], Iterator[Work]]:
        """All the work of a decision, in two parts.

        What depends on more than its machine's own record is made ready at once, before anything else can change; the
        rest when it is asked for (after a power loss it would fill the memory), or not at all.
        """
        work: list[Work] = []
        plain: list[MachineStep] = []
        for s in decision.steps:
            if not (s.lock or s.unlock or s.guards):
                plain.append(s)
            elif not s.lock or self._locks.can_lock:
                # A step whose rack cannot be locked for want of a session waits for the next tick.
                work.append(self._machine(s, now))
        work += [self._rack(now, lock=rack) for rack in decision.locks if self._locks.can_lock]
        work += [self._rack(now, unlock=rack) for rack in decision.unlocks]
        work += [self._cycle(cycle, event) for cycle, event in decision.cycles]
        work += [self._power(step) for step in decision.power]
        keys = [self._fleet.keys.prefix + relative for relative in decision.prune]
        for key in self._denied.keys() - self._fleet.index.keys():
            # Somebody else has deleted it.
            del self._denied[key]
            self._fleet.alarm(f"denied {key}", "")
        work += [self._gone(key) for key in keys if now - self._denied.get(key, -DENIED_REST) >= DENIED_REST]
        # A record that was read anew meanwhile is not what was decided on.
        machines = self._fleet.machines
        return work, (self._machine(s, now) for s in plain if machines.get(s.name) is s.before)

    def restamped(self, busy: Collection[str], now: float) -> Iterator[Work]:
        """Writes records anew that were stamped by a clock far ahead, each once; ``busy`` ones are written anyway."""
        ahead, self._fleet.ahead = self._fleet.ahead, set()
        for name in sorted(ahead.difference(busy)):
            machine = self._fleet.machines.get(name)
            if machine is not None:
                yield self._machine(MachineStep(name=name, before=machine, after=machine, events=()), now)

    def change(self, change: Change, now: float, asked: Asked | None = None) -> Work:
        """An operator's change as one piece of work; ``asked`` None: it is the leader's own."""
        fleet = self._fleet
        ops: list[Op] = []
        for write in change.writes:
            key = fleet.keys.prefix + write.key
            known = fleet.index.get(key, 0)
            if write.value is not None:
                ops.append(Set(key=key, value=self._stamped(write.value), cas=known))
            elif known:
                ops.append(Delete(key=key, cas=known))
        events = list(change.events)
        machine = before = None
        unlock = change.unlock
        for step in change.steps:
            made = self._machine(replace(step, events=()), now)
            ops += made.step.ops
            events = [*step.events, *events]
            machine, before, unlock = made.machine, made.before, unlock or step.unlock
        session = fleet.rack_records[unlock].session if unlock and unlock in fleet.rack_records else ""
        if change.unlock:
            ops += self._locks.unlock_ops(change.unlock, now, self._epoch)
        numbered = self._ring.number(events)
        work = Work(
            step=Step(ops=tuple(ops), lane=Lane.BACK.value, note=numbered),
            events=numbered,
            machine=machine,
            before=before,
            keys=tuple(op.key for op in ops),
            unlock=unlock,
            session=session,
        )
        return self._linked(work, audit.of_change(change, asked, now), needed=asked is not None)

    def _linked(self, work: Work, line: Line | None, *, needed: bool) -> Work:
        """With a line in the audit log, if it gets one. ``needed``: without the line it must not happen."""
        late = self._chain.link(line, needed=needed)
        if late is None:
            return work
        # In a lane of its own, so that a slow disk holds up nothing but what is audited.
        step = msgspec.structs.replace(work.step, late=late, lane=f"{work.step.lane} audited")
        return replace(work, step=step)

    def _stamped(self, value: bytes) -> bytes:
        """The record with a fresh write id, if it has a place for one (the policy is YAML and has none)."""
        try:
            record: object = read_json(value, object)
        except msgspec.DecodeError:
            return value
        if not isinstance(record, dict) or "write_id" not in record:
            return value
        return msgspec.json.encode(record | {"write_id": self._new_id()})

    def _machine(self, step: MachineStep, now: float) -> Work:
        fleet, keys = self._fleet, self._fleet.keys
        key = keys.machine(step.name)
        index = fleet.index.get(key, 0)
        ops: list[Op] = []
        session = ""
        if step.lock:
            ops += self._locks.lock_ops(step.lock, now, self._epoch)
            session = _session(ops)
        if step.unlock:
            session = fleet.rack_records[step.unlock].session
            ops += self._locks.unlock_ops(step.unlock, now, self._epoch)
        after = None
        if step.after is None:
            ops.append(Delete(key=key, cas=index))
        else:
            after = replace(step.after, write_id=self._new_id(), epoch=self._epoch)
            ops.append(Set(key=key, value=encode(after), cas=index))
        guards = self._guards(step)
        numbered = self._ring.number(step.events)
        work = Work(
            step=Step(ops=tuple(ops), guards=guards, lane=step.lane.value, note=numbered),
            events=numbered,
            machine=after,
            before=step.before,
            keys=(*(op.key for op in ops), *(g.key for g in guards)),
            lock=step.lock,
            unlock=step.unlock,
            session=session,
        )
        return self._linked(work, audit.of_step(step, now), needed=True)

    def _guards(self, step: MachineStep) -> tuple[CheckIndex | CheckNotExists | CheckSession, ...]:
        fleet, keys = self._fleet, self._fleet.keys
        machine = step.before or step.after
        if machine is None:
            return ()
        out: list[CheckIndex | CheckNotExists | CheckSession] = []
        if Guard.NO_HALT in step.guards:
            out.append(CheckNotExists(key=keys.halt))
        if Guard.POLICY_UNCHANGED in step.guards:
            index = fleet.index.get(keys.policy, 0)
            out.append(CheckIndex(key=keys.policy, index=index) if index else CheckNotExists(key=keys.policy))
        if Guard.RACK_LOCKED in step.guards:
            session = fleet.rack_records[machine.rack].session
            out.append(CheckSession(key=keys.rack_lock(machine.rack), session=session))
        if Guard.NOT_HELD in step.guards:
            out.append(CheckNotExists(key=keys.rack_hold(machine.rack)))
            out.append(CheckNotExists(key=keys.machine_hold(step.name)))
        return tuple(out)

    def _rack(self, now: float, *, lock: str = "", unlock: str = "") -> Work:
        if lock:
            ops = self._locks.lock_ops(lock, now, self._epoch)
            session = _session(ops)
        else:
            session = self._fleet.rack_records[unlock].session
            ops = self._locks.unlock_ops(unlock, now, self._epoch)
        return Work(
            step=Step(ops=tuple(ops), lane=Lane.BACK.value if unlock else Lane.OUT.value),
            events=(),
            keys=tuple(op.key for op in ops),
            lock=lock,
            unlock=unlock,
            session=session,
        )

    def _power(self, step: PowerStep) -> Work:
        """Lands only if the machine is still where it was: same state, same boot_id."""
        fleet, name = self._fleet, step.after.machine
        key, machine = fleet.keys.power_cycle(name), fleet.keys.machine(name)
        after = replace(step.after, write_id=self._new_id(), epoch=self._epoch)
        op = Set(key=key, value=encode(after), cas=fleet.index.get(key, 0))
        guard = CheckIndex(key=machine, index=fleet.index[machine])
        numbered = self._ring.number((step.event,))
        work = Work(
            step=Step(ops=(op,), guards=(guard,), lane=Lane.OUT.value, note=numbered),
            events=numbered,
            keys=(key, machine),
            power=after,
        )
        return self._linked(work, audit.of_event(step.event), needed=True)

    def _gone(self, key: str) -> Work:
        op = Delete(key=key, cas=self._fleet.index[key])
        return Work(step=Step(ops=(op,), lane=Lane.BACK.value), events=(), keys=(key,), spare=True)

    def spared(self, work: Work, denied: str, now: float) -> None:
        """A spare piece of work was denied (the store's words), or has landed (``""``)."""
        for key in work.keys:
            self._denied.pop(key, None)
            if denied:
                self._denied[key] = now
            self._fleet.alarm(f"denied {key}", f"the store denies our write of {key}: {denied}" if denied else "")

    def _cycle(self, cycle: Cycle, event: Event) -> Work:
        key = self._fleet.keys.cycle(cycle.id)
        value = encode(replace(cycle, write_id=self._new_id()))
        op = Set(key=key, value=value, cas=self._fleet.index.get(key, 0))
        numbered = self._ring.number((event,))
        work = Work(step=Step(ops=(op,), lane=Lane.BACK.value, note=numbered), events=numbered, keys=(key,))
        return self._linked(work, audit.of_event(event), needed=False)


def _session(ops: list[Op]) -> str:
    return next(op.session for op in ops if isinstance(op, Lock))


def landed(work: Work, indexes: dict[str, int], fleet: Fleet, now: float) -> None:
    """Takes over into the fleet what has landed."""
    lock = fleet.keys.rack_lock(work.lock) if work.lock else ""
    for op in work.step.ops:
        index = indexes.get(op.key, 0)
        if isinstance(op, Set):
            _own_write(fleet, op, index, work, now)
        elif isinstance(op, Delete):
            fleet.forget(op.key, now)
        elif isinstance(op, Lock) and op.key == lock:
            fleet.absorb(Entry(op.key, op.value, index, session=work.session), now)
        else:
            fleet.absorb(Entry(op.key, b"", index), now)


def _own_write(fleet: Fleet, op: Set, index: int, work: Work, now: float) -> None:
    machine = work.machine
    if machine is not None and op.key == fleet.keys.machine(machine.name):
        # What we encoded a moment ago need not be decoded again (10,000 machines after a power loss).
        fleet.index[op.key] = index
        fleet.machines[machine.name] = machine
        fleet.asides.pop(machine.name, None)
    else:
        fleet.absorb(Entry(op.key, op.value, index), now)

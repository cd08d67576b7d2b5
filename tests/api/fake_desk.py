"""A leader in memory: a real snapshot, real decisions, and changes that are really applied to it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from rebootd.core.audit import Head
from rebootd.core.decide import decide
from rebootd.core.decision import Change, Decision, MachineStep, directive_id
from rebootd.core.errors import NotLeader, Refused
from rebootd.core.fleetlock_record import Call, Word
from rebootd.core.forecast import run
from rebootd.core.model import (
    Cycle,
    Event,
    Halt,
    Hold,
    Machine,
    Observation,
    OpenWindow,
    RackLock,
    Snapshot,
    State,
)
from rebootd.core.policy import DEFAULT_POLICY, parse_policy
from rebootd.core.wire import Answer, Directive, DirectiveKind, PermitAnswer, PermitRequest, Report, Tri

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from rebootd.core.audit import Asked
    from rebootd.core.forecast_told import Estimate, Forecast

KINDS = {
    State.DRAINING: DirectiveKind.DRAIN,
    State.DRAINED: DirectiveKind.REBOOT,
    State.REBOOTING: DirectiveKind.REBOOT,
    State.ENABLING: DirectiveKind.ENABLE,
}


class FakeAudit:
    """Fulfils :class:`rebootd.coordinator.desk.AuditState`."""

    enabled = True
    head = Head(seq=7, hash="ab" * 32, epoch=7, leader="d1", time=1.0)
    broken = ""
    problem = ""


class FakeClients:
    """Fulfils :class:`rebootd.coordinator.desk.Clients`: says ``word``, and keeps what was ``asked``."""

    def __init__(self, desk: FakeDesk) -> None:
        self._desk = desk
        self.word = Word(granted=True, state="rebooting", valid_for=60.0)
        self.asked: list[tuple[str, Call]] = []

    async def machine(self, client: str) -> str:
        name = client.removeprefix("client-of-")
        if name not in self._desk.snapshot().machines:
            raise Refused(f"client {client} is not known to the Consul catalog")
        return name

    async def ask(self, name: str, call: Call) -> Word:
        self._desk.snapshot()
        if self._desk.error is not None:
            raise self._desk.error
        self.asked.append((name, call))
        return self.word


class FakeDesk:
    """Fulfils :class:`rebootd.coordinator.desk.Desk` without a store."""

    def __init__(self, machines: list[Machine] | None = None, **facts: Any) -> None:
        self.epoch = 7
        now = time.time()
        known = {m.name: m for m in machines or []}
        self.state = Snapshot(
            now=now,
            epoch=self.epoch,
            policy=DEFAULT_POLICY,
            machines=known,
            observed={name: Observation(report_of(m), now) for name, m in known.items()},
            cycles={},
            machine_holds={},
            rack_holds={},
            leading_since=now - 3600,
        )
        self.state = replace(self.state, **facts)
        self.text = ""
        self.index = 0
        self.events: list[Event] = []
        self.news = asyncio.Condition()
        self.ended = False
        self.error: Exception | None = None
        self.applied = 0
        self.slow = 0.0
        self.asked: list[Asked | None] = []
        self.audit = FakeAudit()
        self.clients = FakeClients(self)

    # ------------------------------------------------------------------------------------------- Desk

    def snapshot(self) -> Snapshot:
        self._may_speak()
        return replace(self.state, now=max(self.state.now, time.time()))

    def decision(self) -> Decision:
        return decide(self.snapshot())

    async def forecast(self, cycle_id: str = "", extra: Cycle | None = None) -> Forecast:
        snapshot = self.snapshot()
        if extra is not None:
            snapshot = replace(snapshot, cycles={**snapshot.cycles, extra.id: extra})
        return run(snapshot, extra.id if extra is not None else cycle_id)

    def estimate(self, cycle_id: str) -> Estimate | None:
        return run(self.snapshot(), cycle_id).cycles.get(cycle_id)

    def policy_text(self) -> tuple[str, int]:
        return self.text, self.index

    async def report(self, report: Report) -> Answer:
        snapshot = self.snapshot()
        self.state = replace(self.state, observed={**snapshot.observed, report.name: Observation(report, snapshot.now)})
        await self.tick()
        async with self.news:
            try:
                async with asyncio.timeout(report.wait):
                    await self.news.wait_for(lambda: self.ended or self._version(report.name) != report.index)
            except TimeoutError:
                pass
        self._may_speak()
        machine = self.state.machines.get(report.name)
        if machine is None:
            return Answer(index=0, epoch=self.epoch, state="unknown", waiting_for="a rack")
        kind = KINDS.get(machine.state)
        directive = None
        if kind is not None:
            told = directive_id(machine.name, machine.version, kind.value)
            directive = Directive(told, kind, self.epoch, machine.version, machine.boot_id, machine.cycle)
        return Answer(index=machine.version, epoch=self.epoch, state=machine.state.value, directive=directive)

    async def permit(self, request: PermitRequest) -> PermitAnswer:
        self.state = replace(self.state, asking={request.name: request})
        verdict = (await self.tick()).permits.get(request.name)
        self.state = replace(self.state, asking={})
        granted = verdict is not None and verdict.granted
        return PermitAnswer(
            granted=granted,
            nonce=request.nonce,
            boot_id=request.boot_id,
            epoch=self.epoch,
            valid_for=60.0 if granted else 0.0,
            reason=verdict.reason if verdict else "",
        )

    async def apply(self, plan: Callable[[Snapshot], Change], asked: Asked | None = None) -> Change:
        self.asked.append(asked)
        if self.slow:
            await asyncio.sleep(self.slow)
        if self.error is not None:
            raise self.error
        change = plan(self.snapshot())
        for write in change.writes:
            self._write(write.key, write.value)
        for step in change.steps:
            self._step(step)
        if change.unlock:
            self.state = replace(self.state, racks={**self.state.racks, change.unlock: RackLock()})
        self._tell(*change.events)
        self.applied += 1
        await self._wake()
        return change

    def recent(self, limit: int) -> list[Event]:
        self._may_speak()
        return self.events[-limit:]

    async def follow(self, limit: int) -> AsyncIterator[Event]:
        told = max(0, len(self.events) - limit)
        while not self.ended:
            for event in self.events[told:]:
                told += 1
                yield event
            async with self.news:
                await self.news.wait_for(lambda: self.ended or len(self.events) > told)  # noqa: B023

    # -------------------------------------------------------------------------------------- for tests

    async def tick(self) -> Decision:
        """One decision, landed at once."""
        decision = self.decision()
        for step in decision.steps:
            self._step(step)
        cycles = {**self.state.cycles, **{c.id: c for c, _ in decision.cycles}}
        self.state = replace(self.state, cycles=cycles)
        self._tell(*(e for _, e in decision.cycles))
        await self._wake()
        return decision

    async def end(self) -> None:
        """The leader is deposed: everything it is asked from now on is refused."""
        self.ended = True
        await self._wake()

    async def _wake(self) -> None:
        async with self.news:
            self.news.notify_all()

    def _may_speak(self) -> None:
        if self.ended:
            raise NotLeader("this daemon does not lead any more")

    def _version(self, name: str) -> int:
        machine = self.state.machines.get(name)
        return machine.version if machine else 0

    def _tell(self, *events: Event) -> None:
        for event in events:
            self.events.append(replace(event, seq=len(self.events) + 1))

    def _step(self, step: MachineStep) -> None:
        if step.before != self.state.machines.get(step.name):
            raise Refused(f"{step.name} changed meanwhile")
        machines = {**self.state.machines}
        if step.after is None:
            del machines[step.name]
        else:
            machines[step.name] = step.after
        racks = {**self.state.racks}
        if step.lock:
            racks[step.lock] = RackLock("ours", "session-of-ours")
        if step.unlock:
            racks[step.unlock] = RackLock()
        self.state = replace(self.state, machines=machines, racks=racks)
        self._tell(*step.events)

    def _write(self, key: str, value: bytes | None) -> None:
        s = self.state
        match key.split("/"):
            case ["cycles", name]:
                self.state = replace(s, cycles=_with(s.cycles, name, value, Cycle))
            case ["holds", "machine", name]:
                self.state = replace(s, machine_holds=_with(s.machine_holds, name, value, Hold))
            case ["holds", "rack", name]:
                self.state = replace(s, rack_holds=_with(s.rack_holds, name, value, Hold))
            case ["windows", name]:
                kept = _with({w.id: w for w in s.windows}, name, value, OpenWindow)
                self.state = replace(s, windows=tuple(kept.values()))
            case ["control", "halt"]:
                self.state = replace(s, halt=msgspec.json.decode(value, type=Halt) if value else None)
            case ["machines", name]:
                assert value is None, "machines are written by steps"
                self.state = replace(s, asides={k: a for k, a in s.asides.items() if k != name})
            case ["policy"]:
                assert value is not None
                self.text, self.index = value.decode(), self.index + 1
                self.state = replace(s, policy=parse_policy(self.text))
            case _:
                raise AssertionError(f"a key that is not in the design: {key}")


class FakeOffice:
    """Fulfils :class:`rebootd.coordinator.desk.Office`; tests set ``held`` and ``elsewhere``."""

    def __init__(self, desk: FakeDesk | None = None, elsewhere: str = "") -> None:
        self.held = desk
        self.elsewhere = elsewhere
        self.changed = asyncio.Event()

    def desk(self) -> FakeDesk | None:
        return self.held if self.held is not None and not self.held.ended else None

    def leader_url(self) -> str:
        return self.elsewhere

    async def wait_leader(self, timeout: float) -> bool:
        if self.desk() is None and not self.elsewhere:
            self.changed.clear()
            try:
                async with asyncio.timeout(timeout):
                    await self.changed.wait()
            except TimeoutError:
                return False
        return True

    def describe(self) -> dict[str, object]:
        return {"id": "d1", "url": "http://127.0.0.1:1", "node": "host-1", "version": "0.1.0", "leading": True}

    def elect(self, desk: FakeDesk | None = None, elsewhere: str = "") -> None:
        self.held, self.elsewhere = desk, elsewhere
        self.changed.set()


def _with(old: Any, name: str, value: bytes | None, kind: Any) -> dict[str, Any]:
    kept = {k: v for k, v in old.items() if k != name}
    return kept if value is None else {**kept, name: msgspec.json.decode(value, type=kind)}


def machine(name: str, rack: str, state: State = State.IN_SERVICE, **facts: Any) -> Machine:
    defaults: dict[str, Any] = {
        "since": time.time() - 600,
        "boot_id": f"boot-{name}",
        "machine_id": f"id-{name}",
        "kernel": "6.1.0",
        "labels": {"role": "web"},
        "reboot_required": Tri.NO,
    }
    return Machine(name=name, rack=rack, state=state, **{**defaults, **facts})


def report_of(m: Machine, **facts: Any) -> Report:
    given: dict[str, Any] = {
        "name": m.name,
        "machine_id": m.machine_id,
        "boot_id": m.boot_id,
        "rack": m.rack,
        "kernel": m.kernel,
        "labels": m.labels,
        "reboot_required": m.reboot_required,
        "in_service": m.state is State.IN_SERVICE,
        "clock": time.time(),
    }
    return Report(**{**given, **facts})


def fleet(racks: int = 3, machines: int = 4, **facts: Any) -> list[Machine]:
    """``r1m1`` ... in racks ``r1`` ...; the first machine of each rack is a database."""
    return [
        machine(f"r{r}m{m}", f"r{r}", labels={"role": "db" if m == 1 else "web"}, **facts)
        for r in range(1, racks + 1)
        for m in range(1, machines + 1)
    ]

"""Where machines call: takes reports, lets requests wait, and answers permits once they are committed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NoReturn

from msgspec.structs import replace

from rebootd.core.directives import BUSY_WAIT, directive_for, longest_wait
from rebootd.core.errors import NotLeader, Refused
from rebootd.core.inputs import rack_name
from rebootd.core.model import Event, Refusal, State
from rebootd.core.quiet import quiet, repeated
from rebootd.core.wire import Answer, PermitAnswer, PermitRequest, Report

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rebootd.consul.leadership import Leadership
    from rebootd.coordinator.fleet import Fleet
    from rebootd.coordinator.metrics import Metrics
    from rebootd.coordinator.waiting import Waiting
    from rebootd.core.decision import Decision
    from rebootd.core.model import Machine, Snapshot

OVERTIME = 2.5
"""Seconds beyond its wait that a report may take to be judged and committed: agents wait 5 s longer than they ask."""
LOOK_UP_EVERY = 5.0
"""Seconds between two looks at the catalog because of names that it did not have."""
CONFLICT_LASTS = 300.0
"""Seconds after the last double report that an identity conflict stands."""
TOLD = 10_000
"""How many refusals are remembered so that each is told once."""


class Reception:
    """Belongs to one leadership."""

    def __init__(
        self,
        fleet: Fleet,
        waiting: Waiting,
        dirty: asyncio.Event,
        metrics: Metrics,
        *,
        wall: Callable[[], float],
        note: Callable[[Event], None],
        look_up: Callable[[], Awaitable[object]],
    ) -> None:
        self.epoch = 0
        self.offsets: dict[str, float] = {}
        self._fleet = fleet
        self._waiting = waiting
        self._dirty = dirty
        self._metrics = metrics
        self._wall = wall
        self._note = note
        self._look_up = look_up
        self._looked_up = 0.0
        self._looking = asyncio.Lock()
        self.before_drain: Callable[[str], Awaitable[None]] = _at_once
        self.remarked: Callable[[], None] = lambda: None
        """Told of what the next tick is to decide on, though none begins for it."""
        self._closed = False
        self._asked: dict[str, asyncio.Future[PermitAnswer]] = {}
        self._double: dict[str, float] = {}
        self._told: dict[tuple[str, str], None] = {}

    def close(self) -> None:
        """Lets everybody go; they ask the next leader."""
        self._closed = True
        self._waiting.wake_all()
        for future in self._asked.values():
            if not future.done():
                future.set_exception(NotLeader("leadership ended"))

    # --- reports -------------------------------------------------------------------------

    async def report(self, report: Report, decision: Callable[[], Decision], leadership: Leadership) -> Answer:
        """Takes a report, waits as it asks, and says what the machine is to do now."""
        self.require(leadership)
        name = report.name
        rack = self._fleet.catalog.get(name)
        if rack is None:
            rack = await self._catalog_rack(name)
            self.require(leadership)
        # The catalog's node meta wins over what the agent believes.
        rack = rack or rack_name(report.rack)
        if rack != report.rack:
            report = replace(report, rack=rack)
        self.accept(report.name, report.machine_id, report.boot_id)
        now = self._wall()
        if report.clock > 0:
            self.offsets[name] = now - report.clock
        machine = self._fleet.machines.get(name)
        idle = machine is not None and machine.state is State.IN_SERVICE and quiet(machine, report)
        if idle and machine is not None:
            report = _shared(report, machine)
        # What was said before has been judged, or is about to be.
        news = not idle and not self._known(machine, report)
        if not news:
            self._remark(report, now)
        self._fleet.hear(report, now, machine if idle else None)
        loop = asyncio.get_running_loop()
        until = loop.time() + min(report.wait, longest_wait(machine))
        if news:
            self._dirty.set()
            await self._waiting.next_tick(name, max(BUSY_WAIT, report.wait) + OVERTIME)
        while not self._closed:
            machine = self._fleet.machines.get(name)
            left = until - loop.time()
            if left <= 0 or (machine is not None and machine.version != report.index):
                break
            await self._waiting.park(name, min(left, longest_wait(machine)))
            if self._fleet.machines.get(name) is machine:
                break
        machine = self._fleet.machines.get(name)
        if machine is not None and machine.state is State.DRAINING:
            await self.before_drain(name)
        self.require(leadership)
        return self._answer(report, decision())

    def _known(self, machine: Machine | None, report: Report) -> bool:
        before = self._fleet.observed.get(report.name)
        out = machine is not None and machine.state is not State.IN_SERVICE
        return out and before is not None and repeated(before.report, report)

    def _remark(self, report: Report, now: float) -> None:
        """What no decision is made for at once may still matter to the next: who calls again, and has heard what."""
        before = self._fleet.observed.get(report.name)
        if (
            before is None
            or now - before.at > self._fleet.policy.unreachable_after
            or replace(report, clock=before.report.clock, wait=before.report.wait) != before.report
        ):
            self.remarked()

    def _answer(self, report: Report, decision: Decision) -> Answer:
        name = report.name
        machine = self._fleet.machines.get(name)
        blockers = decision.reasons.get(name, ())
        why = blockers[0].what if blockers else ""
        if machine is None:
            return Answer(index=0, epoch=self.epoch, state="", wait=BUSY_WAIT, waiting_for=why or "its record")
        directive = directive_for(
            machine,
            report.boot_id,
            self.epoch,
            held=self._held(machine),
            conflict=name in self._fleet.conflicts,
        )
        if directive is not None and (cycle := self._fleet.cycles.get(directive.cycle)) is not None:
            directive = replace(directive, request=cycle.request)
        return Answer(
            index=machine.version,
            epoch=self.epoch,
            state=machine.state.value,
            directive=directive,
            wait=longest_wait(machine),
            waiting_for=why,
        )

    def _held(self, machine: Machine) -> bool:
        return machine.name in self._fleet.machine_holds or machine.rack in self._fleet.rack_holds

    def require(self, leadership: Leadership) -> None:
        """Nothing is said by a leader that cannot be sure it still leads."""
        if self._closed or not leadership.may_speak():
            raise NotLeader("this daemon does not lead, or cannot be sure that it does")

    async def _catalog_rack(self, name: str) -> str:
        await self.look_for(lambda: name in self._fleet.catalog)
        rack = self._fleet.catalog.get(name)
        if rack is None:
            self._metrics.refused.labels("unknown node").inc()
            raise Refused(f"{name} is not a node of the Consul catalog")
        return rack

    async def look_for(self, known: Callable[[], bool]) -> None:
        """Looks at the catalog again if it is not ``known`` what is there, and the last such look was not just now."""
        async with self._looking:
            loop = asyncio.get_running_loop()
            if not known() and (not self._looked_up or loop.time() - self._looked_up >= LOOK_UP_EVERY):
                await self._look_up()
                self._looked_up = loop.time()

    def accept(self, name: str, machine_id: str, boot_id: str) -> None:
        """Refuses a boot_id of the past, and both of two machines that share a name."""
        machine = self._fleet.machines.get(name)
        if machine is None:
            # A record that was forgotten takes its conflict with it: the next to report is the machine.
            self._double.pop(name, None)
            self._fleet.conflicts.pop(name, None)
            return
        if machine.machine_id and machine_id != machine.machine_id:
            what = f"two machine-ids report as {name}: {machine.machine_id} (in the record) and {machine_id}"
            self._double[name] = asyncio.get_running_loop().time()
            if self._fleet.conflicts.get(name) != what:
                self._fleet.conflicts[name] = what
                self._dirty.set()
            self._refuse(machine, "identity conflict", what)
        double = self._double.get(name)
        if double is not None and asyncio.get_running_loop().time() - double > CONFLICT_LASTS:
            del self._double[name]
            self._fleet.conflicts.pop(name, None)
        if boot_id in machine.boots and boot_id != machine.boot_id:
            what = f"boot_id {boot_id} of {name} is superseded by {machine.boot_id}"
            self._refuse(machine, "stale boot_id", what)

    def _refuse(self, machine: Machine, cause: str, what: str) -> NoReturn:
        self._tell(machine, cause, what)
        raise Refused(what)

    def _tell(self, machine: Machine, cause: str, what: str) -> None:
        """Tells each distinct refusal once as an event, so that a loop makes no storm."""
        self._metrics.refused.labels(cause).inc()
        if (machine.name, what) not in self._told:
            self._told[(machine.name, what)] = None
            if len(self._told) > TOLD:
                del self._told[next(iter(self._told))]
            self._note(
                Event(
                    time=self._wall(), kind="refused", machine=machine.name, rack=machine.rack, cause=cause, detail=what
                )
            )

    # --- permits -------------------------------------------------------------------------

    async def permit(self, request: PermitRequest, leadership: Leadership) -> PermitAnswer:
        """Puts the request before the next decision, and answers when its outcome is in the store."""
        self.require(leadership)
        machine = self._fleet.machines.get(request.name)
        if machine is not None and (0 < self.epoch < request.epoch):
            self._refuse(machine, "newer epoch", f"{request.name} has seen epoch {request.epoch}, ours is {self.epoch}")
        future: asyncio.Future[PermitAnswer] = asyncio.get_running_loop().create_future()
        older = self._asked.get(request.name)
        if older is not None and not older.done():
            older.set_result(_refusal(request, self.epoch, "asked again meanwhile"))
        self._asked[request.name] = future
        self._fleet.asking[request.name] = request
        self._dirty.set()
        try:
            answer = await future
        finally:
            if self._asked.get(request.name) is future:
                del self._asked[request.name]
                self._fleet.asking.pop(request.name, None)
        # Committed or not, only a leader may say so: else the machine asks again, with the same nonce.
        self.require(leadership)
        self._metrics.permits.labels("yes" if answer.granted else "no").inc()
        return answer

    def answer_permits(self, snapshot: Snapshot, decision: Decision, dropped: dict[str, str]) -> None:
        """Answers every request that the decision judged; a granted one only if its step has landed."""
        for name, request in snapshot.asking.items():
            future = self._asked.get(name)
            verdict = decision.permits.get(name)
            if future is None or future.done() or verdict is None or self._fleet.asking.get(name) is not request:
                continue
            if verdict.wait:
                # A gate is being read again; the next decision has it.
                continue
            machine = self._fleet.machines.get(name)
            permit = machine.permit if machine is not None else None
            if verdict.granted and name in dropped:
                future.set_result(_refusal(request, self.epoch, dropped[name]))
                self._fleet.refused(name, Refusal(request.boot_id, dropped[name], snapshot.now))
            elif (
                verdict.granted
                and permit is not None
                and (permit.boot_id, permit.nonce)
                == (
                    request.boot_id,
                    request.nonce,
                )
            ):
                self._fleet.refused(name, None)
                future.set_result(
                    PermitAnswer(
                        granted=True,
                        nonce=request.nonce,
                        boot_id=request.boot_id,
                        epoch=self.epoch,
                        valid_for=max(0.0, permit.until - snapshot.now),
                    )
                )
            else:
                why = verdict.reason or "the permit was not committed"
                future.set_result(_refusal(request, self.epoch, why))
                self._fleet.refused(name, Refusal(request.boot_id, why, snapshot.now))
                if verdict.final and machine is not None:
                    self._tell(machine, "permit refused", verdict.reason)


async def _at_once(_name: str) -> None:
    """Nobody has to be told before a drain."""


def _shared(report: Report, machine: Machine) -> Report:
    """The report with the record's own values where they are equal, so that a large fleet is not in memory twice."""
    return replace(
        report,
        name=machine.name,
        rack=machine.rack if report.rack == machine.rack else report.rack,
        machine_id=machine.machine_id if report.machine_id == machine.machine_id else report.machine_id,
        boot_id=machine.boot_id,
        kernel=machine.kernel,
        labels=machine.labels,
    )


def _refusal(request: PermitRequest, epoch: int, reason: str) -> PermitAnswer:
    return PermitAnswer(granted=False, nonce=request.nonce, boot_id=request.boot_id, epoch=epoch, reason=reason)

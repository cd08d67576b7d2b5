"""The leader as a scope: raise the epoch, read everything behind a barrier, tick, let go.

Ticks are the only place where records change. Each takes what machines and operators have said
since the last one, asks the core, commits, and only then tells anybody (DESIGN.md, "One way through").
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from itertools import chain, islice
from typing import TYPE_CHECKING

import msgspec
import structlog

from rebootd.coordinator.audit import Chain
from rebootd.coordinator.changes import Changes
from rebootd.coordinator.clock import LeaderClock
from rebootd.coordinator.epoch import raise_epoch
from rebootd.coordinator.fleet import Fleet
from rebootd.coordinator.fleetlock import Clients
from rebootd.coordinator.follow import Follower
from rebootd.coordinator.forecasts import Forecasts
from rebootd.coordinator.history import History
from rebootd.coordinator.locks import RackLocks
from rebootd.coordinator.lull import Lull
from rebootd.coordinator.reception import Reception
from rebootd.coordinator.records import Keys
from rebootd.coordinator.ring import Ring
from rebootd.coordinator.rooms import NO_MEANS, Means, Rooms
from rebootd.coordinator.waiting import Waiting
from rebootd.coordinator.work import Planner, Work, landed
from rebootd.core.again import leads_on
from rebootd.core.decide import decide
from rebootd.core.decision import Change, Decision
from rebootd.core.errors import RebootdError, first_of
from rebootd.core.wake import idle
from rebootd.store.writer import Blocked, Committed, Dropped, FencedWriter, Step

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence

    from rebootd.consul.leadership import Leadership
    from rebootd.coordinator.audit_file import AuditFile
    from rebootd.coordinator.metrics import Metrics
    from rebootd.core.audit import Asked
    from rebootd.core.forecast_told import Estimate, Forecast
    from rebootd.core.model import Cycle, Event, Snapshot
    from rebootd.core.wire import Answer, PermitAnswer, PermitRequest, Report
    from rebootd.store.port import Op, Store

log = structlog.get_logger(__name__)

PIECE = 256
"""Steps that are planned, committed and told together: enough to fill the writer's transactions under way."""
LANDERS = 2
LANDING = 2.0
"""Seconds after which a tick begins no further piece."""
VAIN = 5
"""Ticks in a row whose every write was refused, after which the next ones take their time."""
DENIED_RETRY = 10.0
"""Seconds after which writes that the store denied are tried again."""


class LeaderSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a leader needs to know of its daemon. ``tick`` is the longest time (s) between two looks."""

    id: str
    node: str = ""
    prefix: str = "rebootd/"
    lock_node: str = "rebootd-locks"
    tick: float = 1.0


class Leader:
    """One leadership. Implements :class:`~rebootd.coordinator.desk.Desk`."""

    def __init__(
        self,
        store: Store,
        leadership: Leadership,
        settings: LeaderSettings,
        metrics: Metrics,
        *,
        wall: Callable[[], float],
        new_id: Callable[[], str],
        jitter: Callable[[], float] = random.random,
        means: Means = NO_MEANS,
        audit: AuditFile | None = None,
    ) -> None:
        self.epoch = 0
        self._store = store
        self._leadership = leadership
        self._settings = settings
        self._metrics = metrics
        self._clock = LeaderClock(wall, asyncio.get_running_loop().time)
        self._new_id = new_id
        self._keys = Keys(settings.prefix)
        self.fleet = Fleet(self._keys)
        self._ring = Ring(self._keys)
        self._history = History(self.fleet, new_id)
        self.forecasts = Forecasts(self.snapshot, self.apply)
        self._waiting = Waiting()
        self._dirty = asyncio.Event()
        self._lull = Lull()
        self._vain = 0
        self._decision = Decision()
        self._since = 0.0
        self._denied_at = float("-inf")
        self.audit = Chain(store, self.fleet, audit, metrics, leader=settings.id, new_id=new_id, wall=self._clock)
        self._changes = Changes(self._attempt, self._dirty, self.audit)
        self._writer = FencedWriter(
            store,
            self._keys.leader,
            leadership.session,
            new_write_id=new_id,
            seal=self._seal,
            on_commit=metrics.committed,
            jitter=jitter,
        )
        self._locks = RackLocks(store, self.fleet, f"{settings.prefix}racks", settings.lock_node, new_id)
        self._follower = Follower(store, self.fleet, self._locks, self._dirty, wall=self._clock)
        look_up, dirty, clock, note = self._follower.look_up, self._dirty, self._clock, self._note
        self.reception = Reception(self.fleet, self._waiting, dirty, metrics, wall=clock, note=note, look_up=look_up)
        self._rooms = Rooms(
            self.fleet, leadership, dirty, wall=clock, note=note, apply=self.apply, look_up=look_up, means=means
        )
        self.reception.before_drain = self._rooms.before_drain
        self.clients = Clients(self.fleet, self._waiting, self._dirty, self.reception, self.decision, leadership)
        self.reception.remarked = self._lull.end

    # --- the scope -----------------------------------------------------------------------

    async def run(self, opened: Callable[[Leader], None]) -> None:
        """Leads until cancelled. ``opened`` is called once the desk may be used.

        Raises FenceLost and other StoreErrors: leadership is over then.
        """
        try:
            self.epoch = await raise_epoch(self._store, self._writer, self._keys, self._settings.id, self._new_id)
            await self._load()
            await self.audit.load(self.epoch)
            self._planner = Planner(self.fleet, self._locks, self._ring, self._new_id, self.audit)
            self.reception.epoch = self.epoch
            self._since = self._clock()
            await self._locks.prepare()
            self._decision = decide(self.snapshot())
            opened(self)
            log.info("leading", epoch=self.epoch, machines=len(self.fleet.machines), asides=len(self.fleet.asides))
            async with asyncio.TaskGroup() as group:
                self._follower.start(group)
                self._rooms.start(group)
                group.create_task(self.audit.watch())
                group.create_task(self._ticks())
                group.create_task(self.forecasts.keep())
        except ExceptionGroup as group_:
            _, bugs = group_.split(RebootdError)
            if bugs is not None:
                raise
            raise first_of(group_) from group_
        finally:
            self._close()
            await self._writer.close()

    def _close(self) -> None:
        self.reception.close()
        self._ring.close()
        self._changes.close()

    async def _load(self) -> None:
        """Reads everything once, behind a barrier: the fence of our epoch is in the log already."""
        now = self._clock()
        await self._follower.look_up(force=True)
        for prefix in (*self._follower.small_prefixes(), self._keys.durations, self._keys.machines):
            entries, index = await self._store.list(prefix, consistent=True)
            self.fleet.absorb_prefix(prefix, entries, index, now)
        self.fleet.virgin = not (self.fleet.machines or self.fleet.asides)
        self._history.loaded(now)
        entries, _ = await self._store.list(self._keys.events, consistent=True)
        self._ring.load(entries)

    # --- ticks ---------------------------------------------------------------------------

    async def _ticks(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.tick):
                    await self._dirty.wait()
            if self._vain > VAIN:
                # What is refused again and again must not become a storm of writes.
                await asyncio.sleep(self._settings.tick)
            called = self._dirty.is_set()
            self._dirty.clear()
            self._waiting.begin_tick()
            left: frozenset[str] = frozenset()
            try:
                await self._locks.prepare()
                await self._changes.run()
                snapshot = self._look()
                if called or not self._calm(snapshot):
                    left = await self._tick(snapshot)
            finally:
                self._waiting.end_tick(left)

    def _look(self) -> Snapshot:
        """What each tick looks at, whether it decides or not."""
        self.reception.offsets = self._clock.look(self.reception.offsets, self.fleet)
        if asyncio.get_running_loop().time() - self._denied_at > DENIED_RETRY:
            # The fault keeps everything in, so nothing but another attempt can show that it is over.
            self.fleet.faults.pop("denied", None)
        return self.snapshot()

    def _calm(self, snapshot: Snapshot) -> bool:
        """Whether nothing is to be decided or written now: nobody has called, and time has changed nothing."""
        owed = self._history.ripe(self._clock()) or (self._clock.trusted and bool(self.fleet.ahead))
        return not owed and self._lull.lasts(snapshot)

    async def _tick(self, snapshot: Snapshot) -> frozenset[str]:
        """Decides and commits. Returns the machines whose steps are left to the next tick."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        decision = decide(snapshot)
        # The steps are only needed here; kept until the next decision, those of a power loss would be there twice.
        self._decision = msgspec.structs.replace(decision, steps=())
        self._metrics.decide.observe(loop.time() - began)
        self._rooms.judged(snapshot, decision)
        steps = {step.name for step in decision.steps}
        self._waiting.judged(steps)
        ready, plain = self._planner.plan(decision, snapshot.now)
        if self._clock.trusted:
            plain = chain(plain, self._planner.restamped(steps, snapshot.now))
        tried, dropped = await self._land_all(chain(ready, self._history.due(snapshot.now, self.epoch)), plain)
        self.reception.answer_permits(snapshot, decision, dropped)
        self._rooms.landed(decision)
        self._vain = self._vain + 1 if tried and len(dropped) == len(tried) else 0
        self._lull.judged(snapshot, idle=idle(decision) and not tried)
        left = frozenset(steps.difference(tried))
        nomad = snapshot.policy.drains.nomad is not None
        if left or (len(dropped) < len(tried) and leads_on(decision, nomad=nomad)):
            # What landed may have made room: look again at once.
            self._dirty.set()
        return left

    async def _land_all(self, ready: Iterator[Work], plain: Iterator[Work]) -> tuple[list[str], dict[str, str]]:
        """Commits piece by piece, so that after a power loss the first machines need not wait for the last.

        When the store is slow, some of ``plain`` is left to the next tick, lest operators and newcomers wait for all.
        Returns what was tried, by machine name (or a key of it), and what of it was dropped.
        """
        tried: list[str] = []
        dropped: dict[str, str] = {}
        loop = asyncio.get_running_loop()
        until = loop.time() + LANDING

        def piece() -> list[Work]:
            part = list(islice(ready, PIECE))
            return part if part or loop.time() > until else list(islice(plain, PIECE))

        async def lander(part: list[Work]) -> None:
            while part:
                tried.extend(w.name for w in part)
                dropped.update(await self._land(part))
                part = piece()

        parts = [part for _ in range(LANDERS) if (part := piece())]
        if len(parts) == 1:
            await lander(parts[0])
        elif parts:
            async with asyncio.TaskGroup() as group:
                for part in parts:
                    group.create_task(lander(part))
        return tried, dropped

    async def _land(self, work: Sequence[Work]) -> dict[str, str]:
        """Commits; returns what was dropped or blocked, by machine name (or a key of it), with the reason."""
        outcomes = await self._writer.commit([w.step for w in work])
        dropped: dict[str, str] = {}
        for w, outcome in zip(work, outcomes, strict=True):
            name = w.name
            if w.spare:
                self._planner.spared(w, outcome.reason if isinstance(outcome, Blocked) else "", self._clock())
            if isinstance(outcome, Committed):
                self._took_place(w, outcome.indexes)
                if 0 in outcome.indexes.values():
                    await self._reload(w)
            elif isinstance(outcome, Dropped):
                why = "; ".join(f.what for f in outcome.failed)
                dropped[name] = f"the store refused it: {why}"
                log.warning("step-dropped", machine=name, why=why)
                await self._reload(w)
                if w.lock and any(f.reason == "locked" for f in outcome.failed):
                    self.fleet.book.refused(w.lock, self._clock())
                if w.lock:
                    # The spare may be what was refused: its session can have been ended by somebody.
                    await self._locks.drop(w.session)
            elif w.spare:
                dropped[name] = f"blocked: {outcome.reason}"
                log.warning("spare-write-denied", key=name, why=outcome.reason)
            else:
                dropped[name] = f"blocked: {outcome.reason}"
                self._denied_at = asyncio.get_running_loop().time()
                self.fleet.faults["denied"] = f"the store denies our writes: {outcome.reason}"
                log.error("store-denied", machine=name, why=outcome.reason)
                # What may have landed all the same is left to the next leader.
                self._locks.reuse(w.session if w.lock and outcome.settled else "")
        if len(dropped) < len(work):
            self.fleet.faults.pop("denied", None)
        return dropped

    def _took_place(self, work: Work, indexes: dict[str, int]) -> None:
        landed(work, indexes, self.fleet, self._clock())
        if work.unlock:
            self._locks.reuse(work.session)
        before = work.before
        self._history.saw(before, work.events)
        since: float | None = before.since if before is not None else None
        for event in work.events:
            self._metrics.happened(event, since)
            since = event.time
        self._ring.publish(work.events)
        if work.machine is not None:
            self._waiting.wake(work.machine.name)
            self._rooms.changed(before, work.machine)
        if work.power is not None:
            self._rooms.power(work.power)

    async def _reload(self, work: Work) -> None:
        """Reads again what a dropped step had wrong; a record that was edited by hand is taken as it is."""
        for key in dict.fromkeys(work.keys):
            await self._follower.read_again(key)
        self._dirty.set()

    def _seal(self, steps: Sequence[Step]) -> Op | None:
        """The event chunk of a transaction rides in it."""
        return self._ring.chunk(tuple(event for step in steps if isinstance(step.note, tuple) for event in step.note))

    def _note(self, event: Event) -> None:
        """An event that changes no record (a refusal): told now, kept in memory only."""
        self._ring.publish(self._ring.number((msgspec.structs.replace(event, epoch=self.epoch),)))

    # --- the desk ------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The fleet as the leader holds it now."""
        clock, node = self._clock, self._settings.node
        return self.fleet.snapshot(
            now=clock(), epoch=self.epoch, leading_since=self._since, clock_skew=clock.skew, leader_node=node
        )

    def decision(self) -> Decision:
        """The latest decision."""
        return self._decision

    async def forecast(self, cycle_id: str = "", extra: Cycle | None = None) -> Forecast:
        """What is expected of a cycle, of all, or of one that does not exist yet."""
        return await self.forecasts.of(cycle_id, extra)

    def estimate(self, cycle_id: str) -> Estimate | None:
        """What is known of a cycle's end."""
        return self.forecasts.estimate(cycle_id)

    def policy_text(self) -> tuple[str, int]:
        """The policy as stored, and its index."""
        return self.fleet.policy_text, self.fleet.index.get(self._keys.policy, 0)

    @property
    def waiting(self) -> int:
        """Agents whose requests are open."""
        return len(self._waiting)

    def report(self, report: Report) -> Coroutine[object, object, Answer]:
        """Takes a report and waits as it asks."""
        return self.reception.report(report, self.decision, self._leadership)

    async def permit(self, request: PermitRequest) -> PermitAnswer:
        """Judges and commits a permit."""
        return await self.reception.permit(request, self._leadership)

    async def apply(self, plan: Callable[[Snapshot], Change], asked: Asked | None = None) -> Change:
        """Queues the plan for the next tick and waits for its outcome."""
        return await self._changes.apply(plan, asked)

    async def _attempt(
        self, plan: Callable[[Snapshot], Change], asked: Asked | None = None
    ) -> tuple[Change, dict[str, str]]:
        snapshot = self.snapshot()
        change = plan(snapshot)
        work = self._planner.change(change, snapshot.now, asked)
        return change, await self._land([work]) if work.step.ops else {}

    def recent(self, limit: int) -> list[Event]:
        """The newest events, oldest first."""
        return self._ring.recent(limit)

    def follow(self, limit: int) -> AsyncIterator[Event]:
        """The newest events, then every new one."""
        return self._ring.follow(limit)

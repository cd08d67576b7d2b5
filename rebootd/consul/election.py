"""Who leads: a lock on one key, held by a session, with the leader's work as a scope.

A session dies with its node (serfHealth), with our own HTTP check, or with its TTL. Each leadership has a session of
its own, so that no write of an earlier one can pass the fence of a later one. What a failure means here: a definite
answer (the session or the lock is gone) ends a leadership; silence of the store only silences the leader until the next
proof, because every write is fenced.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import TYPE_CHECKING

import msgspec
import structlog

from rebootd.consul.leadership import Candidate, LeaderInfo, Leadership, Tuning
from rebootd.core.errors import Conflict, Denied, RebootdError, Refused, SessionLost, StoreError
from rebootd.store.port import Lock, Unlock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence
    from typing import Any

    from rebootd.store.port import Entry, Store

__all__ = ["Candidate", "Election", "LeaderInfo", "Leadership", "Tuning"]

log = structlog.get_logger(__name__)

_CALL = 2.0
"""Seconds that a call outside the proofs may take."""


class Election:
    """Competes for ``key`` and runs ``lead`` while it holds it.

    ``lead`` is cancelled when leadership is lost; when it returns or raises, leadership is given up. A
    ``RebootdError`` from it means a new competition; any other exception ends :meth:`run` with that exception.
    ``checks`` are check ids on ``node`` (``""``: the local agent's) that the session hangs on. ``wall`` is the clock
    for ``since``, seconds since the Unix epoch. ``defers`` says how many seconds others go first when nobody leads.
    """

    def __init__(
        self,
        store: Store,
        key: str,
        candidate: Candidate,
        lead: Callable[[Leadership], Coroutine[Any, Any, None]],
        *,
        checks: Sequence[str] = (),
        node: str = "",
        tuning: Tuning | None = None,
        wall: Callable[[], float] = time.time,
        rng: random.Random | None = None,
        defers: Callable[[], Awaitable[float]] | None = None,
    ) -> None:
        self._store = store
        self._key = key
        self._candidate = candidate
        self._lead = lead
        self._checks = tuple(checks)
        self._node = node
        self._tuning = tuning or Tuning()
        self._wall = wall
        self._rng = rng or random.Random()
        self._defers = defers
        self._holder = ""
        self._leader: LeaderInfo | None = None
        self._leadership: Leadership | None = None
        self._changed = asyncio.Event()
        self._doubt = asyncio.Event()
        self._stop = asyncio.Event()
        self._ended = asyncio.Event()
        self._silent = False
        self._started = False
        self._hand_over = True
        self._abstain_until = 0.0

    @property
    def leader(self) -> LeaderInfo | None:
        """The leader as seen now, or None while nobody holds the key."""
        return self._leader

    @property
    def leadership(self) -> Leadership | None:
        """Our own leadership while it lasts."""
        return self._leadership

    async def wait_leader(self, timeout: float) -> LeaderInfo | None:
        """The leader as soon as there is one, or None after ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while self._leader is None:
                    await self._changed.wait()
        except TimeoutError:
            return None
        return self._leader

    async def wait_change(self, known: LeaderInfo | None, timeout: float) -> LeaderInfo | None:
        """The leader as soon as it differs from ``known``, or as it is after ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while self._leader == known:
                    await self._changed.wait()
        except TimeoutError:
            pass
        return self._leader

    async def run(self) -> None:
        """Competes until :meth:`stop`. Operating errors are met here; raises only programming errors."""
        self._started = True
        tasks = [asyncio.create_task(self._watch()), asyncio.create_task(self._compete())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await _cancel(*tasks)
            self._ended.set()

    async def stop(self, hand_over: bool = True) -> None:
        """Ends :meth:`run`: the scope is cancelled, the lock released (no lock-delay applies), the session destroyed.

        ``hand_over`` False leaves lock and session to the store's own expiry, as a crash would.
        """
        self._hand_over = hand_over
        self._stop.set()
        if self._started:
            await self._ended.wait()

    # --- what is seen ---------------------------------------------------------------------------

    async def _watch(self) -> None:
        index, failures = 0, 0
        while True:
            try:
                entries, index = await self._store.watch(self._key, index, self._tuning.watch_wait)
            except StoreError as error:
                if not failures:
                    log.warning("leader-watch-failed", key=self._key, error=str(error))
                failures += 1
                await asyncio.sleep(self._backoff(failures))
                continue
            if failures:
                log.info("leader-watch-works-again", key=self._key)
            failures = 0
            entry = next((e for e in entries if e.key == self._key), None)
            if self._leadership is not None:
                # A look that began before we won may say otherwise; only a consistent read decides.
                if entry is None or entry.session != self._leadership.session:
                    self._doubt.set()
            else:
                self._see(entry)

    def _see(self, entry: Entry | None) -> None:
        holder = entry.session if entry is not None else ""
        leader = None
        if entry is not None and holder:
            try:
                leader = msgspec.json.decode(entry.value, type=LeaderInfo)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                log.error("leader-key-unreadable", key=self._key, error=str(error))
        if (holder, leader) == (self._holder, self._leader):
            return
        if leader != self._leader:
            log.info("leader-seen", leader=leader.id if leader else None, url=leader.url if leader else None)
        self._holder, self._leader = holder, leader
        # A new event for the next change: everybody who waits on this one is woken at once.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    # --- competing ------------------------------------------------------------------------------

    async def _compete(self) -> None:
        while not self._stop.is_set():
            session = await self._open()
            if session is None:
                return
            keeper = asyncio.create_task(self._keep(session))
            try:
                at = await self._acquire(session, keeper)
                error = await self._rule(session, keeper, at) if at is not None else None
            finally:
                await _cancel(keeper)
            if self._hand_over or error is not None:
                await self._close(session)
            if error is not None:
                raise error

    async def _open(self) -> str | None:
        failures = 0
        while not self._stop.is_set():
            try:
                session = await self._store.create_session(
                    f"{self._key} {self._candidate.id}",
                    node=self._node,
                    ttl=self._tuning.ttl,
                    lock_delay=self._tuning.lock_delay,
                    checks=self._checks,
                    timeout=_CALL,
                )
            except (StoreError, Refused) as error:
                # Refused: a check is not registered yet, or still critical.
                if not failures:
                    log.warning("session-refused", error=str(error))
                failures += 1
                await self._pause(self._backoff(failures))
            else:
                log.info("session-created", session=session)
                return session
        return None

    async def _keep(self, session: str) -> None:
        """Returns when the session is gone."""
        failures = 0
        while True:
            await asyncio.sleep(self._backoff(failures) if failures else self._tuning.renew_every)
            try:
                await self._store.renew_session(session, timeout=_CALL)
                failures = 0
            except SessionLost:
                return
            except StoreError as error:
                if not failures:
                    log.warning("session-not-renewed", session=session, error=str(error))
                failures += 1

    async def _acquire(self, session: str, keeper: asyncio.Task[None]) -> float | None:
        """The loop's time at which the winning request began, or None when stopping or the session is gone."""
        loop = asyncio.get_running_loop()
        failures, deferred = 0, False
        while not self._stop.is_set() and not keeper.done():
            changed = self._changed
            if self._holder not in ("", session):
                failures, deferred = 0, False
                await self._wait(changed, self._stop, keeper)
                continue
            abstain = self._abstain_until - loop.time()
            if abstain > 0:
                await self._wait(changed, self._stop, keeper, timeout=abstain)
                continue
            if self._defers is not None and not deferred:
                # Once for each time that nobody leads: somebody has to, in the end.
                deferred, pause = True, await self._defers()
                if pause > 0 and changed is self._changed:
                    await self._wait(changed, self._stop, keeper, timeout=pause)
                    continue
            at = loop.time()
            try:
                await self._store.commit([Lock(self._key, self._value(), session)], timeout=_CALL)
            except Conflict as error:
                if any(failed.reason == "session" for failed in error.failed):
                    return None
                # Somebody was faster (the watch will tell), or the lock-delay of a dead one runs.
                failures = min(failures + 1, 3)
            except StoreError as error:
                # Sent again, it does no harm if it has landed; a lock that is ours is seen as free for us.
                if not failures:
                    log.warning("lock-not-acquired", denied=isinstance(error, Denied), error=str(error))
                failures += 1
            else:
                return at
            await self._wait(changed, self._stop, keeper, timeout=self._backoff(failures))
        if keeper.done():
            keeper.result()
        return None

    def _value(self) -> bytes:
        me = self._candidate
        return msgspec.json.encode(LeaderInfo(me.id, me.url, me.node, self._wall()))

    # --- leading --------------------------------------------------------------------------------

    async def _rule(self, session: str, keeper: asyncio.Task[None], at: float) -> Exception | None:
        """Runs the scope to its end and gives the lock up. Returns a programming error of the scope."""
        loop = asyncio.get_running_loop()
        tuning = self._tuning
        leadership = Leadership(
            session, self._key, at=at, deadline=tuning.deadline, abstain=tuning.abstain, clock=loop.time
        )
        self._leadership = leadership
        self._doubt.clear()
        log.info("leadership-won", session=session, id=self._candidate.id)
        scope = asyncio.create_task(self._lead(leadership))
        prover = asyncio.create_task(self._prove(leadership))
        try:
            await self._wait(scope, prover, keeper, leadership.lost, self._stop)
            for task in (prover, keeper):
                if task.done():
                    task.result()
            if keeper.done():
                leadership.step_down("the session is gone", abstain=0.0)
            elif self._stop.is_set():
                leadership.step_down("stopping")
            elif scope.done():
                leadership.step_down("the scope ended")
            scope.cancel()
            await asyncio.wait({scope}, timeout=tuning.grace)
            if not scope.done():
                log.warning("leader-scope-slow-to-end", session=session)
            await _cancel(prover)
            if self._hand_over:
                await self._release(session)
            await asyncio.wait({scope})
        finally:
            await _cancel(scope, prover)
            self._leadership = None
            self._abstain_until = loop.time() + leadership.abstain * self._rng.uniform(0.9, 1.1)
        log.info("leadership-ended", session=session, reason=leadership.reason)
        error = None if scope.cancelled() else scope.exception()
        if isinstance(error, RebootdError):
            log.warning("leader-scope-failed", error=str(error), kind=type(error).__name__)
            return None
        if error is not None and not isinstance(error, Exception):
            raise error
        return error

    async def _prove(self, leadership: Leadership) -> None:
        """Reads the key consistently, again and again, until leadership is lost.

        A look does not wait for the one before: an answer that is slow, or that a busy loop is slow to take, is still
        a proof of its own time.
        """
        async with asyncio.TaskGroup() as looks:
            while not leadership.lost.is_set():
                self._doubt.clear()
                looks.create_task(self._look(leadership))
                # Who ends the leadership cancels this.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._tuning.proof_every):
                        await self._doubt.wait()

    async def _look(self, leadership: Leadership) -> None:
        at = asyncio.get_running_loop().time()
        try:
            entry = await self._store.get(self._key, consistent=True, timeout=self._tuning.proof_timeout)
        except StoreError as error:
            if not self._silent:
                log.warning("leadership-not-proved", error=str(error), unproved=round(leadership.unproved(), 3))
            self._silent = True
            return
        self._silent = False
        if leadership.lost.is_set():
            return
        self._see(entry)
        if entry is None or entry.session != leadership.session:
            leadership.step_down("the lock is not ours any more", abstain=0.0)
        else:
            leadership.proved(at)

    async def _release(self, session: str) -> None:
        try:
            await self._store.commit([Unlock(self._key, self._value(), session)], timeout=_CALL)
        except Conflict:
            return
        except StoreError as error:
            log.warning("lock-not-released", session=session, error=str(error))
            return
        self._see(None)

    async def _close(self, session: str) -> None:
        try:
            await self._store.destroy_session(session, timeout=_CALL)
        except StoreError as error:
            log.warning("session-not-destroyed", session=session, error=str(error))

    # --- waiting --------------------------------------------------------------------------------

    def _backoff(self, failures: int) -> float:
        longest = min(self._tuning.retry * 2.0 ** min(failures, 16), self._tuning.retry_max)
        return longest * self._rng.uniform(0.5, 1.0)

    async def _pause(self, seconds: float) -> None:
        await self._wait(self._stop, timeout=seconds)

    @staticmethod
    async def _wait(*signals: asyncio.Event | asyncio.Future[None], timeout: float | None = None) -> None:
        """Until one of the events is set or one of the tasks is done, or ``timeout`` seconds are over."""
        events = [asyncio.create_task(s.wait()) for s in signals if isinstance(s, asyncio.Event)]
        futures: list[asyncio.Future[Any]] = [s for s in signals if not isinstance(s, asyncio.Event)]
        try:
            await asyncio.wait([*futures, *events], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for event in events:
                event.cancel()


async def _cancel(*tasks: asyncio.Future[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

"""Changes that operators ask for: queued, and run one after another inside the leader's ticks."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from rebootd.core.decision import Change
from rebootd.core.errors import InvalidInput, NotFound, NotLeader, OutcomeUnknown, Refused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rebootd.coordinator.audit import Chain
    from rebootd.core.audit import Asked
    from rebootd.core.model import Snapshot

    Plan = Callable[[Snapshot], Change]
    Attempt = Callable[[Plan, Asked | None], Awaitable[tuple[Change, dict[str, str]]]]

APPLY_TRIES = 5


class Changes:
    """The queue of one leadership.

    ``attempt`` runs a plan on a fresh snapshot, commits what it returns, and says what was dropped (nothing: landed).
    What somebody asked for and did not get is told to ``audit``.
    """

    def __init__(self, attempt: Attempt, dirty: asyncio.Event, audit: Chain) -> None:
        self._try = attempt
        self._dirty = dirty
        self._audit = audit
        self._queue: deque[tuple[Plan, Asked | None, asyncio.Future[Change]]] = deque()
        self._running: asyncio.Future[Change] | None = None
        self._closed = False

    def close(self) -> None:
        """Leadership has ended: nobody is left waiting."""
        self._closed = True
        if self._running is not None and not self._running.done():
            # Its write was under way: only the next leader's records can tell whether it landed.
            self._running.set_exception(OutcomeUnknown("leadership ended while it was being written"))
        while self._queue:
            *_, future = self._queue.popleft()
            if not future.done():
                future.set_exception(NotLeader("leadership ended"))

    async def apply(self, plan: Plan, asked: Asked | None = None) -> Change:
        """Queues the plan for the next tick and waits for its outcome. ``asked`` None: the leader asks itself."""
        if self._closed:
            raise NotLeader("leadership ended")
        future: asyncio.Future[Change] = asyncio.get_running_loop().create_future()
        self._queue.append((plan, asked, future))
        self._dirty.set()
        return await future

    async def run(self) -> None:
        """Runs what is queued; called at the beginning of a tick."""
        while self._queue:
            plan, asked, self._running = self._queue.popleft()
            future = self._running
            try:
                change = await self._run(plan, asked)
            except (InvalidInput, NotFound, Refused) as error:
                outcome: Change | Exception = error
                if asked is not None:
                    self._audit.refused(asked, str(error))
            else:
                outcome = change
            self._running = None
            if future.done():
                continue
            if isinstance(outcome, Change):
                future.set_result(outcome)
            else:
                future.set_exception(outcome)

    async def _run(self, plan: Plan, asked: Asked | None) -> Change:
        dropped: dict[str, str] = {}
        for _ in range(APPLY_TRIES):
            if asked is not None:
                self._audit.check()
            change, dropped = await self._try(plan, asked)
            if not dropped:
                return change
        raise Refused(f"others kept changing the same records: {next(iter(dropped.values()))}")

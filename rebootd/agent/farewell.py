"""A shutdown by somebody else's hand, made orderly: out of service first, as far as the time allows.

And the last word of every agent: whether it was stopped because the system goes down.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from rebootd.agent.hooks import run_program
from rebootd.agent.journal import Journal, JournalUnwritable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from rebootd.agent.hooks import HookOutcome
    from rebootd.agent.host import Host
    from rebootd.agent.loop import ReportLoop
    from rebootd.agent.outmark import MarkKeeper
    from rebootd.agent.runner import Runner
    from rebootd.agent.settings import AgentSettings

ASKING = 5.0
TELLING = 3.0
"""Seconds that a coordinator is given to answer after the drain; a shutdown does not wait for one that is away."""
MARGIN = 0.5
"""Seconds of the allowed time that are left over: the lock is to be gone before it is taken away."""
_log = structlog.get_logger("rebootd.agent.farewell")


async def note_end(settings: AgentSettings, environ: Mapping[str, str]) -> None:
    """Journals, for an agent that was stopped, that the whole system is going down; an agent stopped alone is no sign.

    Without this a boot has ended with nothing seen: the power was cut, the kernel crashed, or somebody forced it.
    """
    outcome = await run_program(["systemctl", "is-system-running"], ASKING, environ)
    if outcome.output != "stopping":
        return
    journal = Journal(settings.journal)
    try:
        if journal.load() == "whole":
            journal.update(stopped=True)
    except JournalUnwritable as error:
        _log.error("journal", error=str(error))


class Farewell:
    """Takes the machine out of service when its shutdown is announced, and lets it come back if that is called off.

    ``drain`` runs the ``drain.d`` hooks.
    """

    def __init__(
        self,
        host: Host,
        journal: Journal,
        keeper: MarkKeeper,
        runner: Runner,
        loop: ReportLoop,
        drain: Callable[[], Awaitable[HookOutcome]],
    ) -> None:
        self._host = host
        self._journal = journal
        self._keeper = keeper
        self._runner = runner
        self._loop = loop
        self._drain = drain

    async def announced(self, kind: str, allowed: float) -> None:
        """Does what can be done within ``allowed`` seconds; ``kind`` is what comes (reboot, poweroff, ...)."""
        if self._runner.going_down:
            return
        was_in = self._journal.record.in_service
        _log.warning("a shutdown was announced", kind=kind, seconds=allowed, in_service=was_in)
        self._runner.leave()
        self._write(announced=kind, in_service=False, by_hand="", since=self._host.now())
        self._keeper.kick()
        self._loop.told.clear()
        self._loop.wake()
        try:
            async with asyncio.timeout(max(0.0, allowed - MARGIN)):
                await self._out(was_in, allowed)
                async with asyncio.timeout(TELLING):
                    await self._loop.told.wait()
        except TimeoutError:
            _log.warning("the shutdown waits no longer", told=self._loop.told.is_set())

    async def _out(self, was_in: bool, allowed: float) -> None:
        if not was_in:
            # Perhaps a drain that was asked for is under way.
            await self._runner.idle()
            return
        problem = await self._keeper.reached(True, allowed)
        if problem:
            _log.warning("before the shutdown", problem=problem)
        outcome = await self._drain()
        if not outcome.ok:
            _log.warning("before the shutdown", problem=outcome.detail[:300])

    async def called_off(self) -> None:
        """The shutdown does not come; the coordinator finds the machine out of service and brings it back."""
        if self._journal.record.announced:
            _log.warning("the shutdown was called off", kind=self._journal.record.announced)
            self._write(announced="")
        self._runner.stay()
        self._loop.wake()

    def _write(self, **changes: object) -> None:
        try:
            self._journal.update(**changes)
        except JournalUnwritable as error:
            _log.error("journal", error=str(error))

"""``on_unreachable: enable-after DURATION``: a host that booted and finds no coordinator enables itself, loudly."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from rebootd.agent.host import Host
    from rebootd.agent.journal import Journal
    from rebootd.agent.loop import ReportLoop
    from rebootd.agent.runner import Runner

LOOK = 1.0
AGAIN = 60.0
"""Seconds until an attempt that failed is repeated."""
BY_ITSELF = "by itself: "
"""How the reason begins that stands where else a person's would."""
_log = structlog.get_logger("rebootd.agent.unreachable")


class Patience:
    """Runs out ``after`` seconds without an answer, counted from the agent's start or the last answer.

    Then the machine is enabled, unless a coordinator wants it out (drained, held, quarantined, as far as it was told)
    or its checks after boot have not passed.
    """

    def __init__(self, after: float, host: Host, journal: Journal, runner: Runner, loop: ReportLoop) -> None:
        self._after = after
        self._host = host
        self._journal = journal
        self._runner = runner
        self._loop = loop

    async def run(self) -> None:
        """Looks, until cancelled."""
        # CLOCK_BOOTTIME: a wall clock that is put right after the boot must not count as waiting.
        since, heard, tried = self._host.boottime(), self._loop.answers, 0.0
        while True:
            await asyncio.sleep(LOOK)
            now = self._host.boottime()
            if self._loop.answers != heard:
                since, heard = now, self._loop.answers
            record = self._journal.record
            if record.in_service or record.kept_out or record.announced or record.boot_check.status != "passed":
                continue
            if now - since < self._after or (tried and now - tried < AGAIN):
                continue
            tried = now
            reason = f"{BY_ITSELF}no coordinator answered for {now - since:.0f} s"
            _log.error("this machine enables itself, on_unreachable says so", why=reason)
            self._runner.enable_alone(reason)

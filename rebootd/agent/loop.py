"""The report loop: one open request that reports, waits, and brings the next directive."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import msgspec
import structlog

from rebootd import __version__
from rebootd.agent.client import NoCoordinator
from rebootd.agent.doubt import for_another
from rebootd.agent.journal import JournalUnwritable
from rebootd.agent.runner import BootChanged
from rebootd.core.errors import RebootdError, Refused
from rebootd.core.wire import Report, Result, Tri

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebootd.agent.client import Backoff, Coordinators
    from rebootd.agent.detect import Finding
    from rebootd.agent.host import Host
    from rebootd.agent.journal import Journal
    from rebootd.agent.outmark import MarkKeeper
    from rebootd.agent.runner import Runner
    from rebootd.agent.settings import AgentSettings
    from rebootd.core.wire import Answer

IDLE_PAUSE = 30.0
"""The longest pause between attempts while the machine is in service; out of service it is 5 s."""
OUT_PAUSE = 5.0
SPACING = 0.05
COMPLAIN_EVERY = 60.0
DETAIL_KEPT, DETAIL_BEGIN = 2000, 200
DOING_KEPT = 200
IN_SERVICE = "in-service"
KEEPS_OUT = frozenset({"draining", "drained", "held", "quarantined"})
"""States of a machine that a coordinator wants out of service."""
_log = structlog.get_logger("rebootd.agent.loop")


class Contact(msgspec.Struct, kw_only=True):
    """What the last contact told, for the state file. Times are seconds since the Unix epoch, 0: never."""

    at: float = 0.0
    state: str = ""
    waiting_for: str = ""
    problem: str = ""


class ReportLoop:
    """Reports until cancelled or ``BootChanged``. ``contact`` is what came of it; ``changed`` is told of news."""

    def __init__(
        self,
        settings: AgentSettings,
        host: Host,
        journal: Journal,
        runner: Runner,
        keeper: MarkKeeper,
        coordinators: Coordinators,
        *,
        backoff: Backoff,
        finding: Callable[[], Finding],
        changed: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._host = host
        self._journal = journal
        self._runner = runner
        self._keeper = keeper
        self._coordinators = coordinators
        self._backoff = backoff
        self._finding = finding
        self._changed = changed
        self._wake = asyncio.Event()
        self._asking: asyncio.Timeout | None = None
        self._index = 0
        self._complained = -COMPLAIN_EVERY
        self.contact = Contact()
        self.answers = 0
        """How often a coordinator has answered."""
        self.told = asyncio.Event()
        """Set when a coordinator has answered a report of an announced shutdown."""

    def wake(self) -> None:
        """Something is to be told at once: the request that waits is given up."""
        self._wake.set()
        asking, self._asking = self._asking, None
        if asking is not None:
            asking.reschedule(asyncio.get_running_loop().time())

    async def run(self) -> None:
        """Reports and obeys, for ever."""
        while True:
            if self._runner.going_down:
                await self._runner.idle()
            if self._runner.lost is not None:
                raise self._runner.lost
            self._wake.clear()
            report = self._report()
            pause = await self._round(report)
            self._changed()
            if not self._runner.going_down:
                await self._sleep(pause)

    async def _round(self, report: Report) -> float:
        """One request; returns the seconds to pause before the next."""
        started = asyncio.get_running_loop().time()
        try:
            answer = await self._ask(report)
        except RebootdError as error:
            return self._failed(error, report)
        if answer is None:
            return 0.0
        if answer.epoch < self._journal.record.epoch:
            self._coordinators.leader = ""
            seen = self._journal.record.epoch
            return self._failed(Refused(f"an answer of epoch {answer.epoch} after one of epoch {seen}"), report)
        self._told_well()
        self.answers += 1
        if report.announced:
            self.told.set()
        early = answer.index == report.index and asyncio.get_running_loop().time() - started < 0.5 * report.wait
        self._index = answer.index
        self._heed(answer)
        if early and report.wait > SPACING:
            return max(SPACING, self._backoff.next(OUT_PAUSE))
        self._backoff.reset()
        return SPACING

    async def _ask(self, report: Report) -> Answer | None:
        """The answer, or None when there is news to tell first or the machine is going down."""
        try:
            async with asyncio.timeout(None) as self._asking:
                answer = await self._coordinators.report(report.name, report)
        except TimeoutError:
            if self._wake.is_set():
                return None
            raise
        finally:
            self._asking = None
        return None if self._runner.going_down else answer

    def _heed(self, answer: Answer) -> None:
        record = self._journal.record
        kept_out = answer.state if answer.state in KEEPS_OUT and self._settings.enable_after is not None else ""
        if answer.epoch > record.epoch or kept_out != record.kept_out:
            try:
                self._journal.update(epoch=max(answer.epoch, record.epoch), kept_out=kept_out)
            except JournalUnwritable as error:
                self.contact.problem = str(error)
        self.contact.at = self._host.now()
        self.contact.state, self.contact.waiting_for = answer.state, answer.waiting_for
        directive = answer.directive
        if directive is not None and (directive.boot_id != record.boot_id or directive.epoch < record.epoch):
            self.contact.problem = f"directive {directive.id} is for another boot or of an old epoch; ignored"
            _log.warning("directive ignored", id=directive.id, boot_id=directive.boot_id, epoch=directive.epoch)
            directive = None
        elif directive is not None and for_another(directive, record.name):
            self.contact.problem = f"directive {directive.id} is for another machine; ignored"
            _log.warning("directive of another machine ignored", id=directive.id)
            directive = None
        self._runner.obey(directive)

    def _failed(self, error: RebootdError, report: Report) -> float:
        self.contact.problem = str(error)
        now = asyncio.get_running_loop().time()
        if now - self._complained >= COMPLAIN_EVERY:
            self._complained = now
            staying = "goes on in service" if report.in_service else "stays out of service and keeps asking"
            _log.warning(f"no word from a coordinator; this machine {staying}", error=self.contact.problem)
        retry_after = error.retry_after if isinstance(error, NoCoordinator) else 0.0
        idle = report.in_service and self.contact.state in {"", IN_SERVICE}
        return self._backoff.next(IDLE_PAUSE if idle else OUT_PAUSE, retry_after)

    def _told_well(self) -> None:
        if self.contact.problem:
            _log.info("coordinator answers", leader=self._coordinators.leader)
        self.contact.problem = ""
        self._complained = -COMPLAIN_EVERY

    async def _sleep(self, pause: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._wake.wait()

    def _report(self) -> Report:
        before = self._journal.record
        record = self._journal.refresh()
        if record.in_service != before.in_service:
            self._keeper.kick()
        present = self._host.boot_id()
        if present != record.boot_id:
            raise BootChanged(f"boot_id is {present}, it was {record.boot_id}")
        finding = self._finding()
        # Until a coordinator has said that the machine is back, a frozen one is to be left quickly.
        settled = record.in_service and not self._runner.doing and self.contact.state == IN_SERVICE
        return Report(
            name=record.name,
            machine_id=self._host.machine_id(),
            boot_id=record.boot_id,
            rack=self._settings.rack,
            chassis=self._settings.chassis,
            kernel=self._host.kernel(),
            labels=self._settings.labels,
            reboot_required=finding.required,
            reboot_reasons=finding.reasons if finding.required is Tri.YES else (),
            boot_check=record.boot_check,
            result=self._last_result(),
            in_service=record.in_service,
            by_hand=record.by_hand,
            announced=record.announced,
            doing=self._runner.doing[:DOING_KEPT],
            last_shutdown=record.last_shutdown,
            clock=self._host.now(),
            agent=__version__,
            index=self._index,
            wait=self._settings.wait_idle if settled else self._settings.wait_out,
        )

    def _last_result(self) -> Result | None:
        results = self._journal.record.results
        last = self._runner.unsaved or (results[-1] if results else None)
        if last is None or len(last.detail) <= DETAIL_KEPT:
            return last
        # Its begin says which hook it was and how that ended, its end is what a program said last.
        begin, end = last.detail[:DETAIL_BEGIN], last.detail[-(DETAIL_KEPT - DETAIL_BEGIN) :]
        return msgspec.structs.replace(last, detail=f"{begin} ... {end}")

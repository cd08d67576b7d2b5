"""The agent as a process: everything put together, started, and started anew when the boot_id changes."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import structlog

from rebootd.agent import statefile
from rebootd.agent.boot import begin, check_boot
from rebootd.agent.client import Backoff
from rebootd.agent.detect import Finding
from rebootd.agent.farewell import Farewell
from rebootd.agent.inhibit import Logind
from rebootd.agent.loop import ReportLoop
from rebootd.agent.outmark import MarkKeeper
from rebootd.agent.outside import Outside, Reality
from rebootd.agent.runner import BootChanged, Runner
from rebootd.agent.unreachable import BY_ITSELF, Patience
from rebootd.core.wire import Tri

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

    from rebootd.agent.inhibit import Shutdowns
    from rebootd.agent.notify import Notifier
    from rebootd.agent.settings import AgentSettings

FIRST_DETECTION = 2.0
"""Seconds that the first report waits for detection; after that it says unknown."""
STATE_EVERY = 15.0
_MARKS = {True: "set", False: "clear", None: "unknown"}
_log = structlog.get_logger("rebootd.agent")


async def run_agent(settings: AgentSettings, environ: Mapping[str, str], notifier: Notifier) -> None:
    """Runs until cancelled. Raises ``InvalidInput`` when the host cannot be identified."""
    delays = settings.inhibit == "always" or (settings.inhibit == "auto" and notifier.supervised)
    while True:
        try:
            outside = Reality(settings, environ)
            await outside.host.look(environ)
            await Agent(settings, environ, notifier, outside, Logind() if delays else None).run()
        except BootChanged as error:
            _log.info("starting anew", why=str(error))


class Agent:
    """One life of the agent, within one boot. ``outside`` None is the real host; ``shutdowns`` tells of others'."""

    def __init__(
        self,
        settings: AgentSettings,
        environ: Mapping[str, str],
        notifier: Notifier,
        outside: Outside | None = None,
        shutdowns: Shutdowns | None = None,
    ) -> None:
        self._shutdowns = shutdowns
        self._settings = settings
        self._environ = environ
        self._notifier = notifier
        self._outside = outside if outside is not None else Reality(settings, environ)
        self._host = self._outside.host
        self._journal = self._outside.journal
        self._finding = Finding(Tri.UNKNOWN)
        self._detected = asyncio.Event()
        self._news = asyncio.Event()
        self._written = ""
        self._lost: BootChanged | None = None

    async def run(self) -> None:
        """Runs until cancelled or until ``BootChanged``."""
        settings, outside = self._settings, self._outside
        rng, coordinators = outside.rng, outside.coordinators
        try:
            # Ready before the name is known: waiting for Consul or a coordinator is our work, not a failed start.
            self._notifier.ready()
            async with asyncio.TaskGroup() as group:
                watchdog = group.create_task(self._notifier.watchdog())
                age = self._host.age()
                name = await outside.name()
                begin(self._journal, self._host, settings, name, age)
                environ = hook_environment(self._environ, settings, name)
                self._keeper = MarkKeeper(outside.mark(name), self._wanted)
                self._runner = Runner(
                    settings,
                    self._host,
                    self._journal,
                    self._keeper,
                    ask=lambda request: coordinators.permit(name, request),
                    backoff=Backoff(rng),
                    environ=environ,
                    # The loop is made next; a directive cannot end before it runs.
                    wake=lambda: self._loop.wake(),  # noqa: PLW0108
                    hooks=outside.hooks,
                    nonce=outside.nonce,
                )
                self._loop = ReportLoop(
                    settings,
                    self._host,
                    self._journal,
                    self._runner,
                    self._keeper,
                    coordinators,
                    backoff=Backoff(rng),
                    finding=lambda: self._finding,
                    changed=self._news.set,
                )
                self._coordinators = coordinators
                helpers = [
                    watchdog,
                    group.create_task(self._keeper.run()),
                    group.create_task(self._detect(environ)),
                    group.create_task(self._write_state()),
                    group.create_task(check_boot(self._journal, settings, environ, self._loop.wake, outside.hooks)),
                    group.create_task(self._runner.keep_target()),
                    *(group.create_task(work) for work in self._optional()),
                ]
                try:
                    await self._report()
                finally:
                    self._runner.stop()
                    for helper in helpers:
                        helper.cancel()
        finally:
            await outside.close()
        if self._lost is not None:
            raise self._lost

    def _optional(self) -> list[Coroutine[None, None, None]]:
        work: list[Coroutine[None, None, None]] = []
        if self._settings.enable_after is not None:
            patience = Patience(self._settings.enable_after, self._host, self._journal, self._runner, self._loop)
            work.append(patience.run())
        if self._shutdowns is not None:
            farewell = Farewell(
                self._host, self._journal, self._keeper, self._runner, self._loop, self._runner.drain_hooks
            )
            work.append(self._shutdowns.run(farewell.announced, farewell.called_off))
        return work

    async def _report(self) -> None:
        try:
            async with asyncio.timeout(FIRST_DETECTION):
                await self._detected.wait()
        except TimeoutError:
            _log.info("the first report goes without detection")
        try:
            await self._loop.run()
        except BootChanged as error:
            self._lost = error

    def _wanted(self) -> tuple[bool, str]:
        record = self._journal.refresh()
        return not record.in_service, f"out of service until rebootd says so (boot {record.boot_id})"

    async def _detect(self, environ: Mapping[str, str]) -> None:
        while True:
            finding = await self._outside.detect(environ)
            if finding != self._finding:
                self._finding = finding
                if self._detected.is_set():
                    self._loop.wake()
            self._detected.set()
            await asyncio.sleep(self._settings.detect_every)

    def state(self) -> statefile.AgentState:
        """Where this machine stands."""
        record, contact = self._journal.record, self._loop.contact
        problems = [self._journal.problem, contact.problem, self._keeper.problem]
        if self._journal.aside is not None:
            problems.append(f"the journal was damaged, kept at {self._journal.aside}")
        by_itself = record.in_service and record.by_hand.startswith(BY_ITSELF)
        if by_itself:
            problems.append(f"enabled {record.by_hand}")
        waiting = self._runner.doing or contact.waiting_for
        if not waiting and not record.in_service:
            waiting = "a coordinator's word" if contact.at and not contact.problem else "a coordinator that answers"
        return statefile.AgentState(
            machine=record.name,
            boot_id=record.boot_id,
            in_service=record.in_service,
            state=contact.state,
            doing=self._runner.doing,
            waiting_for=waiting,
            since=record.since,
            last_contact=contact.at,
            coordinator=self._coordinators.leader,
            epoch=record.epoch,
            reboot_required=self._finding.required.value,
            reboot_reasons=self._finding.reasons,
            boot_check=record.boot_check.status,
            out_mark="none" if self._settings.mark == "none" else _MARKS[self._keeper.standing],
            by_hand=record.by_hand,
            by_itself=by_itself,
            announced=record.announced,
            last_shutdown=record.last_shutdown,
            shutdown_delay=self._shutdowns.allowed if self._shutdowns is not None else 0.0,
            problem="; ".join(dict.fromkeys(p for p in problems if p)),
            pid=os.getpid(),
            updated=self._host.now(),
        )

    async def _write_state(self) -> None:
        while True:
            state = self.state()
            where = "in service" if state.in_service else "out of service"
            self._notifier.status(f"{where}, waits for {state.waiting_for}" if state.waiting_for else where)
            try:
                self._outside.show(state)
                self._written = ""
            except OSError as error:
                if self._written != str(error):
                    _log.warning("state not written", error=str(error))
                self._written = str(error)
            self._news.clear()
            try:
                # Not wait_for: on Python 3.11 it swallows a cancellation that comes together with the news.
                async with asyncio.timeout(STATE_EVERY if not self._runner.doing else 1.0):
                    await self._news.wait()
            except TimeoutError:
                continue


def hook_environment(environ: Mapping[str, str], settings: AgentSettings, name: str) -> dict[str, str]:
    """What hooks, the detection command and the reboot command see. Secrets do not belong into the environment."""
    kept = {k: v for k, v in environ.items() if "TOKEN" not in k}
    kept.setdefault("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    return {
        **kept,
        "REBOOTD_MACHINE": name,
        "REBOOTD_RACK": settings.rack,
        "REBOOTD_STATE_DIR": settings.state_dir,
        "REBOOTD_BOOT_ID_FILE": settings.boot_id_file,
    }

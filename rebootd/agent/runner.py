"""The directive runner: drain, reboot and enable on this host, each directive id carried out once."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from rebootd.agent.hooks import HookOutcome, run_hooks
from rebootd.agent.journal import Intent, Journal, JournalUnwritable
from rebootd.agent.methods import obstacle
from rebootd.agent.target import Target
from rebootd.agent.traffic import Traffic
from rebootd.core.errors import RebootdError, Refused
from rebootd.core.wire import Directive, DirectiveKind, PermitRequest, Result

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from rebootd.agent.client import Backoff
    from rebootd.agent.hooks import RunHooks
    from rebootd.agent.host import Host
    from rebootd.agent.outmark import MarkKeeper
    from rebootd.agent.settings import AgentSettings
    from rebootd.core.wire import PermitAnswer

PERMIT_PAUSE = 5.0
"""The longest pause between two requests for a permit, in seconds."""
LOOK = 0.5
_log = structlog.get_logger("rebootd.agent.runner")


def new_nonce() -> str:
    """A word that nobody else will say."""
    return uuid.uuid4().hex


def _about(directive: Directive) -> dict[str, str | int]:
    """What a line of the log says of a directive, so that it is found beside those of leader and rebootctl."""
    machine = directive.id.split("/", maxsplit=1)[0]
    return {"machine": machine, "cycle": directive.cycle, "epoch": directive.epoch, "request": directive.request}


class BootChanged(Refused):
    """The boot_id changed under a running agent: it must start anew, as it does after a boot."""


class Runner:
    """Carries out one directive at a time. ``doing`` says what is under way, for people.

    ``going_down`` is set when the permit is in hand: from then on the agent reports nothing and waits for its end,
    until the reboot has failed. ``lost`` holds the ``BootChanged`` that ends the agent. ``unsaved`` is the last result
    if the journal could not take it. ``leaving`` is set while a shutdown by others is coming: nothing but a drain is
    carried out then.
    """

    def __init__(
        self,
        settings: AgentSettings,
        host: Host,
        journal: Journal,
        keeper: MarkKeeper,
        *,
        ask: Callable[[PermitRequest], Awaitable[PermitAnswer]],
        backoff: Backoff,
        environ: Mapping[str, str],
        wake: Callable[[], None],
        hooks: RunHooks = run_hooks,
        nonce: Callable[[], str] = new_nonce,
    ) -> None:
        self._run_hooks = hooks
        self._new_nonce = nonce
        self._settings = settings
        self._host = host
        self._journal = journal
        self._keeper = keeper
        self._ask = ask
        self._backoff = backoff
        self._environ = environ
        self._wake = wake
        self._target = Target(settings.target, environ)
        self._traffic = Traffic(settings.traffic_ports, settings.traffic_wait, settings.traffic_timeout)
        self._task: asyncio.Task[None] | None = None
        self._current: Directive | None = None
        self.doing = ""
        self.going_down = False
        self.leaving = False
        self.lost: BootChanged | None = None
        self.unsaved: Result | None = None

    def obey(self, directive: Directive | None) -> None:
        """Starts what is asked, unless it is under way or done; what was asked before and no longer is, is stopped."""
        if self.going_down:
            return
        if self.leaving and (directive is None or directive.kind is not DirectiveKind.DRAIN):
            return
        if self._current and directive and _same(self._current, directive):
            self._current = directive
            return
        self.stop()
        if directive is None or self.result(directive.id) is not None:
            return
        self._current = directive
        self._task = asyncio.create_task(self._run(directive), name=f"directive {directive.id}")

    def stop(self) -> None:
        """Stops what is under way; its hooks are killed."""
        if self._task is not None and not self._task.done():
            _log.info("no longer asked for", directive=self._current.id if self._current else "")
            self._task.cancel()
        self._task, self._current, self.doing = None, None, ""

    def leave(self) -> None:
        """A shutdown by others is coming: a drain under way goes on, all else stops."""
        self.leaving = True
        if self._current is None or self._current.kind is not DirectiveKind.DRAIN:
            self.stop()

    def stay(self) -> None:
        """It does not come."""
        self.leaving = False

    def enable_alone(self, reason: str) -> None:
        """Starts to enable the machine with nobody's word, unless something is under way; any word stops it."""
        if self._task is None and not self.leaving:
            self.doing = "enable without a coordinator"
            self._task = asyncio.create_task(self._alone(reason), name="enable without a coordinator")

    async def _alone(self, reason: str) -> None:
        environ = {**self._environ, "REBOOTD_KIND": "enable", "REBOOTD_BOOT_ID": self._journal.record.boot_id}
        folder = Path(self._settings.hooks_dir) / "enable.d"
        try:
            outcome = await self._run_hooks(folder, self._settings.hook_timeout, environ)
            if outcome.ok:
                outcome = await self._into_service(outcome, by_hand=reason)
        except RebootdError as error:
            outcome = HookOutcome(ok=False, detail=str(error))
        self._task, self.doing = None, ""
        log = _log.warning if outcome.ok else _log.error
        log("enabled without a coordinator" if outcome.ok else "not enabled", why=reason, detail=outcome.detail[:300])
        self._wake()

    async def idle(self) -> None:
        """Returns when nothing is under way."""
        while self._task is not None and not self._task.done():
            await asyncio.wait({self._task})

    def result(self, directive: str) -> Result | None:
        """How the directive of that id ended, if it did."""
        if self.unsaved is not None and self.unsaved.id == directive:
            return self.unsaved
        return self._journal.record.result(directive)

    async def _run(self, directive: Directive) -> None:
        _log.info("directive", id=directive.id, kind=directive.kind.value, **_about(directive))
        self.doing = directive.kind.value
        work = {
            DirectiveKind.DRAIN: self._drain,
            DirectiveKind.REBOOT: self._reboot,
            DirectiveKind.ENABLE: self._enable,
        }[directive.kind]
        try:
            outcome = await work(directive)
        except BootChanged as error:
            self.lost = error
            self._wake()
            return
        except RebootdError as error:
            outcome = HookOutcome(ok=False, detail=str(error))
        self._finish(directive, outcome)

    def _finish(self, directive: Directive, outcome: HookOutcome) -> None:
        directive = self._current or directive
        result = Result(directive.id, directive.kind, outcome.ok, outcome.detail, directive.epoch)
        # A result that is only in memory is repeated as long as we live; after that the directive is carried out again.
        self.unsaved = result
        try:
            self._journal.add_result(result)
            self.unsaved = None
        except JournalUnwritable as error:
            _log.error("result not journaled", directive=directive.id, error=str(error))
        self._current, self.doing, self.going_down = None, "", False
        log = _log.info if outcome.ok else _log.error
        log("directive done", id=directive.id, ok=outcome.ok, detail=outcome.detail[:300], **_about(directive))
        self._wake()

    async def _hooks(self, folder: str, directive: Directive) -> HookOutcome:
        environ = {
            **self._environ,
            "REBOOTD_DIRECTIVE": directive.id,
            "REBOOTD_KIND": directive.kind.value,
            "REBOOTD_CYCLE": directive.cycle,
            "REBOOTD_BOOT_ID": directive.boot_id,
            "REBOOTD_METHOD": directive.method or self._settings.reboot_method,
        }
        self.doing = f"{directive.kind.value}: {folder} hooks"
        return await self._run_hooks(Path(self._settings.hooks_dir) / folder, self._settings.hook_timeout, environ)

    async def _drain(self, directive: Directive) -> HookOutcome:
        # Journaled first: an agent that is killed now comes back knowing that it is out.
        self._journal.update(in_service=False, by_hand="", since=self._host.now())
        self.doing = "drain: out mark"
        problem = await self._keeper.reached(True, self._settings.mark_timeout)
        if not problem:
            self.doing = "drain: waiting for traffic to leave"
            problem = await self._traffic.gone(self._keeper.shown)
        if problem:
            return HookOutcome(ok=False, detail=problem)
        outcome = await self._hooks("drain.d", directive)
        if outcome.ok:
            self.doing = "drain: stopping services"
            problem = await self._target.stop(self._settings.hook_timeout)
            if problem:
                return HookOutcome(ok=False, detail=problem)
        return outcome

    async def drain_hooks(self) -> HookOutcome:
        """Runs ``drain.d`` with no directive, before a shutdown by others; their time is bounded by the caller."""
        problem = await self._traffic.gone(self._keeper.shown)
        if problem:
            _log.warning("traffic", problem=problem)
        environ = {**self._environ, "REBOOTD_KIND": "drain", "REBOOTD_BOOT_ID": self._journal.record.boot_id}
        return await self._run_hooks(Path(self._settings.hooks_dir) / "drain.d", self._settings.hook_timeout, environ)

    async def _enable(self, directive: Directive) -> HookOutcome:
        outcome = await self._hooks("enable.d", directive)
        if not outcome.ok:
            return outcome
        return await self._into_service(outcome)

    async def _into_service(self, outcome: HookOutcome, by_hand: str = "") -> HookOutcome:
        self._journal.update(in_service=True, by_hand=by_hand or self._journal.record.by_hand, since=self._host.now())
        self.doing = "enable: starting services"
        problem = await self._target.start()
        if not problem:
            self.doing = "enable: out mark"
            problem = await self._keeper.reached(False, self._settings.mark_timeout)
        if not problem:
            return outcome
        self._journal.update(in_service=False, **({"by_hand": ""} if by_hand else {}))
        self._keeper.kick()
        return HookOutcome(ok=False, detail=problem)

    async def keep_target(self) -> None:
        """Once, when the agent starts: an agent that was killed may have left the target behind the journal."""
        if self._journal.record.in_service:
            problem = await self._target.start()
            if problem:
                _log.error("target", problem=problem)

    async def _reboot(self, directive: Directive) -> HookOutcome:
        if self._host.reboot_started(directive.boot_id):
            return await self._after_start(directive)
        outcome = await self._hooks("pre-reboot.d", directive)
        if not outcome.ok:
            return outcome
        # After the hooks, since one of them may load the kernel for kexec; before the permit, which nothing undoes.
        problem = await obstacle(self._settings, directive.method or self._settings.reboot_method, self._environ)
        if problem:
            return HookOutcome(ok=False, detail=problem)
        self._backoff.reset()
        while True:
            why = await self._try_reboot(directive)
            if not why:
                break
            self.doing = f"reboot: {why}"
            _log.warning("no reboot yet", directive=directive.id, why=why, **_about(directive))
            await asyncio.sleep(self._backoff.next(PERMIT_PAUSE))
        return await self._wait_for_the_end(directive, self._host.boottime())

    async def _try_reboot(self, directive: Directive) -> str:
        """One request for the permit and, if it is granted, the reboot command; or why not."""
        try:
            nonce = self._journal.update(nonce=self._journal.record.nonce or self._new_nonce()).nonce
        except JournalUnwritable as error:
            return f"no permit is asked for, {error}"
        self.doing = "reboot: asking for the permit"
        request = PermitRequest(
            name=self._journal.record.name,
            machine_id=self._host.machine_id(),
            boot_id=directive.boot_id,
            nonce=nonce,
            directive=directive.id,
            epoch=directive.epoch,
        )
        sent = self._host.boottime()
        try:
            answer = await self._ask(request)
        except RebootdError as error:
            return f"the permit is not answered: {error}"
        refusal = self._objection(answer, directive, nonce)
        if refusal:
            return refusal
        self.going_down = True
        try:
            intent = Intent(directive=directive.id, boot_id=directive.boot_id, nonce=nonce, sent=sent)
            self._journal.update(intent=intent, epoch=max(answer.epoch, self._journal.record.epoch))
        except JournalUnwritable as error:
            self.going_down = False
            return f"no reboot, {error}"
        present = self._host.boot_id()
        if present != answer.boot_id:
            raise BootChanged(f"boot_id is {present} now, the permit is for {answer.boot_id}")
        if self._host.boottime() - sent >= answer.valid_for:
            self.going_down = False
            return f"the permit was valid for {answer.valid_for:g} s and is over"
        method = directive.method or self._settings.reboot_method
        about = _about(directive) | {"epoch": answer.epoch}
        _log.info("rebooting", directive=directive.id, boot_id=present, method=method, **about)
        process = await self._host.reboot(present, {**self._environ, "REBOOTD_METHOD": method}, method)
        self._process = process
        return ""

    def _objection(self, answer: PermitAnswer, directive: Directive, nonce: str) -> str:
        if answer.epoch < self._journal.record.epoch:
            return f"an answer of epoch {answer.epoch} came, {self._journal.record.epoch} was seen before"
        if not answer.granted:
            return f"the permit is refused: {answer.reason or 'no reason given'}"
        if answer.boot_id != directive.boot_id or answer.nonce != nonce:
            return "the permit is for another boot_id or nonce"
        return ""

    async def _after_start(self, directive: Directive) -> HookOutcome:
        """The command was executed in this boot, by us before we were killed or for an earlier directive."""
        intent = self._journal.record.intent
        # By boot_id, not by directive: the coordinator asks in `rebooting` again, under the id of that later step.
        if intent is None or intent.boot_id != directive.boot_id:
            return HookOutcome(ok=False, detail="the reboot command was executed in this boot already; reboot by hand")
        former = self.result(intent.directive)
        if former is not None:
            # It failed already, under the id that the reboot had in the step before.
            return HookOutcome(ok=False, detail=former.detail)
        self.going_down = True
        # A host that came back under the same boot_id counts its uptime anew.
        return await self._wait_for_the_end(directive, min(intent.sent, self._host.boottime()))

    async def _wait_for_the_end(self, directive: Directive, since: float) -> HookOutcome:
        self.doing = "reboot: waiting for the end"
        process, self._process = self._process, None
        while self._host.boottime() - since < self._settings.reboot_timeout:
            if self._host.boot_id() != directive.boot_id:
                raise BootChanged("boot_id changed after the reboot command")
            if process is not None and process.returncode:
                problem = f"the reboot command failed with exit code {process.returncode}"
                return HookOutcome(ok=False, detail=f"{problem}: {self._host.reboot_output()}")
            await asyncio.sleep(LOOK)
        problem = f"still up {self._settings.reboot_timeout:g} s after the reboot command"
        return HookOutcome(ok=False, detail=f"{problem}: {self._host.reboot_output()}".rstrip(": "))

    _process: asyncio.subprocess.Process | None = None


def _same(one: Directive, other: Directive) -> bool:
    """Whether two directives are one piece of work: the step from drained to rebooting renames the reboot under way."""
    reboot = one.kind is other.kind is DirectiveKind.REBOOT
    return one.id == other.id or (reboot and one.boot_id == other.boot_id)

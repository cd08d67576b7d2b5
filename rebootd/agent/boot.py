"""The first moments: is this a new boot, a living machine that met us before, or one we were just installed on?"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from rebootd.agent.hooks import run_hooks
from rebootd.agent.journal import Journal, JournalUnwritable, Record
from rebootd.core.wire import CheckResult, DirectiveKind, Result

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rebootd.agent.hooks import RunHooks
    from rebootd.agent.host import Host
    from rebootd.agent.settings import AgentSettings

KEPT_OUT = frozenset({"held", "quarantined"})
"""States that outlast a boot."""
_log = structlog.get_logger("rebootd.agent.boot")


def begin(journal: Journal, host: Host, settings: AgentSettings, name: str, age: float | None = None) -> Record:
    """Loads the journal and brings it to the present boot.

    No journal: on a host up for less than ``fresh_boot`` seconds this is a new boot; else the agent was installed on
    a living machine, which stays in service. A damaged journal: out of service until a coordinator says enable.
    ``age`` is for how long (s) the host was up when the agent started, which may have waited for its name since.
    """
    boot_id = host.boot_id()
    age = host.age() if age is None else age
    found = _load(journal)
    record = journal.record
    if found == "whole" and record.boot_id == boot_id:
        # An agent that starts lives: what was announced to the one before did not come, or is announced again.
        changes: dict[str, object] = {"name": name, "announced": "", "stopped": False}
    elif found == "absent" and age >= settings.fresh_boot and not host.soft_booted():
        _log.info("no journal on a living machine: installed here, it stays in service", boot_id=boot_id)
        passed = CheckResult("passed", "the agent was installed on a living machine")
        changes = {"name": name, "boot_id": boot_id, "in_service": True, "boot_check": passed, "since": host.now()}
    else:
        _log.info("new boot" if found != "corrupt" else "journal lost, taken as a new boot", boot_id=boot_id)
        changes = new_boot(record, boot_id, host.now(), crashed=host.crashed()) | {"name": name}
        _log.info("the boot before ended", how=changes["last_shutdown"] or "not known")
    try:
        journal.update(**changes)
    except JournalUnwritable as error:
        _log.error("journal", error=str(error))
    host.forget_markers(boot_id)
    return journal.record


def _load(journal: Journal) -> str:
    try:
        found = journal.load()
    except JournalUnwritable as error:
        journal.problem = str(error)
        _log.error("the journal cannot be read; this machine stays out of service", error=str(error))
        return "corrupt"
    if found == "corrupt":
        _log.error("the journal is damaged, kept aside; this machine stays out of service", aside=str(journal.aside))
    return found


def last_shutdown(record: Record, crashed: bool) -> str:
    """How the boot of the record ended (words: :class:`rebootd.core.wire.Report`)."""
    if not record.boot_id:
        return ""
    intent = record.intent
    if intent is not None and record.result(intent.directive) is None:
        return "permitted"
    if record.announced:
        return "announced"
    if record.stopped:
        return "orderly"
    return "crash" if crashed else "none"


def new_boot(record: Record, boot_id: str, now: float, *, crashed: bool = False) -> dict[str, object]:
    """The fields that a new boot changes: out of service, nothing checked, nonce and intent spent."""
    changes: dict[str, object] = {
        "boot_id": boot_id,
        "nonce": "",
        "intent": None,
        "in_service": False,
        "by_hand": "",
        "boot_check": CheckResult(),
        "since": now,
        "announced": "",
        "stopped": False,
        "last_shutdown": last_shutdown(record, crashed),
        # Who was kept out by a coordinator's word stays so over boots: nobody else may put it into service.
        "kept_out": record.kept_out if record.kept_out in KEPT_OUT else "",
    }
    if record.intent is not None:
        done = Result(record.intent.directive, DirectiveKind.REBOOT, ok=True, detail=f"booted as {boot_id}")
        changes["results"] = record.with_result(done)
    return changes


async def check_boot(
    journal: Journal,
    settings: AgentSettings,
    environ: Mapping[str, str],
    changed: Callable[[], None],
    hooks: RunHooks = run_hooks,
) -> None:
    """Runs ``post-boot.d`` each ``recheck`` seconds until it passes: a cleared quarantine needs a fresh answer."""
    folder = Path(settings.hooks_dir) / "post-boot.d"
    while journal.record.boot_check.status != "passed":
        outcome = await hooks(folder, settings.hook_timeout, {**environ, "REBOOTD_BOOT_ID": journal.record.boot_id})
        check = CheckResult("passed" if outcome.ok else "failed", outcome.detail)
        try:
            journal.update(boot_check=check)
        except JournalUnwritable as error:
            # A host that cannot write its journal could not be rebooted safely again: it does not pass.
            check = CheckResult("failed", str(error))
            _keep(journal, check)
        log = _log.info if check.status == "passed" else _log.error
        log("boot check", status=check.status, detail=check.detail[:300])
        changed()
        if check.status != "passed":
            await asyncio.sleep(settings.recheck)


def _keep(journal: Journal, check: CheckResult) -> None:
    try:
        journal.update(boot_check=check)
    except JournalUnwritable as error:
        _log.error("boot check not journaled", error=str(error))

"""Break-glass: enabling this host with no coordinator, by a person who says why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from rebootd.agent.app import hook_environment
from rebootd.agent.boot import new_boot
from rebootd.agent.hooks import run_hooks
from rebootd.agent.host import Host
from rebootd.agent.identity import consul_client, machine_name, mark_for
from rebootd.agent.journal import Journal
from rebootd.agent.outside import remembered_name
from rebootd.agent.target import Target
from rebootd.core.errors import InvalidInput, RebootdError, Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rebootd.agent.settings import AgentSettings

REASON_LIMIT = 500
NAME_PATIENCE = 5.0


class Enabled(msgspec.Struct, frozen=True):
    """What was done. ``mark_problem`` says why the out mark still stands, or ``""``: a running agent keeps trying."""

    machine: str
    boot_id: str
    detail: str
    mark_problem: str


async def enable_by_hand(settings: AgentSettings, environ: Mapping[str, str], reason: str) -> Enabled:
    """Runs the ``enable.d`` hooks, journals the reason, and takes the out mark away; safe beside a running agent.

    Later reports carry the reason. Raises ``Refused`` when a hook fails (nothing was changed then),
    ``JournalUnwritable``, and ``InvalidInput`` for an empty reason.
    """
    reason = " ".join(reason.split())
    if not reason or len(reason) > REASON_LIMIT or not reason.isprintable():
        raise InvalidInput("reason", reason[:80], f"a reason in words, at most {REASON_LIMIT} characters")
    host, journal = Host(settings), Journal(settings.journal)
    await host.look(environ)
    boot_id = host.boot_id()
    consul = consul_client(settings, environ)
    try:
        name = await machine_name(settings, host, consul, remembered_name(settings.journal), patience=NAME_PATIENCE)
        hooks = {**hook_environment(environ, settings, name), "REBOOTD_BOOT_ID": boot_id, "REBOOTD_KIND": "enable"}
        outcome = await run_hooks(Path(settings.hooks_dir) / "enable.d", settings.hook_timeout, hooks)
        if not outcome.ok:
            raise Refused(f"an enable hook failed, nothing was changed: {outcome.detail}")
        journal.load()
        changes = {} if journal.record.boot_id == boot_id else new_boot(journal.record, boot_id, host.now())
        changes |= {"name": name, "in_service": True, "by_hand": reason, "since": host.now()}
        journal.update(**changes)
        target_problem = await Target(settings.target, hooks).start()
        try:
            await mark_for(settings, consul, name).apply(False, "")
            problem = ""
        except RebootdError as error:
            problem = str(error)
    finally:
        if consul is not None:
            await consul.close()
    return Enabled(name, boot_id, "\n".join(t for t in (outcome.detail, target_problem) if t), problem)

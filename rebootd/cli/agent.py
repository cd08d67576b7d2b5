"""``rebootd agent``: run on a host, show where it stands, or enable it by hand."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from rebootd.agent.settings import DEFAULT_CONFIG, load
from rebootd.core.errors import InvalidInput, RebootdError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebootd.agent.settings import AgentSettings
    from rebootd.agent.statefile import AgentState

STALE = 60.0


@click.group(name="agent", context_settings={"help_option_names": ["-h", "--help"]})
def agent() -> None:
    """Work on this host: report to the coordinators, drain, reboot, and come back into service.

    Settings come from YAML files (--config and the folder beside it), then REBOOTD_AGENT_<FIELD> variables, then flags.
    """


command = agent


def _settings_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--set", "sets", multiple=True, metavar="FIELD=VALUE", help="Any setting; the value is YAML."),
        click.option("--config", default=DEFAULT_CONFIG, show_default=True, metavar="FILE", help="YAML settings."),
    ):
        function = option(function)
    return function


def _load(config: str, sets: tuple[str, ...], **flags: object) -> AgentSettings:
    try:
        return load(config, os.environ, flags, sets)
    except InvalidInput as error:
        raise _failed(error) from error


def _failed(error: RebootdError) -> SystemExit:
    click.echo(f"rebootd agent: {error}", err=True)
    return SystemExit(2 if isinstance(error, InvalidInput) else 1)


@agent.command()
@_settings_options
@click.option("--name", help="The machine's name; else the local Consul node's.")
@click.option("--rack", help="The rack, where Consul's node meta does not say it.")
@click.option("--token-file", help="The file with the shared token.")
@click.option("--log-format", type=click.Choice(["json", "plain"]), default="plain", show_default=True)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
def run(config: str, sets: tuple[str, ...], log_format: str, log_level: str, **flags: object) -> None:
    """Run the agent until it is stopped (SIGTERM, Ctrl-C). A stop changes nothing about the machine's service.

    Example: rebootd agent run --set hooks_dir=/etc/rebootd
    """
    # structlog takes rich (6 MB, on every host) for tracebacks on a terminal, if it can have it.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
    from rebootd.agent.app import run_agent
    from rebootd.agent.farewell import note_end
    from rebootd.agent.notify import Notifier

    settings = _load(config, sets, **flags)
    _log_to_stderr(log_format, log_level)
    environ = dict(os.environ)
    notifier = Notifier(environ)

    async def until_stopped() -> None:
        work = asyncio.create_task(run_agent(settings, environ, notifier))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, work.cancel)
        try:
            await work
        except asyncio.CancelledError:
            if notifier.supervised:
                await note_end(settings, environ)
            raise

    try:
        asyncio.run(until_stopped())
    except asyncio.CancelledError:
        notifier.send("STOPPING=1")
    except RebootdError as error:
        raise _failed(error) from error
    except ExceptionGroup as group:
        expected, others = group.split(RebootdError)
        if others is not None or expected is None:
            raise
        first = expected.exceptions[0]
        raise _failed(first if isinstance(first, RebootdError) else RebootdError(str(first))) from group


@agent.command()
@_settings_options
@click.option("--local", is_flag=True, required=True, help="Say that you mean this host, with no coordinator asked.")
@click.option("--reason", required=True, metavar="TEXT", help="Why; later reports carry it to the coordinator.")
def enable(config: str, sets: tuple[str, ...], local: bool, reason: str) -> None:  # noqa: ARG001  the flag is the consent
    """Break the glass: put this host back into service by hand, when every coordinator is gone.

    Runs the enable.d hooks, journals the reason, and takes our own out mark away. Never touches what others disabled.

    Example: rebootd agent enable --local --reason "all daemons down, checked by hand, ticket 4711"
    """
    from rebootd.agent.by_hand import enable_by_hand

    settings = _load(config, sets)
    try:
        done = asyncio.run(enable_by_hand(settings, dict(os.environ), reason))
    except RebootdError as error:
        raise _failed(error) from error
    click.echo(f"{done.machine} is in service by hand (boot {done.boot_id})")
    if done.detail:
        click.echo(done.detail)
    if done.mark_problem:
        click.echo(
            f"The out mark still stands: {done.mark_problem}. A running agent takes it away when Consul is back.",
            err=True,
        )
        sys.exit(1)


@agent.command()
@_settings_options
@click.option("--json", "as_json", is_flag=True, help="The state file as JSON.")
def status(config: str, sets: tuple[str, ...], as_json: bool) -> None:
    """Show where this host stands and what it waits for. Exit code 0 in service, 1 out of service or not known.

    Example: rebootd agent status --json
    """
    import msgspec

    from rebootd.agent import statefile

    settings = _load(config, sets)
    try:
        state = statefile.read(settings.state_file)
    except RebootdError as error:
        raise _failed(error) from error
    stale = time.time() - state.updated > STALE
    if as_json:
        click.echo(msgspec.json.encode(state).decode())
    else:
        _show(state, stale)
    sys.exit(0 if state.in_service and not stale else 1)


def _show(state: AgentState, stale: bool) -> None:
    def ago(at: float) -> str:
        return f"{max(0, int(time.time() - at))} s ago" if at else "never"

    rows = [
        ("machine", state.machine),
        ("in service", ("yes, by hand: " + state.by_hand if state.by_hand else "yes") if state.in_service else "no"),
        ("since", ago(state.since)),
        ("state", state.state or "not known yet"),
        ("waits for", state.waiting_for or "-"),
        ("last contact", f"{ago(state.last_contact)} {state.coordinator}".strip()),
        ("reboot required", " ".join((state.reboot_required, *state.reboot_reasons[:3]))),
        ("boot check", state.boot_check),
        ("out mark", state.out_mark),
        ("boot_id", state.boot_id),
        ("last boot ended", state.last_shutdown or "not known"),
        ("shutdowns wait", f"{state.shutdown_delay:g} s for a drain" if state.shutdown_delay else "no"),
        ("epoch", str(state.epoch)),
    ]
    if state.announced:
        rows.append(("going down", f"somebody's {state.announced} was announced"))
    if state.problem:
        rows.append(("problem", state.problem))
    if stale:
        rows.append(("problem", f"this was written {ago(state.updated)}: the agent does not run"))
    for label, text in rows:
        click.echo(f"{label + ':':<17}{text}")


def _log_to_stderr(log_format: str, level: str) -> None:
    import structlog

    renderer: Any
    if log_format == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"])
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )

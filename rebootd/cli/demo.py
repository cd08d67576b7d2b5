"""``rebootd demo``: a whole fleet on this machine, for a minute."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rebootd.core.errors import InvalidInput, RebootdError

if TYPE_CHECKING:
    from typing import IO

    from rebootd.cli.demo_screen import Screen
    from rebootd.cli.demo_story import DemoOptions
    from rebootd.cli.demo_summary import Verdict

SENSIBLE = 30
"""Agents on one computer; each takes some 40 MB and, at its start, half a second of a CPU."""
STARTING = 60.0
PER_MACHINE = 15.0


@click.command(name="demo", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--racks", type=click.IntRange(1, 1000), default=3, show_default=True, help="How many racks.")
@click.option("--machines", type=click.IntRange(1, 1000), default=4, show_default=True, help="Machines in each rack.")
@click.option("--no-kill", is_flag=True, help="Let the leader live.")
@click.option("--keep", is_flag=True, help="Leave everything running at the end, until Ctrl-C.")
@click.option("--events", metavar="FILE", type=click.Path(dir_okay=False), help="Transitions, as lines of JSON.")
@click.option("--boot-time", type=click.FloatRange(0, 600), default=2.0, show_default=True, metavar="SECONDS")
@click.option("--timeout", type=click.FloatRange(1), metavar="SECONDS", help="When to give up.  [default: by size]")
def command(
    racks: int,
    machines: int,
    no_kill: bool,
    keep: bool,
    events: str | None,
    boot_time: float,
    timeout: float | None,
) -> None:
    """Show a whole cycle on this machine: a dev Consul, three daemons, and an agent process for every machine.

    Each machine's reboot command ends its agent and starts it again with a new boot_id after some seconds. In the
    middle the leader is killed with SIGKILL. Exit code 0 only if every machine rebooted exactly once and is in service.

    Consul is found through $CONSUL_BIN, PATH, or fetched from Debian; if CONSUL_HTTP_ADDR is set, that one (an agent
    on this computer) is used, and left as it was. Without any, the daemon's memory store takes its place.

    Example: rebootd demo --racks 2 --machines 3 --events /tmp/events.jsonl
    """
    from rebootd.cli.demo_screen import Screen
    from rebootd.cli.demo_story import DemoOptions

    screen = Screen()
    with ExitStack() as stack:
        try:
            file = stack.enter_context(_events_file(events)) if events is not None else None
            given = bool(os.environ.get("CONSUL_HTTP_ADDR"))
            if racks * machines > SENSIBLE:
                told = f"{racks * machines} agents take some {racks * machines * 40} MB, and minutes to start."
                screen.say(f"{told} More than {SENSIBLE} are slow on one computer.", "yellow")
            options = DemoOptions(
                racks=racks,
                machines=machines,
                kill=not no_kill,
                keep=keep,
                timeout=timeout or STARTING + (PER_MACHINE + 1.5 * boot_time) * racks * machines,
                boot_time=boot_time,
                given=given,
                program=None if given else _consul(screen),
            )
            sys.exit(_play(options, screen, file))
        except (RebootdError, OSError) as error:
            screen.end()
            click.echo(f"rebootd demo: {error}", err=True)
            sys.exit(2 if isinstance(error, InvalidInput) else 1)


def _events_file(path: str) -> IO[str]:
    try:
        return Path(path).open("w", encoding="utf-8")
    except OSError as error:
        raise InvalidInput("events", path, f"a file that can be written ({error.strerror})") from error


def _consul(screen: Screen) -> Path | None:
    from rebootd.consul.binary import UnavailableError, locate

    if not os.environ.get("CONSUL_BIN") and shutil.which("consul") is None:
        screen.say("No consul on PATH: looking in the cache, else fetching Debian's package.", "dim")
    try:
        return locate()
    except UnavailableError as error:
        screen.say(f"No Consul can be had: {error}", "yellow")
        screen.say("Using the memory store instead, with one daemon, so the leader is not killed.", "yellow")
        return None


def _play(options: DemoOptions, screen: Screen, file: IO[str] | None) -> int:
    """The exit code: 0, 1, or 128 and the number of the signal that ended it."""
    from rebootd.cli.ctl_client import Trouble
    from rebootd.cli.demo_story import Story

    caught: list[int] = []
    finished: list[Verdict] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        story = asyncio.ensure_future(Story(options, screen, file).play(finished.append))

        def stop(number: int) -> None:
            # Once: what is asked for again while everything is being ended must not interrupt that.
            if not caught:
                caught.append(number)
                story.cancel()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop, number)
        await story

    try:
        asyncio.run(run())
    except asyncio.CancelledError:
        if not finished:
            screen.say("Stopped; everything that was started is gone.")
            return 128 + caught[0] if caught else 1
    except Trouble as error:
        raise RebootdError(str(error)) from error
    return 1 if finished[0].problems else 0

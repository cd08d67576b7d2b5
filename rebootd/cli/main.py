"""``rebootd``: one program, three works. Each subcommand's module is imported only when it is asked for.

A subcommand named ``x`` is the click command that ``rebootd.cli.x`` exports as ``command``.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import PurePath

import click

from rebootd import __version__

SUBCOMMANDS = {
    "server": "Run a daemon: wait for leadership, lead, answer machines and operators.",
    "agent": "Run on a host: report, drain, reboot, come back; or enable it by hand.",
    "demo": "Show a whole cycle on this machine: Consul, daemons, agents, a killed leader.",
}
"""What the help says of each subcommand without importing it."""


class LazyGroup(click.Group):
    """A group whose subcommands are imported when they are run, and not to list them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        """Return the subcommands in the order of ``SUBCOMMANDS``."""
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  click's signature
        """Import ``rebootd.cli.<cmd_name>`` and return its ``command``; None for an unknown name."""
        if cmd_name not in SUBCOMMANDS:
            return None
        command = import_module(f"rebootd.cli.{cmd_name}").command
        if not isinstance(command, click.Command):
            raise TypeError(f"rebootd.cli.{cmd_name}.command is no click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  click's signature
        """Write the list of subcommands from ``SUBCOMMANDS``."""
        with formatter.section("Commands"):
            formatter.write_dl(list(SUBCOMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rebootd")
def main() -> None:
    """Reboots a fleet of Linux machines safely, one rack at a time, with nobody watching.

    Operators use `rebootctl`.
    """


def packed() -> None:
    """Start the one file that `make dist` makes: called as `rebootctl` it is that, else `rebootd`."""
    if PurePath(sys.argv[0]).name == "rebootctl":
        import_module("rebootd.cli.ctl").main()
    else:
        main()


if __name__ == "__main__":
    main()

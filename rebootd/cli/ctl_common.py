"""What all of rebootctl's commands share: the options, the context, times and safe text."""

from __future__ import annotations

import getpass
import os
import re
import socket
import time
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rebootd.cli.ctl_client import BAD_INPUT, Client, Trouble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rich.console import Console, RenderableType
    from rich.text import Text

T = TypeVar("T")

WIDE = 240
"""Columns of output that goes to a file or pipe: tables are never folded there."""

_MOMENT = re.compile(r"\{(\d{9,11})\}")


def read_answer(raw: bytes, kind: type[T]) -> T:
    """The answer. Raises Trouble when something else than a daemon has answered."""
    import msgspec

    from rebootd.core.codec import read_json

    try:
        return read_json(raw, kind)
    except msgspec.MsgspecError as error:
        raise not_ours(str(error)) from None


def not_ours(why: str) -> Trouble:
    """The error for an answer that no daemon gives."""
    return Trouble(f"what answers there is no rebootd daemon, or one of another version: {why[:200]}")


class Ctl:
    """One run of rebootctl."""

    def __init__(self, client: Client, by: str, as_json: bool) -> None:
        self.client = client
        self.by = by
        self.as_json = as_json

    def show(self, raw: bytes, kind: type[T], render: Callable[[T], Iterable[RenderableType]]) -> T:
        """Prints an answer as JSON, or as ``render`` makes it for people. Returns it decoded."""
        import msgspec

        answer = read_answer(raw, kind)
        if self.as_json:
            click.echo(msgspec.json.format(raw, indent=2))
        else:
            out = console()
            for part in render(answer):
                # A line is left to the terminal to fold, so that copying it gives one line.
                out.print(part, soft_wrap=hasattr(part, "plain"))
        return answer

    def change(self, method: str, path: str, /, **body: Any) -> None:
        """Asks for a change and prints what was done."""
        import msgspec

        raw = self.client.ask(method, path, msgspec.json.encode({"by": self.by, **body}))
        answer = read_answer(raw, dict[str, Any])
        if "done" not in answer:
            raise not_ours("it does not say what was done")
        click.echo(msgspec.json.format(raw, indent=2) if self.as_json else answer["done"])


def console() -> Console:
    """Standard output; as wide as needed when it is no terminal."""
    from rich.console import Console

    out = Console(highlight=False)
    if not out.is_terminal and "COLUMNS" not in os.environ:
        out = Console(highlight=False, width=WIDE)
    return out


class CtlCommand(click.Command):
    """A command with ``--json``, and an example in its help."""

    def __init__(self, *args: Any, example: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(["--json"], is_flag=True, expose_value=False, callback=_set_json, help="Print JSON.")
        )
        self.epilog = "\b\nExample:\n" + "\n".join(f"  {line}" for line in example.splitlines())


class CtlGroup(click.Group):
    """A group of such commands."""

    command_class = CtlCommand
    group_class = type


def _set_json(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.find_root().meta["json"] = True


def with_ctl(command: Callable[..., int | None]) -> Callable[..., int | None]:
    """Hands the command its :class:`Ctl` as first argument, once all options are known."""

    @click.pass_context
    @wraps(command)
    def run(ctx: click.Context, *args: Any, **kwargs: Any) -> int | None:
        return command(ctx.find_root().obj(), *args, **kwargs)

    return run


reason_option = click.option("--reason", default="", metavar="TEXT", help="Why; kept in the events.")
force_option = click.option("--force", is_flag=True, help="Do it although it is refused otherwise; see above.")


def whoami() -> str:
    """``user@host`` of the person, also behind sudo."""
    try:
        user = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def ago(then: float, now: float) -> str:
    """``12s ago``, ``in 3h05m``, or ``-`` when the time is not known."""
    if not then:
        return "-"
    seconds = now - then
    return f"in {span(-seconds)}" if seconds < -0.5 else f"{span(seconds)} ago"


def span(seconds: float) -> str:
    """``42s``, ``5m``, ``3h05m``, ``2d04h``."""
    whole = max(0, round(seconds))
    if whole < 100:
        return f"{whole}s"
    minutes = whole // 60
    if minutes < 100:
        return f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours < 48 else f"{hours // 24}d{hours % 24:02}h"


def clock(then: float, now: float) -> str:
    """Local time; the date only when it is not today."""
    if not then:
        return "-"
    local = time.localtime(then)
    same_day = local[:3] == time.localtime(now)[:3]
    return time.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M:%S", local)


def when(then: float, now: float) -> str:
    """``06:42:01 (3m ago)``."""
    return f"{clock(then, now)} ({ago(then, now)})" if then else "-"


def clean(value: str, now: float = 0.0) -> str:
    """Text from outside, made safe for a terminal, with ``{unix time}`` turned into local time."""
    plain = "".join(c if c.isprintable() or c == "\n" else "?" for c in value)
    return _MOMENT.sub(lambda m: when(float(m[1]), now or time.time()), plain)


def text(value: str, style: str = "", now: float = 0.0) -> Text:
    """Text from outside for rich, which must not read markup in it."""
    from rich.text import Text

    return Text(clean(value, now), style=style)


def table(columns: Iterable[str], rows: Iterable[Iterable[str | tuple[str, str]]], now: float = 0.0) -> RenderableType:
    """A plain table; a cell is text, or text with a style."""
    from rich.table import Table

    columns = list(columns)
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0), show_header=any(columns))
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        cells = [cell if isinstance(cell, tuple) else (cell, "") for cell in row]
        made.add_row(*(text(value, style, now) for value, style in cells))
    return made


STYLES = {
    "in-service": "green",
    "quarantined": "bold red",
    "unreadable": "bold red",
    "held": "magenta",
    "running": "green",
    "halted": "bold red",
    "paused": "yellow",
    "cancelled": "dim",
    "done": "dim",
}


def styled(state: str) -> tuple[str, str]:
    """A state with its colour."""
    return state, STYLES.get(state, "yellow")


def number(field: str, value: str) -> int | str:
    """Digits as a number; everything else as it is (``5%``), for the server to judge."""
    if value.isascii() and value.isdigit() and len(value) > 9:
        raise Trouble(f"{field}: {value!r} is not accepted; expected a smaller number", BAD_INPUT)
    return int(value) if value.isascii() and value.isdigit() else value

"""rebootctl's commands about holds, windows, the halt, racks, quarantine, and machines that are gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from rebootd.cli.ctl_client import path_of
from rebootd.cli.ctl_common import (
    Ctl,
    CtlCommand,
    CtlGroup,
    ago,
    force_option,
    number,
    reason_option,
    table,
    text,
    when,
    with_ctl,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from rebootd.api import shapes


def _target(name: str | None, rack: str | None) -> tuple[str, str]:
    if (name is None) == (rack is None):
        raise click.UsageError("give either the NAME of a machine or --rack RACK")
    return ("machine", name) if name is not None else ("rack", str(rack))


_rack = click.option("--rack", metavar="RACK", help="A whole rack instead of one machine.")


@click.command(
    cls=CtlCommand, example="rebootctl hold r7m3 --reason 'disk swap'\nrebootctl hold --rack r7 --reason 'new switch'"
)
@click.argument("name", required=False)
@_rack
@reason_option
@with_ctl
def hold(ctl: Ctl, name: str | None, rack: str | None, reason: str) -> None:
    """Keep a machine or a rack out of service until it is released. `rebootctl held` lists holds."""
    kind, target = _target(name, rack)
    ctl.change("PUT", path_of("holds", kind, target), reason=reason)


@click.command(cls=CtlCommand, example="rebootctl release r7m3\nrebootctl release --rack r7 --reason 'switch is in'")
@click.argument("name", required=False)
@_rack
@reason_option
@with_ctl
def release(ctl: Ctl, name: str | None, rack: str | None, reason: str) -> None:
    """End a hold: the machine or the rack comes back into service."""
    kind, target = _target(name, rack)
    ctl.change("DELETE", path_of("holds", kind, target), reason=reason)


@click.command(cls=CtlCommand, example="rebootctl held")
@with_ctl
def held(ctl: Ctl) -> None:
    """List holds: what is held, by whom, since when, and why."""
    from rebootd.api.shapes import Holds

    ctl.show(ctl.client.ask("GET", "/v1/holds"), Holds, _holds)


def _holds(h: shapes.Holds) -> Iterator[RenderableType]:
    if h.holds:
        rows = [(x.kind, x.name, x.by, ago(x.since, h.now), x.reason) for x in h.holds]
        yield table(("kind", "name", "by", "since", "reason"), rows, h.now)
    else:
        yield text("nothing is held; hold a machine: rebootctl hold NAME --reason TEXT")


@click.group(cls=CtlGroup)
def window() -> None:
    """Open, list and close windows: when new machines may be taken out of service."""


@window.command(
    "open",
    example="rebootctl window open 2h --reason 'kernel roll-out'\n"
    "rebootctl window open 90m --start 2026-03-01T22:00:00+01:00 --id sunday",
)
@click.argument("duration")
@click.option("--start", metavar="TIME", help="ISO 8601 with its timezone, or seconds since 1970. Default: now.")
@click.option("--id", "window_id", default="", metavar="ID", help="A name for it. Default: made from its start.")
@reason_option
@with_ctl
def open_(ctl: Ctl, duration: str, start: str | None, window_id: str, reason: str) -> None:
    """Open a window once, for DURATION (90m, 2h30m, or seconds)."""
    ctl.change("POST", "/v1/windows", duration=number("duration", duration), start=start, id=window_id, reason=reason)


@window.command("list", example="rebootctl window list")
@with_ctl
def window_list(ctl: Ctl) -> None:
    """List windows, one-shot and calendar, with their present or next opening."""
    from rebootd.api.shapes import Windows

    ctl.show(ctl.client.ask("GET", "/v1/windows"), Windows, _windows)


def _windows(w: shapes.Windows) -> Iterator[RenderableType]:
    if not w.required:
        yield text("the policy asks for no window: machines may go out of service at any time", "yellow")
    elif w.allowed:
        yield text(f"open{f' until {when(w.until, w.now)}' if w.until else ''}", "green")
    else:
        yield text(f"closed; {f'next {when(w.next, w.now)}' if w.next else 'none is coming'}", "yellow")
    if not w.windows:
        yield text("no windows; open one: rebootctl window open 2h, or give the policy a calendar")
        return
    rows = [
        (
            x.id,
            x.kind,
            ("open", "green") if x.open else ("over" if x.end is not None and x.end <= w.now else "closed"),
            when(x.start, w.now) if x.start else "-",
            when(x.end, w.now) if x.end else "-",
            x.rule or " ".join(p for p in (f"by {x.by}" if x.by else "", x.reason) if p),
        )
        for x in w.windows
    ]
    yield table(("window", "kind", "", "start", "end", "what"), rows, w.now)


@window.command("close", example="rebootctl window close sunday")
@click.argument("window_id", metavar="ID")
@reason_option
@with_ctl
def window_close(ctl: Ctl, window_id: str, reason: str) -> None:
    """Close a window that was opened by hand, now; machines that are out come back."""
    ctl.change("DELETE", path_of("windows", window_id), reason=reason)


@click.command(cls=CtlCommand, example="rebootctl halt --reason 'something is wrong with r7'")
@reason_option
@with_ctl
def halt(ctl: Ctl, reason: str) -> None:
    """Stop: nothing new goes out of service; machines that are out still come back.

    With every daemon down this does the same: consul kv put rebootd/control/halt "reason"
    """
    ctl.change("PUT", "/v1/halt", reason=reason)


@click.command(cls=CtlCommand, example="rebootctl unhalt --reason 'it was the switch'")
@reason_option
@with_ctl
def unhalt(ctl: Ctl, reason: str) -> None:
    """End the halt."""
    ctl.change("DELETE", "/v1/halt", reason=reason)


@click.group(cls=CtlGroup)
def rack() -> None:
    """List racks, and give up a lock of ours."""


@rack.command("list", example="rebootctl rack list")
@with_ctl
def rack_list(ctl: Ctl) -> None:
    """List racks: how many machines are unavailable, what is open, and by whom."""
    from rebootd.api.shapes import Racks

    ctl.show(ctl.client.ask("GET", "/v1/racks"), Racks, _racks)


def _racks(r: shapes.Racks) -> Iterator[RenderableType]:
    if not r.racks:
        yield text("no racks: no machine has reported one yet (node meta `rack` in Consul)")
        return
    rows = [
        (
            (x.rack, "bold" if x.open else ""),
            f"{x.unavailable}/{x.machines}",
            str(x.allowed),
            f"{x.lock} {x.holder}".strip(),
            (x.open, "yellow") if x.open else "-",
            f"held: {x.hold.reason}" if x.hold else "",
        )
        for x in r.racks
    ]
    yield table(("rack", "unavailable", "allowed", "lock", "open because", ""), rows, r.now)
    yield text(f"{sum(1 for x in r.racks if x.open)} open of at most {r.open_racks}")


@rack.command(example="rebootctl rack unlock r7 --reason 'left over'")
@click.argument("name", metavar="RACK")
@force_option
@reason_option
@with_ctl
def unlock(ctl: Ctl, name: str, force: bool, reason: str) -> None:
    """Give up our lock on a rack; only with --force while machines of it are on their way.

    A lock that somebody else holds is theirs to end.
    """
    ctl.change("POST", path_of("racks", name, "unlock"), force=force, reason=reason)


@click.group(cls=CtlGroup)
def quarantine() -> None:
    """List and clear machines that failed."""


@quarantine.command("list", example="rebootctl quarantine list")
@with_ctl
def quarantine_list(ctl: Ctl) -> None:
    """List quarantined machines with the reason and the evidence."""
    from rebootd.api.shapes import Quarantine

    ctl.show(ctl.client.ask("GET", "/v1/quarantine"), Quarantine, _quarantine)


def _quarantine(q: shapes.Quarantine) -> Iterator[RenderableType]:
    if not q.machines:
        yield text("no machine is quarantined")
        return
    rows = [
        (
            (x.name, "bold"),
            x.rack,
            ago(x.since, q.now),
            ago(x.seen, q.now) if x.seen is not None else "never",
            x.cycle,
            x.cause,
            x.evidence.strip().splitlines()[-1] if x.evidence.strip() else "",
        )
        for x in q.machines
    ]
    yield table(("machine", "rack", "since", "heard", "cycle", "cause", "evidence"), rows, q.now)
    yield text("all of it: rebootctl machine NAME; when it is repaired: rebootctl quarantine clear NAME")


@quarantine.command(example="rebootctl quarantine clear r7m3 --reason 'new disk'")
@click.argument("name")
@reason_option
@with_ctl
def clear(ctl: Ctl, name: str, reason: str) -> None:
    """Let a quarantined machine prove itself again: it is verified, and enabled if that passes."""
    ctl.change("POST", path_of("quarantine", name, "clear"), reason=reason)


@click.command(cls=CtlCommand, example="rebootctl forget r7m3 --reason 'scrapped'")
@click.argument("name")
@force_option
@reason_option
@with_ctl
def forget(ctl: Ctl, name: str, force: bool, reason: str) -> None:
    """Delete the record of a machine that is gone for good.

    It must not be heard of any more. One that is quarantined, held or unreadable is only forgotten with --force, since
    it counts as unavailable until then.
    """
    ctl.change("POST", path_of("machines", name, "forget"), force=force, reason=reason)


COMMANDS = (hold, release, held, window, halt, unhalt, rack, quarantine, forget)

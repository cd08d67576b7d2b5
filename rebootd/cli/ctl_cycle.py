"""rebootctl cycle: start, list, show, watch, pause, resume, cancel."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from rebootd.cli.ctl_client import NOT_REACHED_FOR, UNREACHABLE, Trouble, path_of
from rebootd.cli.ctl_common import (
    Ctl,
    CtlGroup,
    ago,
    clean,
    clock,
    number,
    reason_option,
    span,
    styled,
    table,
    text,
    when,
    with_ctl,
)
from rebootd.core.inputs import counted
from rebootd.core.methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import RenderableType

    from rebootd.api import shapes
    from rebootd.core.counts import Counts


@click.group(cls=CtlGroup)
def cycle() -> None:
    """Start, follow and steer cycles: campaigns in which every selected machine reboots once."""


@cycle.command(
    example="rebootctl cycle start kernel-6.12.9 --selector role=web --target kernel=6.12.9 --failure-budget 5% "
    "--reason 'CVE-2026-1234'"
)
@click.argument("cycle_id", metavar="ID")
@click.option("--selector", required=True, metavar="SELECTOR", help="Which machines: 'rack=r1,role=web'; '*' is all.")
@click.option("--target", default="", metavar="SELECTOR", help="What a machine must match after its reboot.")
@click.option("--failure-budget", metavar="N|N%", help="Failed machines that are tolerated. Default: the policy's.")
@click.option("--allow-empty", is_flag=True, help="Start it although no machine matches yet.")
@click.option("--no-waves", is_flag=True, help="All at once as far as the policy's waves go.")
@click.option(
    "--method", type=click.Choice(METHODS), help="How its machines reboot. Default: the policy's, the host's."
)
@click.option("--emergency", is_flag=True, help="Go outside of windows too; needs --reason. Limits and quorum stay.")
@click.option("--skip-gate", multiple=True, metavar="NAME", help="With --emergency: go past this gate too; repeatable.")
@reason_option
@with_ctl
def start(
    ctl: Ctl,
    cycle_id: str,
    selector: str,
    target: str,
    failure_budget: str | None,
    allow_empty: bool,
    no_waves: bool,
    method: str | None,
    emergency: bool,
    skip_gate: tuple[str, ...],
    reason: str,
) -> None:
    """Start a cycle. ID is new: 1 to 64 characters of A-Z a-z 0-9 . _ -"""
    ctl.change(
        "POST",
        "/v1/cycles",
        id=cycle_id,
        selector=selector,
        target=target,
        failure_budget=number("failure_budget", failure_budget) if failure_budget is not None else None,
        allow_empty=allow_empty,
        waves=not no_waves,
        emergency=emergency,
        skip_gates=list(skip_gate),
        method=method or "",
        reason=reason,
    )


@cycle.command("list", example="rebootctl cycle list")
@with_ctl
def list_(ctl: Ctl) -> None:
    """List cycles, newest first."""
    from rebootd.api.shapes import Cycles

    ctl.show(ctl.client.ask("GET", "/v1/cycles"), Cycles, _cycles)


def _cycles(c: shapes.Cycles) -> Iterator[RenderableType]:
    if c.cycles:
        yield cycle_table(c.cycles, c.now)
    else:
        yield text("no cycles; start one: rebootctl cycle start ID --selector SELECTOR")


def cycle_table(cycles: Iterable[shapes.CycleView], now: float) -> RenderableType:
    """One line a cycle, with how far it is."""
    rows = [
        (
            (v.cycle.id, "bold"),
            styled(v.cycle.state.value),
            f"{v.counts.rebooted}/{v.counts.selected}",
            *_numbers(v.counts),
            ago(v.cycle.created, now),
            v.cycle.why or v.cycle.selector,
        )
        for v in cycles
    ]
    return table(("cycle", "state", "rebooted", "out", "waiting", "failed", "skipped", "started", "what"), rows, now)


def _numbers(c: Counts) -> tuple[str | tuple[str, str], ...]:
    return str(c.out), str(c.waiting), (str(c.failed), "bold red" if c.failed else ""), str(c.skipped)


@cycle.command(example="rebootctl cycle show kernel-6.12.9")
@click.argument("cycle_id", metavar="ID")
@with_ctl
def show(ctl: Ctl, cycle_id: str) -> None:
    """Show one cycle: counts by rack, machines that are out, failures, and what the others wait for."""
    from rebootd.api.shapes import CycleShow

    ctl.show(ctl.client.ask("GET", path_of("cycles", cycle_id)), CycleShow, _show)


def _show(s: shapes.CycleShow) -> Iterator[RenderableType]:
    c, now = s.cycle, s.now
    yield table(
        ("", ""),
        [
            ("cycle", c.id),
            ("state", styled(c.state.value)),
            ("why", c.why or "-"),
            ("selector", c.selector),
            ("target", c.target or "-"),
            *((("method", c.method),) if c.method else ()),
            ("started", f"{when(c.created, now)} by {c.by or '?'}"),
            ("changed", when(c.changed, now)),
            ("reason", c.reason or "-"),
            *((("estimate", _estimate(s)),) if c.state.value == "running" else ()),
            ("failures", f"{s.counts.failed}, {c.failure_budget} tolerated"),
            *(
                (("emergency", (f"it skips {', '.join(('windows', *c.skip_gates))}", "bold red")),)
                if c.emergency
                else ()
            ),
        ],
        now,
    )
    rows = [(r or "?", f"{n.rebooted}/{n.selected}", *_numbers(n)) for r, n in s.racks.items()]
    rows.append(("all", f"{s.counts.rebooted}/{s.counts.selected}", *_numbers(s.counts)))
    yield table(("rack", "rebooted", "out", "waiting", "failed", "skipped"), rows, now)
    for title, found in (("out", s.machines), ("failed", s.failed), ("skipped", s.skipped)):
        if found:
            yield text(f"\n{title}", "bold")
            yield table(("machine", ""), list(found.items())[:50], now)
    if s.blockers:
        yield text("\nwhat machines wait for", "bold")
        blockers = [(str(r.machines), r.blocker.kind, r.blocker.what, r.blocker.clears) for r in s.blockers]
        yield table(("machines", "kind", "what", "who can clear it"), blockers, now)


def _estimate(s: shapes.CycleShow) -> str:
    """When it should end, as of the last computation."""
    from rebootd.cli.ctl_plan import ends, off

    e = s.estimate
    if e is not None and e.note:
        return f"none: {e.note} ({ago(e.at, s.now)})"
    if s.cycle.standing:
        return f"it never ends; {counted(e.to_go, 'machine')} to go" if e is not None else "it never ends"
    if e is None:
        return "being computed; see also: rebootctl plan --cycle " + s.cycle.id
    never = f"; {counted(e.never, 'machine')} can never go, see: rebootctl plan --cycle {s.cycle.id}" if e.never else ""
    past = f"; past ones were off by {off(s.errors)}" if s.errors else ""
    return f"ends {ends(e, s.now)}{never}, as of {ago(e.at, s.now)}{past}"


@cycle.command(example="rebootctl cycle watch kernel-6.12.9")
@click.argument("cycle_id", metavar="ID")
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 60),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Look so often.",
)
@with_ctl
def watch(ctl: Ctl, cycle_id: str, interval: float) -> int:
    """Follow a cycle to its end, with a bar for each rack; one line a change when not on a terminal.

    Exits 0 when it is done, and 1 when it is halted or cancelled. Survives a change of leader.
    """
    from rebootd.cli.ctl_watch import Lines, screen

    with Lines(ctl.as_json) if ctl.as_json or not _terminal() else screen() as out:
        lost = 0.0
        while True:
            try:
                raw = ctl.client.ask("GET", path_of("cycles", cycle_id))
                lost = 0.0
            except Trouble as trouble:
                lost = lost or time.monotonic()
                if trouble.code != UNREACHABLE or time.monotonic() - lost > NOT_REACHED_FOR:
                    raise
                out.lost(f"no leader for {span(time.monotonic() - lost)}: {trouble}")
                time.sleep(interval)
                continue
            state = out.show(raw)
            if state == "done":
                return 0
            if state in {"halted", "cancelled"}:
                return 1
            time.sleep(interval)


def _terminal() -> bool:
    from rebootd.cli.ctl_common import console

    return console().is_terminal


def progress_line(s: shapes.CycleShow) -> str:
    """How far a cycle is, on one line."""
    c = s.counts
    out = ", ".join(f"{name} {state}" for name, state in list(s.machines.items())[:6])
    more = f" and {len(s.machines) - 6} more" if len(s.machines) > 6 else ""
    why = f" ({s.cycle.why})" if s.cycle.why else ""
    return clean(
        f"{clock(s.now, s.now)} {s.cycle.id} {s.cycle.state.value}{why}: {c.rebooted}/{c.selected} rebooted, "
        f"{c.out} out, {c.waiting} waiting, {c.failed} failed, {c.skipped} skipped" + (f"; {out}{more}" if out else "")
    )


def _verb(name: str, said: str) -> None:
    @cycle.command(name, help=said, example=f"rebootctl cycle {name} kernel-6.12.9 --reason 'see ticket 4711'")
    @click.argument("cycle_id", metavar="ID")
    @reason_option
    @with_ctl
    def move(ctl: Ctl, cycle_id: str, reason: str) -> None:
        ctl.change("POST", path_of("cycles", cycle_id, name), reason=reason)


_verb("pause", "Take no further machine out for a cycle; machines that are out come back.")
_verb("resume", "Go on with a cycle that is paused, or that was halted by failures.")
_verb("cancel", "End a cycle for good; machines that are out come back.")

COMMANDS = (cycle,)

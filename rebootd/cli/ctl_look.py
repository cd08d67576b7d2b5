"""rebootctl's commands that only look: status, machines, machine, explain, events."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from rebootd.cli.ctl_client import NOT_REACHED_FOR, UNREACHABLE, Trouble, path_of
from rebootd.cli.ctl_common import (
    Ctl,
    CtlCommand,
    ago,
    clean,
    clock,
    read_answer,
    span,
    styled,
    table,
    text,
    when,
    with_ctl,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from rebootd.api import shapes
    from rebootd.core.model import Blocker, Event


@click.command(cls=CtlCommand, example="rebootctl status\nrebootctl status --json | jq .alarms")
@with_ctl
def status(ctl: Ctl) -> None:
    """Show the fleet on one screen: leader, halt, windows, machines, racks, cycles, alarms."""
    from rebootd.api.shapes import Status

    ctl.show(ctl.client.ask("GET", "/v1/status"), Status, _status)


def _status(s: shapes.Status) -> Iterator[RenderableType]:
    from rebootd.cli.ctl_cycle import cycle_table

    now, daemon = s.now, s.daemon
    yield text(
        f"leader   {daemon.get('node') or daemon.get('id')} at {daemon.get('url')}, epoch {s.epoch}, "
        f"since {when(s.leading_since, now)}, version {daemon.get('version')}"
    )
    if s.halt:
        yield text(f"HALTED   since {when(s.halt.since, now)}: {s.halt.reason}; end it: rebootctl unhalt", "bold red")
    yield text(f"window   {_window(s.windows)}", "" if s.windows.allowed else "yellow")
    states = ", ".join(f"{n} {state}" for state, n in s.machines.items())
    if not s.known:
        yield text("machines none; start an agent on a host: rebootd agent --help")
    else:
        silent = f"; {s.unheard} not heard of" if s.unheard else ""
        yield text(f"machines {s.known}: {states}{silent}" + (f"; {s.holds} holds" if s.holds else ""))
    if s.racks:
        yield text(f"racks    {len(s.racks)} open of at most {s.open_racks}:")
        yield table(("", "", ""), [("        ", r.rack, r.open) for r in s.racks], now)
    else:
        yield text(f"racks    none open (at most {s.open_racks})")
    if s.cycles:
        yield text("cycles")
        yield cycle_table(s.cycles, now)
    else:
        yield text("cycles   none; start one: rebootctl cycle start ID --selector SELECTOR")
    if s.alarms:
        yield text(f"alarms   {len(s.alarms)}", "bold red")
        shown = [(a.kind, a.machine or "-", a.what, ago(a.since, now)) for a in s.alarms[:20]]
        yield table(("kind", "machine", "what", "since"), shown, now)
        if len(s.alarms) > 20:
            yield text(f"... and {len(s.alarms) - 20} more: rebootctl --json status")
    else:
        yield text("alarms   none")


def _window(w: shapes.Windows) -> str:
    if not w.required:
        return "none needed: the policy lets machines go at any time"
    if w.allowed:
        return f"open until {when(w.until, w.now)}" if w.until else "open"
    return f"closed; next {when(w.next, w.now)}" if w.next else "closed, none is coming: rebootctl window open"


@click.command(
    cls=CtlCommand, example="rebootctl machines --state quarantined\nrebootctl machines --rack r7 --selector 'role=web'"
)
@click.option("--state", default="", metavar="STATE", help="Only machines in this state.")
@click.option("--rack", default="", metavar="RACK", help="Only machines of this rack.")
@click.option("--selector", default="", metavar="SELECTOR", help="Only machines that it matches.")
@with_ctl
def machines(ctl: Ctl, state: str, rack: str, selector: str) -> None:
    """List machines: state, since when, what each waits for."""
    from rebootd.api.shapes import Machines

    raw = ctl.client.ask("GET", "/v1/machines", state=state, rack=rack, selector=selector)
    ctl.show(raw, Machines, _machines)


def _machines(m: shapes.Machines) -> Iterator[RenderableType]:
    if not m.known:
        yield text("no machine has reported yet; start an agent on a host: rebootd agent --help")
    elif not m.machines:
        yield text(f"none of {m.known} machines is like that; see all: rebootctl machines")
    else:
        columns = ("rack", "machine", "state", "since", "heard", "cycle", "reboot", "waits for")
        rows = [
            (
                r.rack or "?",
                r.name,
                (f"{r.state} (hold)", "magenta") if r.held else styled(r.state),
                ago(r.since, m.now),
                ago(r.seen, m.now) if r.seen is not None else "never",
                r.cycle,
                {"yes": "required", "no": "", "unknown": "?"}.get(r.reboot_required, r.reboot_required),
                r.waiting,
            )
            for r in m.machines
        ]
        yield table(columns, rows, m.now)


@click.command(cls=CtlCommand, example="rebootctl machine r7m3")
@click.argument("name")
@with_ctl
def machine(ctl: Ctl, name: str) -> None:
    """Show everything about one machine."""
    from rebootd.api.shapes import MachineShow

    ctl.show(ctl.client.ask("GET", path_of("machines", name)), MachineShow, _machine)


def _machine(m: shapes.MachineShow) -> Iterator[RenderableType]:
    now, r = m.now, m.record
    rows: list[tuple[str, str | tuple[str, str]]] = [("machine", m.name)]
    if m.problem:
        rows.append(("problem", (m.problem, "bold red")))
    if r is not None:
        rows += [
            ("rack", r.rack or "unknown: it is listed, and never drained"),
            ("state", styled(r.state.value)),
            ("since", when(r.since, now)),
            ("cause", r.cause or "-"),
            ("cycle", r.cycle or "-"),
            ("boot_id", r.boot_id),
            ("kernel", r.kernel or "-"),
            ("labels", ", ".join(f"{k}={v}" for k, v in sorted(r.labels.items())) or "-"),
            ("reboot", f"{r.reboot_required.value} {'; '.join(r.reboot_reasons)}".strip()),
            ("unplanned", f"{r.unplanned} boots without a permit"),
            ("outcomes", ", ".join(f"{k}: {v}" for k, v in r.outcomes.items()) or "-"),
        ]
        if r.permit:
            rows.append(("permit", f"for boot {r.permit.boot_id} until {when(r.permit.until, now)}"))
        if r.method:
            rows.append(("reboots by", r.method))
        if r.fleetlock:
            asks = f"asked for a reboot {ago(r.fleetlock.asked, now)}" if r.fleetlock.asked else "wants no reboot"
            rows.append(("FleetLock", f"client {r.fleetlock.id} in the place of an agent; it {asks}"))
        if r.nomad:
            was = "drained by others" if r.nomad.foreign else "eligible" if r.nomad.eligible else "not eligible"
            rows.append(("Nomad", f"client {r.nomad.node}, {was} before its drain {when(r.nomad.since, now)}"))
        if r.flag:
            rows.append(("flag", (r.flag, "bold red")))
        if r.retry:
            rows.append(("retry", f"{r.retry.what} failed {r.retry.attempts} times; again {when(r.retry.at, now)}"))
        if r.evidence:
            rows.append(("evidence", r.evidence))
    rows.append(("heard", when(m.seen, now) if m.seen is not None else "not by this leader"))
    if m.hold:
        rows.append(
            ("hold", f"{m.hold.kind} {m.hold.name} by {m.hold.by or '?'} {ago(m.hold.since, now)}: {m.hold.reason}")
        )
    yield table(("", ""), rows, now)
    if m.blockers:
        yield text("\nwaits for", "bold")
        yield blocker_table(m.blockers, now)


@click.command(cls=CtlCommand, example="rebootctl explain r7m3")
@click.argument("name")
@with_ctl
def explain(ctl: Ctl, name: str) -> None:
    """Say why a machine is where it is: every blocker, since when, and who can clear it."""
    from rebootd.api.shapes import Explanation

    ctl.show(ctl.client.ask("GET", path_of("machines", name, "explain")), Explanation, _explain)


def _explain(e: shapes.Explanation) -> Iterator[RenderableType]:
    yield text(
        f"{e.machine} (rack {e.rack or 'unknown'}) is {e.state} since {when(e.since, e.now)}", styled(e.state)[1]
    )
    if e.cause:
        yield text(f"because: {e.cause}")
    if e.wanted:
        yield text(f"wanted by: cycle {', '.join(e.wanted)}")
    elif e.cycle:
        yield text(f"cycle: {e.cycle}")
    yield text(f"reboot required: {e.reboot_required} {'; '.join(e.reboot_reasons)}".rstrip())
    yield text(f"last report: {f'{span(e.report_age)} ago' if e.report_age is not None else 'none to this leader'}")
    if e.flag:
        yield text(f"flagged: {e.flag}", "bold red")
    if e.deadline is not None:
        yield text(f"given up: {when(e.deadline, e.now)}, if it is {e.state} until then")
    if e.blockers:
        yield text("it waits for", "bold")
        yield blocker_table(e.blockers, e.now)
    else:
        yield text(e.says)


def blocker_table(blockers: tuple[Blocker, ...], now: float) -> RenderableType:
    """Every reason, since when, and who can clear it."""
    rows = [((b.kind, "bold"), b.what, ago(b.since, now), b.clears) for b in blockers]
    return table(("kind", "what", "since", "who can clear it"), rows, now)


@click.command(cls=CtlCommand, example="rebootctl events --limit 20\nrebootctl events --follow --cycle kernel-6.12.9")
@click.option("--follow", "-f", is_flag=True, help="Go on with every new event, also across leaders.")
@click.option(
    "--limit", type=click.IntRange(0, 20000), default=100, show_default=True, help="The newest so many first."
)
@click.option("--machine", default="", metavar="NAME", help="Only events of this machine.")
@click.option("--cycle", default="", metavar="ID", help="Only events of this cycle.")
@with_ctl
def events(ctl: Ctl, follow: bool, limit: int, machine: str, cycle: str) -> None:
    """Show what happened, oldest first. With --json, one JSON object a line."""
    asked: dict[str, object] = {"limit": limit, "machine": machine, "cycle": cycle}
    if not follow:
        shown = sum(_event(ctl, line) > 0 for line in ctl.client.ask("GET", "/v1/events", None, **asked).splitlines())
        if not shown and not ctl.as_json:
            click.echo("no events like that")
        return
    last, lost = 0, 0.0
    while True:
        try:
            for line in ctl.client.lines("/v1/events", follow=1, **asked):
                last, lost = max(last, _event(ctl, line)), 0.0
            trouble = Trouble("the leader ended the stream", UNREACHABLE)
        except Trouble as broken:
            if broken.code != UNREACHABLE:
                raise
            trouble = broken
        # Another leader has the same history: go on after the last event that was shown.
        lost = lost or time.monotonic()
        if time.monotonic() - lost > NOT_REACHED_FOR:
            raise trouble
        if last:
            asked.update(after=last, limit=20000)
        time.sleep(0.5)


def _event(ctl: Ctl, line: bytes) -> int:
    """Prints one event; returns its seq (at least 1)."""
    from rebootd.core.model import Event

    event = read_answer(line, Event)
    click.echo(line.decode().rstrip() if ctl.as_json else event_line(event))
    return max(1, event.seq)


def event_line(e: Event) -> str:
    """One event on one line."""
    moved = f"{e.frm or 'new'} -> {e.to}" if e.to else e.kind
    about = [x for x in (f"rack {e.rack}" if e.rack else "", f"cycle {e.cycle}" if e.cycle else "") if x]
    said = ": ".join(x for x in (e.cause, e.detail) if x)
    return clean(
        f"{clock(e.time, time.time())}  {e.machine or '-':<16} {moved:<26} {said}"
        + (f"  [{', '.join(about)}]" if about else "")
    ).replace("\n", " | ")


COMMANDS = (status, machines, machine, explain, events)

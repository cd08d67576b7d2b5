"""rebootctl gate: what each gate and quorum group says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from rebootd.cli.ctl_common import Ctl, CtlGroup, ago, span, table, text, with_ctl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from rebootd.api import shapes

STYLES = {"pass": "green", "block": "red", "unknown": "yellow", "idle": "dim"}


@click.group(cls=CtlGroup)
def gate() -> None:
    """Show gates and quorum groups: what must hold before one more machine goes out."""


@gate.command("list", example="rebootctl gate list\nrebootctl gate list --json | jq '.gates[] | select(.overdue)'")
@with_ctl
def gate_list(ctl: Ctl) -> None:
    """List every gate: verdict, since when, why, and how old its reading is."""
    from rebootd.api.shapes import Gates

    ctl.show(ctl.client.ask("GET", "/v1/gates"), Gates, _gates)


def _gates(g: shapes.Gates) -> Iterator[RenderableType]:
    if not g.gates and not g.quorums:
        yield text("the policy has no gates and no quorum groups")
        return
    if g.gates:
        rows = [
            (
                x.name,
                (f"{x.verdict} (overdue)", "bold red") if x.overdue else (x.verdict, STYLES[x.verdict]),
                ago(x.since, g.now) if x.since is not None else "-",
                span(max(0.0, g.now - x.read)) if x.read is not None else "-",
                span(x.max_block),
                x.covers or ("machines that run it" if x.kind == "consul-service" else "every machine"),
                x.why,
            )
            for x in g.gates
        ]
        yield table(("gate", "says", "since", "read", "max block", "covers", "because"), rows, g.now)
    if g.quorums:
        groups = [
            (
                q.name,
                (q.blocked, "yellow") if q.blocked else ("whole", "green"),
                f"{len(q.unavailable)}/{q.members}",
                q.selector,
                "allowed" if q.allow_outage else "never",
            )
            for q in g.quorums
        ]
        yield table(("quorum group", "state", "unavailable", "selector", "outage"), groups, g.now)


COMMANDS = (gate,)

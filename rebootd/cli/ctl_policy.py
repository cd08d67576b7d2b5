"""rebootctl policy: show, diff, apply."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

import click

from rebootd.cli.ctl_common import Ctl, CtlGroup, read_answer, reason_option, table, text, with_ctl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from rebootd.api import shapes
    from rebootd.core.policy_told import LimitChange, PolicyDiff

SHOWN = 100
"""Lines on who is concerned: every cycle can have fifty waves."""

_file = click.argument("file", type=click.File("rb"))


@click.group(cls=CtlGroup)
def policy() -> None:
    """Show, compare and apply the policy: what is allowed, as one YAML file."""


@policy.command(example="rebootctl policy show\nrebootctl policy show --effective > policy.yaml")
@click.option("--effective", is_flag=True, help="With every default written out.")
@with_ctl
def show(ctl: Ctl, effective: bool) -> None:
    """Show the policy as it is stored."""
    import msgspec

    from rebootd.api.shapes import PolicyShow

    raw = ctl.client.ask("GET", "/v1/policy")
    p = read_answer(raw, PolicyShow)
    if ctl.as_json:
        click.echo(msgspec.json.format(raw, indent=2))
        return
    if not p.text:
        click.echo("# No policy is stored; these defaults hold. Change some: rebootctl policy apply FILE")
    click.echo((p.effective if effective or not p.text else p.text).rstrip())


@policy.command(example="rebootctl policy diff policy.yaml")
@_file
@with_ctl
def diff(ctl: Ctl, file: BinaryIO) -> None:
    """Show what FILE would change: which fields, for which machines, and what would be another at once."""
    from rebootd.core.policy_told import PolicyDiff

    ctl.show(ctl.client.ask("POST", "/v1/policy/diff", file.read()), PolicyDiff, _diff)


def _diff(d: PolicyDiff) -> Iterator[RenderableType]:
    for warning in d.warnings:
        yield text(f"warning: {warning}", "yellow")
    if not d.fields:
        yield text("no difference")
        return
    rows = [(f.field, (f.old or "-", "red"), (f.new or "-", "green")) for f in d.fields]
    yield table(("field", "now", "then"), rows)
    yield text("")
    concerned = [*(_row(_limit(x), x.machines, x.examples) for x in d.limits)]
    concerned += [_row(x.what, x.machines, x.examples) for x in d.concerns]
    if concerned:
        yield table(("concerned", "machines", "such as"), concerned[:SHOWN])
    if len(concerned) > SHOWN:
        yield text(f"... and {len(concerned) - SHOWN} more: rebootctl policy diff --json")
    if d.fleet_wide:
        yield text(("the other fields concern" if concerned else "this concerns") + " every machine")
    elif not concerned:
        yield text("no machine is concerned, as the fleet is")


def _limit(x: LimitChange) -> str:
    told = f"limit {x.limit}: {x.new or 'none any more'}"
    return f"{told} (until now {x.old})" if x.old else told


def _row(what: str, machines: int, examples: tuple[str, ...]) -> tuple[str, str, str]:
    return what, str(machines), ", ".join(examples) + (" ..." if machines > len(examples) else "")


@policy.command(example="rebootctl policy apply policy.yaml --reason 'two racks at once'")
@_file
@reason_option
@with_ctl
def apply(ctl: Ctl, file: BinaryIO, reason: str) -> None:
    """Check FILE and put it in force. A file with a mistake changes nothing."""
    from rebootd.api.shapes import PolicyApplied

    def render(p: shapes.PolicyApplied) -> Iterator[RenderableType]:
        yield from _diff(p.diff)
        yield text(p.done)

    raw = ctl.client.ask("PUT", "/v1/policy", file.read(), by=ctl.by, reason=reason)
    ctl.show(raw, PolicyApplied, render)


COMMANDS = (policy,)

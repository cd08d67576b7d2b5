"""rebootctl audit: whether the audit files of all daemons are whole, and where their chain stands."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from rebootd.cli.ctl_client import BAD_INPUT, FAILED, Trouble
from rebootd.cli.ctl_common import Ctl, CtlGroup, clean, read_answer, table, text, when, with_ctl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

    from rich.console import RenderableType

    from rebootd.api.audit import AuditShow
    from rebootd.core.audit import Head
    from rebootd.core.audit_verify import Verdict


@click.group(cls=CtlGroup)
def audit() -> None:
    """Who changed what: where the chain of audit lines stands, and whether the files hold all of it."""


@audit.command("show", example="rebootctl audit show\nrebootctl audit show --json | jq .head > head.json")
@with_ctl
def audit_show(ctl: Ctl) -> None:
    """Show the last entry of the chain and what is wrong with it."""
    from rebootd.api.audit import AuditShow

    ctl.show(ctl.client.ask("GET", "/v1/audit"), AuditShow, _shown)


def _shown(a: AuditShow) -> Iterator[RenderableType]:
    if not a.enabled:
        yield text("no daemon of this fleet keeps an audit log (--audit-log)")
        return
    at = when(a.head.time, a.head.time).partition(" (")[0]
    rows: list[tuple[str, str | tuple[str, str]]] = [
        ("last entry", f"{a.head.seq}, by {a.head.leader or '-'} in epoch {a.head.epoch}, {at}"),
        ("digest", a.head.hash or "-"),
        (
            "chain",
            (f"BROKEN: {a.broken}", "bold red") if a.broken else ("whole, as far as this leader can see", "green"),
        ),
        ("file", (a.problem, "bold red") if a.problem else ("written", "green")),
    ]
    yield table(("", ""), rows)


@audit.command(
    "verify",
    example="rebootctl audit verify d1/audit.log d2/audit.log d3/audit.log\n"
    "consul kv get rebootd/audit > head.json && rebootctl audit verify --head head.json */audit.log*",
)
@click.argument("files", nargs=-1, required=True, type=click.Path(), metavar="FILE...")
@click.option(
    "--head",
    "head_file",
    type=click.File("rb"),
    metavar="FILE",
    help="The head of the chain, as `consul kv get` or `audit show --json` printed it before the files were read "
    "('-': standard input). Else the leader is asked.",
)
@click.option("--offline", is_flag=True, help="Check without the head: what was cut off at the end is not found then.")
@click.option("--partial", is_flag=True, help="The oldest files are gone by intent: the chain may begin in the middle.")
@with_ctl
def audit_verify(ctl: Ctl, files: tuple[str, ...], head_file: BinaryIO | None, offline: bool, partial: bool) -> int:
    """Check the audit files of all daemons, together and rotated ones included (also .gz): nothing cut, edited,
    reordered or missing. Names the file and the line. Exit code 0 whole, 1 not.
    """
    from pathlib import Path

    from rebootd.core.audit_verify import verify

    if offline and head_file is not None:
        raise Trouble("--offline: leaves --head without a use", BAD_INPUT)
    # Before the files are read: what is written meanwhile is not missed then.
    head = None if offline else _read_head(head_file.read()) if head_file is not None else _ask_head(ctl)
    try:
        verdict = verify({name: _lines(Path(name)) for name in dict.fromkeys(files)}, head, partial=partial)
    except (OSError, EOFError) as error:
        raise Trouble(f"a file cannot be read: {error}", BAD_INPUT) from None
    if ctl.as_json:
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(verdict), indent=2))
    else:
        for line in _told(verdict):
            click.echo(line)
    return 0 if verdict.whole else FAILED


def _lines(path: Path) -> Iterator[bytes]:
    import gzip

    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        yield from file


def _ask_head(ctl: Ctl) -> Head:
    from rebootd.api.audit import AuditShow

    return read_answer(ctl.client.ask("GET", "/v1/audit"), AuditShow).head


def _read_head(raw: bytes) -> Head:
    import msgspec

    from rebootd.core.audit import Head

    try:
        value: Any = json.loads(raw)
        return msgspec.convert(value.get("head", value), Head)
    except (ValueError, AttributeError, msgspec.ValidationError) as error:
        accepted = f"the JSON of the head, as `consul kv get <prefix>audit` prints it ({error})"
        raise Trouble(f"--head: not accepted; expected {accepted}", BAD_INPUT) from None


def _told(v: Verdict) -> Iterator[str]:
    for finding in v.findings:
        where = f"{finding.file}:{finding.line}: " if finding.file else ""
        yield clean(f"{'FAULT' if finding.fault else 'note '} {where}{finding.what}")
    if v.more:
        yield f"... and {v.more} more"
    yield (
        f"{v.lines} lines, entries {v.first} to {v.last}: {v.committed} committed, {v.dropped} written and not "
        f"committed, {v.unanswered} without an outcome (their daemon ended first)"
    )
    if not v.head_checked:
        yield "the end of the chain was not checked: what was cut off there would not have been found"
    yield "whole" if v.whole else "NOT WHOLE"


COMMANDS = (audit,)

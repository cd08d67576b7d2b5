"""rebootctl plan: which machine goes when, in how many windows, when it ends, and who can never go."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from rebootd.cli.ctl_client import BAD_INPUT, Trouble
from rebootd.cli.ctl_common import Ctl, CtlCommand, clock, span, table, text, when, with_ctl
from rebootd.core.inputs import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.console import RenderableType

    from rebootd.core.forecast_told import Estimate, Forecast, Never, PastError, Planned

PATIENCE = 120.0
"""Seconds that an answer may take: ten thousand machines are a few seconds of work for the leader."""
SHOWN = 200
WIDTH = 60
"""Columns of the picture."""


@click.command(
    cls=CtlCommand,
    example="rebootctl plan --cycle kernel-6.12.9\nrebootctl plan --selector role=web --target kernel=6.12.9",
)
@click.option("--cycle", "cycle_id", default="", metavar="ID", help="A cycle that exists. Default: all that run.")
@click.option("--selector", default="", metavar="SELECTOR", help="What if a cycle with this selector began now?")
@click.option("--target", default="", metavar="SELECTOR", help="With --selector: its target.")
@click.option("--no-waves", is_flag=True, help="With --selector: without the policy's waves.")
@click.option("--emergency", is_flag=True, help="With --selector: outside of windows too.")
@click.option("--skip-gate", multiple=True, metavar="NAME", help="With --emergency: past this gate too; repeatable.")
@with_ctl
def plan(
    ctl: Ctl, cycle_id: str, selector: str, target: str, no_waves: bool, emergency: bool, skip_gate: tuple[str, ...]
) -> None:
    """Forecast which machine goes when, how many windows it takes, and who can never go and why. Changes nothing."""
    import msgspec

    from rebootd.core.forecast_told import Forecast

    if cycle_id and selector:
        raise Trouble("--cycle: names a cycle that exists; expected it or --selector, not both", BAD_INPUT)
    if not selector and (target or no_waves or emergency or skip_gate):
        said = "--target, --no-waves, --emergency and --skip-gate belong to --selector: expected a selector"
        raise Trouble(said, BAD_INPUT)
    if selector:
        asked = {
            "selector": selector,
            "target": target,
            "waves": not no_waves,
            "emergency": emergency,
            "skip_gates": skip_gate,
        }
        raw = ctl.client.ask_patiently(PATIENCE, "POST", "/v1/plan", msgspec.json.encode(asked))
    else:
        raw = ctl.client.ask_patiently(PATIENCE, "GET", "/v1/plan", cycle=cycle_id)
    ctl.show(raw, Forecast, _plan)


def _plan(f: Forecast) -> Iterator[RenderableType]:
    now = f.now
    about = f"cycle {f.cycle}" if f.cycle and f.selector else "all cycles"
    if f.planned:
        windows = f", in {f.windows} window{'s' if f.windows != 1 else ''}" if f.windows else ""
        yield text(
            f"{about}: {counted(len(f.planned), 'machine')} to go, the last is back {when(f.last or now, now)}{windows}"
        )
    else:
        yield text(f"{about}: no machine can go" if f.never else f"{about}: no machine has to go")
    if len(f.cycles) > 1:
        yield table(
            ("cycle", "to go", "never", "ends"),
            [(c, str(e.to_go), str(e.never), ends(e, now)) for c, e in sorted(f.cycles.items())],
            now,
        )
    elif f.cycle in f.cycles:
        yield text(f"it ends {ends(f.cycles[f.cycle], now)}")
    if f.planned:
        yield text("\nwhen", "bold")
        yield from gantt(f.planned, now)
        yield text("\nwho", "bold")
        rows = [
            (p.rack, p.machine, str(p.wave or "-"), clock(p.start, now), clock(p.back, now), span(p.back - p.start))
            for p in f.planned[:SHOWN]
        ]
        yield table(("rack", "machine", "wave", "starts", "back", "takes"), rows, now)
        if len(f.planned) > SHOWN:
            yield text(f"... and {len(f.planned) - SHOWN} more: rebootctl plan --json")
    if f.never:
        yield text(f"\nnever, as things are: {counted(len(f.never), 'machine')}", "bold red")
        yield table(("machines", "such as", "because", "who can clear it"), _reasons(f.never), now)
    yield text("\ntakes it that", "bold")
    for said in f.assumes:
        yield text(f"- {said}")
    yield text("- a machine takes " + ", ".join(_basis(f)))
    yield text(_errors(f))


def ends(estimate: Estimate, now: float) -> str:
    """When a cycle ends, in words."""
    if estimate.ends is not None:
        return when(estimate.ends, now)
    last = f"; the last that can go is back {when(estimate.last, now)}" if estimate.last else ""
    return f"not by itself{last}"


def _basis(f: Forecast) -> Iterator[str]:
    for b in f.basis:
        seen = f"{b.samples} seen, ± {span(b.spread)}" if b.samples else "by default"
        yield f"{span(b.seconds)} to {b.phase} ({seen})"


def _errors(f: Forecast) -> str:
    if not f.errors:
        return "no estimate has come to its end yet, so nobody knows how far off they are"
    told = ", ".join(
        f"{e.cycle}{f' (estimate {e.number + 1})' if e.number else ''} "
        f"{span(abs(e.late))} {'late' if e.late > 0 else 'early'}"
        for e in f.errors[:3]
    )
    return f"past estimates were off by {off(f.errors)}: {told}"


def off(errors: Sequence[PastError]) -> str:
    """How far off estimates were, as a share of the time that was really left."""
    shares = sorted(abs(e.share) for e in errors)
    median = shares[len(shares) // 2]
    return f"{f'{median:.0%}' if median < 2 else f'{median:.0f} times the time'} (median of {len(shares)})"


def _reasons(never: Iterable[Never]) -> list[tuple[str, str, str, str]]:
    """Each set of reasons once, with how many machines have it; the most frequent first."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for n in never:
        groups.setdefault(tuple((b.what, b.clears) for b in n.reasons), []).append(n.machine)
    rows = []
    for reasons, names in sorted(groups.items(), key=lambda item: -len(item[1]))[:20]:
        shown = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
        first = (str(len(names)), shown)
        for what, clears in reasons or (("it is not known", "-"),):
            rows.append((*first, what, clears))
            first = ("", "")
    return rows


def gantt(planned: Iterable[Planned], now: float) -> Iterator[RenderableType]:
    """One line a rack: how much of the time its machines are out, as blocks from light to full."""
    planned = list(planned)
    begin, end = min(p.start for p in planned), max(p.back for p in planned)
    column = max(1e-9, (end - begin) / WIDTH)
    racks: dict[str, list[float]] = {}
    for p in planned:
        line = racks.setdefault(p.rack, [0.0] * WIDTH)
        first, last = int((p.start - begin) / column), int((p.back - begin) / column)
        for i in range(first, min(last, WIDTH - 1) + 1):
            low, high = begin + i * column, begin + (i + 1) * column
            line[i] += max(0.0, min(p.back, high) - max(p.start, low)) / column
    order = sorted(racks, key=lambda r: (next(i for i, share in enumerate(racks[r]) if share), r))
    rows = [(rack, "".join(_block(share) for share in racks[rack])) for rack in order[:SHOWN]]
    left, right = clock(begin, now), clock(end, now)
    yield table(("", ""), [("", left + right.rjust(WIDTH - len(left))), *rows], now)
    if len(order) > SHOWN:
        yield text(f"... and {len(order) - SHOWN} more racks")


def _block(share: float) -> str:
    if share <= 0:
        return "·"
    return "░" if share < 0.25 else "▒" if share < 0.5 else "▓" if share < 0.9 else "█"


COMMANDS = (plan,)

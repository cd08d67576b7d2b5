"""What the tests of the box have in common: a cycle that is disturbed and must hold its promises, figures, waiting."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import msgspec

from rebootd.api.shapes import Machines
from rebootd.cli.ctl_client import Trouble
from tests.e2e.box import truth
from tests.e2e.box.desk import Desk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.e2e.box.load import Tally

POLICY = """
gates:
  - name: consul-servers
    kind: consul-quorum
    max_age: 2s
quorums:
  - name: consul
    selector: role=consul
deadlines: {rebooting: 25s}
settle: 10s
failure_budget: 1
"""
FIGURES: list[str] = []
"""Everything that was measured, told once more at the end."""
SENT: list[tuple[int, int]] = []
"""Requests sent and lost under each load that must lose none."""


def figure(what: str, *values: object) -> None:
    """Says what was measured."""
    FIGURES.append(f"{what}: {' '.join(map(str, values))}")
    print(f"\nfigure: {FIGURES[-1]}", flush=True)


def lossless(what: str, tally: Tally) -> None:
    """A load that went on at its rate and of which nothing was lost."""
    figure(f"load, {what}", tally)
    assert tally.sent >= 190 * tally.seconds
    SENT.append((tally.sent, tally.lost))
    assert not tally.lost, str(tally)


def out(desk: Desk) -> list[str]:
    """Machines on their way through a reboot."""
    return [name for name, state in desk.states().items() if state not in {"in-service", "quarantined", "held"}]


def selected(desk: Desk, selector: str) -> set[str]:
    """The machines that a selector of the tests takes: all, the web hosts, or those named."""
    if selector == "role=web":
        return {host.name for host in desk.box.plan.machines if host.web}
    if selector == "role=consul":
        return {host.name for host in desk.box.plan.consul_servers}
    named = selector.removeprefix("name in (").removesuffix(")")
    return {host.name for host in desk.box.plan.machines} if selector == "*" else set(named.split(", "))


@contextmanager
def cycle(
    desk: Desk, name: str, selector: str = "*", patience: float = 300, *, whole_racks: bool = False
) -> Iterator[float]:
    """A cycle that the body disturbs; then it must end, with every machine rebooted once and no promise broken.

    Yields the time (seconds since 1970) of its start. While it goes, every waiting machine is asked for its reason.
    """
    start, clock = time.time(), time.monotonic()
    desk.rebootctl("cycle", "start", name, "--selector", selector, "--failure-budget", "1")
    with unexplained(desk, selected(desk, selector), start) as dumb:
        yield start
        shown = desk.done(name, patience)
        took = time.monotonic() - clock
        desk.in_service(120)
    figure(f"cycle {name}", f"{took:.1f} s", shown.counts)
    kept_promises(desk, start, dict.fromkeys(selected(desk, selector), 1), dumb, whole_racks=whole_racks)


@contextmanager
def unexplained(desk: Desk, names: set[str], start: float) -> Iterator[list[str]]:
    """Machines that waited without a reason, twice in a row, while the body ran (S8).

    Those wait that are not in service, and those of ``names`` that have not been down since ``start``.
    """
    found: list[str] = []
    over = threading.Event()

    def watch() -> None:
        mine, before = Desk(desk.box), set[tuple[str, str, float]]()
        while not over.wait(0.5):
            with suppress(Trouble, OSError):
                rows = msgspec.json.decode(mine.ask("GET", "/v1/machines"), type=Machines).machines
                waiting = names - set(desk.box.exits(start))
                dumb = {
                    (row.name, row.state, row.since)
                    for row in rows
                    if not row.waiting and (row.state != "in-service" or row.name in waiting)
                }
                found.extend(f"{name} ({state}) waits without a reason" for name, state, _ in sorted(dumb & before))
                before = dumb
        mine.close()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join(30)


def kept_promises(
    desk: Desk, start: float, rebooted: dict[str, int], dumb: Sequence[str] = (), *, whole_racks: bool = False
) -> None:
    """S1 to S3 and S7 by the power's account, S8 by ``dumb``, and who really rebooted in an orderly way how often."""
    notes = desk.box.notes()
    counted = truth.reboots(desk.box.plan, notes, start)
    assert {name: count for name, count in counted.items() if count} == rebooted
    assert truth.breaches(desk.box.plan, notes, desk.events(), start, whole_racks=whole_racks) == []
    assert list(dumb) == []


def returned(desk: Desk, host: str, since: float, timeout: float = 60) -> None:
    """Until a host that went down after ``since`` was received, enabled, and gets requests again."""

    def back() -> bool:
        enabled = [e for e in desk.events() if e.machine == host and e.to == "in-service" and e.time > since]
        return bool(enabled) and desk.states()[host] == "in-service"

    desk.until(back, f"{host} to be back", timeout)
    if desk.box.plan.host(host).web:
        desk.balanced(30)


def wait_state(
    desk: Desk, host: str, state: str, timeout: float = 120, also: Callable[[], object] | None = None
) -> None:
    """Until a host is in a state (and ``also`` holds)."""
    desk.until(lambda: desk.states()[host] == state and (also is None or also()), f"{host} to be {state}", timeout)

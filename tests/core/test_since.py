"""Every blocker says since when it stands, and that is no moment of looking (S8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from rebootd.core.amounts import Amount
from rebootd.core.decide import decide
from rebootd.core.model import OpenWindow, RackLock, State
from rebootd.core.policy import Policy, parse_policy
from tests.core.worlds import NOW, OURS, asks, cycle, machine, out, snapshot

if TYPE_CHECKING:
    from rebootd.core.model import Snapshot

NIGHTLY = "windows:\n  calendar:\n    - {name: night, start: '0 2 * * *', duration: 4h}\n"
MONTHLY = "windows:\n  calendar:\n    - {name: month, start: '0 2 1 * *', duration: 4h}\n"
LEADING = NOW - 3600
"""Since when the leader of these worlds leads."""


@dataclass(frozen=True)
class Case:
    kind: str
    world: Snapshot
    since: float
    name: str = "m1"


def world(*machines: object, **facts: object) -> Snapshot:
    return snapshot(*(machines or (machine(),)), **({"cycles": [cycle()]} | facts))  # type: ignore[arg-type]


ELSEWHERE = RackLock(holder="other", session="s", node="n", since=NOW - 77)
GONE = OpenWindow(id="w0", start=NOW - 9000, end=NOW - 1800)
CASES = {
    "window, calendar": Case("window", world(policy=parse_policy(NIGHTLY)), NOW - 7200),
    "window, monthly": Case("window", world(policy=parse_policy(MONTHLY)), NOW - 14 * 86400 - 7200),
    "window, once": Case("window", world(policy=Policy(window_required=True), windows=(GONE,)), NOW - 1800),
    "window, whichever closed last": Case("window", world(policy=parse_policy(NIGHTLY), windows=(GONE,)), NOW - 1800),
    "window, none known": Case("window", world(policy=Policy(window_required=True)), LEADING),
    "window, to come": Case(
        "window",
        world(policy=Policy(window_required=True), windows=(replace(GONE, start=NOW + 9, end=NOW + 99),)),
        LEADING,
    ),
    "rack-lock": Case("rack-lock", world(racks={"r1": ELSEWHERE}), NOW - 77),
    "rack-lock, lost": Case("rack-lock", world(out(State.DRAINED), racks={"r1": RackLock(since=NOW - 5)}), NOW - 5),
    "no-rack": Case("no-rack", world(machine(rack="", since=NOW - 500)), NOW - 500),
    "racks, by a lock": Case("racks", world(machine(), machine("m2", "r2"), racks={"r2": ELSEWHERE}), NOW - 77),
    "racks, by a machine": Case("racks", world(machine(), out(State.DRAINING, "m2", "r2", since=NOW - 66)), NOW - 66),
    "racks, our lock": Case(
        "racks",
        world(machine(), out(State.DRAINING, "m2", "r2", since=NOW - 6), racks={"r2": replace(OURS, since=NOW - 55)}),
        NOW - 55,
    ),
    "racks, the last of two": Case(
        "racks",
        world(
            machine(),
            out(State.DRAINING, "m2", "r2", since=NOW - 66),
            out(State.DRAINING, "m3", "r3", since=NOW - 44),
            policy=Policy(open_racks=2),
        ),
        NOW - 44,
    ),
    "limit": Case(
        "limit",
        world(
            machine(),
            *(machine(f"m{n}", state=State.QUARANTINED, since=NOW - 100 * n) for n in (2, 3, 4)),
            policy=Policy(rack_unavailable=Amount(2)),
        ),
        NOW - 300,
    ),
    "limit, over": Case(
        "limit",
        world(
            out(State.DRAINED),
            machine("m2", state=State.QUARANTINED, since=NOW - 500),
            racks={"r1": OURS},
            asking=[asks(out(State.DRAINED))],
            silent=["m1"],
        ),
        NOW - 30,
    ),
    "limit, never": Case("limit", world(policy=Policy(rack_unavailable=Amount(0))), LEADING),
    "conflict": Case("conflict", world(conflicts={"m1": "two"}, conflict_since={"m1": NOW - 33}), NOW - 33),
    "store": Case("store", world(faults=("denied",), fault_since={"denied": NOW - 22}), NOW - 22),
    "cycle": Case(
        "cycle",
        world(out(State.DRAINED, cycle="gone"), racks={"r1": OURS}, asking=[asks(out(State.DRAINED))], silent=["m1"]),
        LEADING,
    ),
    "window-fit": Case(
        "window-fit",
        world(
            policy=parse_policy(NIGHTLY + "forecast: {reboot: 1h}\ndeadlines: {rebooting: 2h}"),
            now=NOW - 7200 - 1800,
            leading_since=NOW - 9e4,
        ),
        NOW - 7200 - 3600 - 190,
    ),
    "window-fit, from its start": Case(
        "window-fit",
        world(
            policy=parse_policy("windows: {required: true}\nforecast: {reboot: 1h}\ndeadlines: {rebooting: 2h}"),
            windows=(
                OpenWindow(id="w0", start=NOW - 60, end=NOW + 1800),
                OpenWindow(id="w1", start=NOW + 9e4, end=NOW + 2e5),
            ),
        ),
        NOW - 60,
    ),
    "never": Case("never", world(policy=parse_policy(NIGHTLY.replace("4h", "5m"))), LEADING),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_blocker_says_since_when(case: Case) -> None:
    reasons = decide(case.world).reasons[case.name]
    found = [b for b in reasons if b.kind == case.kind]
    assert found, [b.kind for b in reasons]
    assert found[0].since == pytest.approx(case.since, abs=1.0)
    assert found[0].clears

"""Shutdowns by somebody else's hand, and machines in service that say they are not."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from rebootd.core.decide import decide
from rebootd.core.model import Machine, State
from rebootd.core.quiet import quiet
from tests.core.worlds import NOW, PASSED, kinds, machine, report, seen, snapshot, step_of

M = machine()


def told(m: Machine, **facts: Any) -> list[tuple[str, str, str]]:
    step = step_of(decide(snapshot(m, observed={"m1": seen(m, **facts)})))
    return [(e.frm, e.to, e.cause) for e in step.events] if step is not None else []


def test_out_by_itself_comes_back() -> None:
    assert not quiet(M, report(M, in_service=False))
    assert told(M, in_service=False, boot_check=PASSED) == [
        ("in-service", "verifying", "out of service on its host"),
        ("verifying", "enabling", "verified"),
    ]
    # A report that does not know of the enable yet speaks of what was before it.
    assert quiet(M, report(M, in_service=False, index=M.version - 1))
    assert told(M, in_service=False, index=M.version - 1) == []


def test_an_announced_shutdown_counts_as_out_and_is_not_enabled() -> None:
    decision = decide(snapshot(M, observed={"m1": seen(M, in_service=False, announced="reboot", boot_check=PASSED)}))
    step = step_of(decision)
    assert step is not None
    assert step.after is not None
    assert (step.after.state, step.after.announced) == (State.VERIFYING, True)
    assert [e.cause for e in step.events] == ["announced shutdown"]
    waiting = step.after
    again = decide(snapshot(waiting, observed={"m1": seen(waiting, announced="reboot", boot_check=PASSED)}))
    assert step_of(again) is None
    assert kinds(again) == ["agent"]
    called_off = {"announced": "", "boot_check": PASSED}
    assert told(waiting, **called_off) == [("verifying", "enabling", "verified")]


@pytest.mark.parametrize("remembers", ["agent", "record"])
def test_the_boot_after_it_is_announced(remembers: str) -> None:
    m = replace(M, announced=remembers == "record", unplanned=2, unplanned_at=(NOW - 9.0,))
    said = "announced" if remembers == "agent" else ""
    decision = decide(
        snapshot(m, observed={"m1": seen(m, boot_id="m1-b2", index=0, last_shutdown=said, in_service=False)})
    )
    step = step_of(decision)
    assert step is not None
    assert step.after is not None
    assert step.events[0].cause == "announced boot"
    assert (step.after.unplanned, step.after.unplanned_at) == (2, (NOW - 9.0,))
    assert not step.after.announced
    assert not step.after.planned


@pytest.mark.parametrize(
    ("said", "cause"),
    [("orderly", "orderly boot"), ("none", "unplanned boot"), ("crash", "unplanned boot"), ("", "unplanned boot")],
)
def test_how_the_boot_before_ended(said: str, cause: str) -> None:
    decision = decide(
        snapshot(M, observed={"m1": seen(M, boot_id="m1-b2", index=0, last_shutdown=said, in_service=False)})
    )
    step = step_of(decision)
    assert step is not None
    assert step.after is not None
    event = step.events[0]
    assert event.cause == cause
    assert event.detail.endswith(f"ended: {said}" if said else "-> m1-b2")
    assert step.after.unplanned == (0 if said == "orderly" else 1)

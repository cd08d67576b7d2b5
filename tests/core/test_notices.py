"""Which events somebody is told of, and in which words."""

from __future__ import annotations

import pytest

from rebootd.core.errors import InvalidInput
from rebootd.core.model import Event, State
from rebootd.core.notices import KINDS, Notice, gathered, notice, parse_kinds


def event(kind: str = "transition", **facts: str) -> Event:
    named = {"frm": facts.pop("frm", "")}
    return Event(time=1.0, kind=kind, **named, **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("told", "kind", "title"),
    [
        (event("operator", cause="cycle-start", cycle="k"), "cycle-started", "cycle k started"),
        (event("cycle", to="running", cycle="standing"), "cycle-started", "cycle standing started"),
        (event("cycle", frm="running", to="halted", cycle="k", detail="2 failed"), "cycle-halted", "cycle k halted"),
        (event("cycle", frm="running", to="done", cycle="k"), "cycle-done", "cycle k is done"),
        (event("operator", cause="halt", detail="by ann: smoke"), "halt", "everything is halted"),
        (
            event(frm="verifying", to="quarantined", machine="m1", rack="r1", cause="deadline"),
            "quarantined",
            "m1 is quarantined",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_told(told: Event, kind: str, title: str) -> None:
    found = notice(told)
    assert found is not None
    assert (found.kind, found.title) == (kind, title)
    assert told.detail in found.body
    assert kind in KINDS


@pytest.mark.parametrize(
    "quiet",
    [
        event(frm="quarantined", to="quarantined", machine="m1"),
        event("cycle", frm="paused", to="running", cycle="k"),
        event("operator", cause="hold", machine="m1"),
        event("refused", machine="m1", to="quarantined"),
        *(event(to=state, machine="m1") for state in sorted(State) if state is not State.QUARANTINED),
    ],
)
def test_what_is_not(quiet: Event) -> None:
    assert notice(quiet) is None


def test_several_become_one() -> None:
    many = [Notice("quarantined", f"m{n} is quarantined", "deadline") for n in range(30)]
    assert gathered(many[:1]) is many[0]
    whole = gathered(many)
    assert whole.title == "30 things happened"
    assert "m19 is quarantined: deadline" in whole.body
    assert "m20" not in whole.body
    assert "10 more" in whole.body
    with pytest.raises(ValueError, match="nothing"):
        gathered([])


@pytest.mark.parametrize("text", ["", ",", "cycles", "halt,quarantine"])
def test_kinds_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="notify-events"):
        parse_kinds(text, "notify-events")
    assert parse_kinds("halt, quarantined", "x") == {"halt", "quarantined"}

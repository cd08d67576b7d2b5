"""The demo's options, its tally of events, and its verdict, without starting anything."""

from __future__ import annotations

import io
import json
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from rich.console import Console

from rebootd.cli.demo import command
from rebootd.cli.demo_events import Tally
from rebootd.cli.demo_screen import Screen, described
from rebootd.cli.demo_summary import Failover, Verdict
from rebootd.core.model import Event

MACHINES = [("a", "r1"), ("b", "r1"), ("c", "r2")]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (["--racks", "0"], "--racks"),
        (["--racks", "many"], "--racks"),
        (["--machines", "-1"], "--machines"),
        (["--boot-time", "soon"], "--boot-time"),
        (["--timeout", "0"], "--timeout"),
        (["--what"], "--what"),
        (["--events", "/nowhere/at/all"], "events"),
    ],
)
def test_bad_options_are_named(options: list[str], field: str) -> None:
    result = CliRunner().invoke(command, options)
    assert result.exit_code == 2
    assert field in result.output


def test_bad_consul_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSUL_HTTP_ADDR", "ftp://nowhere")
    result = CliRunner().invoke(command, [])
    assert result.exit_code == 2
    assert "consul.address: 'ftp://nowhere'" in result.output


def moves(*steps: tuple[str, str], epoch: int = 1, start: int = 1) -> list[Event]:
    racks = dict(MACHINES)
    return [
        Event(time=float(n), machine=m, rack=racks[m], to=to, epoch=epoch, seq=n, boot_id=f"boot-{m}")
        for n, (m, to) in enumerate(steps, start)
    ]


def test_tally_counts_each_event_once() -> None:
    file = io.StringIO()
    tally = Tally(MACHINES, file)
    begin = moves(("a", "in-service"), ("b", "in-service"), ("c", "in-service"))
    cycle = moves(("a", "draining"), ("a", "rebooting"), ("a", "enabling"), start=4)
    for event in begin:
        assert tally.take(event)
    tally.begin()
    for event in cycle:
        assert tally.take(event)
    # The next leader tells its predecessor's history again, and goes on from the numbers of what was stored.
    for event in begin + cycle:
        assert not tally.take(event)
    for event in moves(("a", "in-service"), ("c", "draining"), ("b", "draining"), epoch=2, start=6):
        assert tally.take(event)
    assert tally.rebooted == {"a"}
    assert (tally.most_out, tally.most_racks, tally.epoch) == (2, 2, 2)
    rows = [json.loads(row) for row in file.getvalue().splitlines()]
    assert [row["seq"] for row in rows] == [1, 2, 3, 4, 5, 6, 6, 7, 8]
    assert set(rows[0]) >= {"time", "machine", "rack", "from", "to", "cause", "cycle", "epoch"}


def test_other_events_are_no_transitions() -> None:
    file = io.StringIO()
    tally = Tally(MACHINES, file)
    assert tally.take(Event(time=1.0, kind="refused", machine="a", cause="stale boot_id", epoch=3, seq=1))
    assert tally.take(Event(time=1.0, machine="stranger", to="draining", epoch=3, seq=2))
    assert file.getvalue() == ""
    assert set(tally.states.values()) == {""}


GOOD = Verdict(
    machines=("a", "b"),
    states={"a": "in-service", "b": "in-service"},
    boots={"a": 1, "b": 1},
    crashes=0,
    rebooted=2,
    failed=0,
    most_racks=1,
    most_out=1,
    failover=Failover(killed="d1", at=100.0, epoch=2, commit=0.5, moved=1.25),
    kill=True,
    seconds=50.0,
)


def shown(verdict: Verdict) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(verdict.table())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_good_verdict() -> None:
    assert GOOD.problems == []
    text = shown(GOOD)
    assert "2 of 2" in text
    assert "0.50 s from SIGKILL to the next leader's first commit, 1.25 s to the first machine that moved" in text


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"boots": {"a": 2, "b": 1}}, "a was rebooted 2 times"),
        ({"boots": {"a": 1}}, "b was rebooted 0 times"),
        ({"states": {"a": "in-service", "b": "quarantined"}}, "b is quarantined"),
        ({"states": {"a": "in-service"}}, "b is unknown"),
        ({"most_racks": 2}, "2 racks were open at once"),
        ({"failover": Failover()}, "nobody was killed"),
        ({"failover": Failover(killed="d1")}, "no leader followed"),
        ({"problem": "the time is over"}, "the time is over"),
    ],
)
def test_everything_that_goes_wrong_is_a_problem(change: dict[str, Any], problem: str) -> None:
    verdict = msgspec.structs.replace(GOOD, **change)
    assert any(problem in p for p in verdict.problems)
    assert problem in shown(verdict)


def test_screen_on_a_terminal_and_elsewhere() -> None:
    event = moves(("a", "draining"))[0]
    plain = Console(file=io.StringIO(), width=200)
    lively = Console(file=io.StringIO(), width=100, force_terminal=True)
    for console in (plain, lively):
        tally = Tally(MACHINES)
        screen = Screen(console)
        screen.begin(tally)
        tally.take(event)
        screen.event(event)
        screen.note("the leader was killed")
        screen.end()
    assert isinstance(plain.file, io.StringIO)
    assert isinstance(lively.file, io.StringIO)
    first, second = plain.file.getvalue().splitlines()
    assert first == described(event)
    assert "the leader was killed" in second
    assert "draining" in lively.file.getvalue()
    assert "r2" in lively.file.getvalue()

"""What is said of a selector that matches nothing."""

from __future__ import annotations

import pytest

from rebootd.core.selector_hints import unmatched
from rebootd.core.selectors import parse_selector
from tests.core.worlds import machine, snapshot

FLEET = snapshot(
    machine("web-1", "r1", labels={"role": "web", "site": "a"}),
    machine("db-1", "r2", labels={"role": "database", "site": "b"}, kernel="6.12.9"),
)
SAID = {
    "role=wbe": "no role is 'wbe'; nearest: web",
    "label.role=wbe": "no role is 'wbe'; nearest: web",
    "rolle=web": "no machine has 'rolle'; nearest: role",
    "zzz": "no machine has 'zzz'; known: kernel, name, rack, role, site, state",
    "role in (wbe, databse)": "no role is 'wbe'; nearest: web; no role is 'databse'; nearest: database",
    "role in (web, x), site=c": "no site is 'c'; known: a, b",
    "name=app-*": "no name is 'app-*'; known: db-1, web-1",
    "chassis=c1": "no machine has a chassis",
    "role=web, role!=web": "2 machines are known, each of its terms by others",
    "role=web,site=b": "2 machines are known, each of its terms by others",
    "!state": "2 machines are known",
    "role notin (web,database)": "2 machines are known",
    "environment!=test, role=wbe": "no role is 'wbe'; nearest: web",
}


@pytest.mark.parametrize("text", sorted(SAID))
def test_the_term_that_nobody_meets_is_named_with_what_is_near(text: str) -> None:
    said = unmatched(FLEET, parse_selector(text))
    assert said == f"{text!r} matches no machine ({SAID[text]})"


def test_nothing_is_said_of_one_that_matches_and_of_a_fleet_that_nobody_knows() -> None:
    assert unmatched(FLEET, parse_selector("role=w*")) == ""
    assert unmatched(snapshot(), parse_selector("role=web")) == ""

"""Which silences there should be, and what is asked of Alertmanager to get there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from rebootd.core.errors import InvalidInput
from rebootd.core.model import State
from rebootd.core.policy import parse_policy, render_policy
from rebootd.core.policy_silences import Matcher
from rebootd.core.silences import LASTS, OUT, Ask, Seen, Wanted, asks, out_by_us, wanted
from tests.core.worlds import machine, out

NOW = 1_700_000_000.0
NAMES = ("m1", "m2", "m3")
MATCHERS = (Matcher("instance", "x"),)


@pytest.mark.parametrize("state", sorted(State))
def test_who_is_out_by_our_hand(state: State) -> None:
    gone = out(state, "m1", "r1") if state is not State.IN_SERVICE else machine("m1", "r1")
    assert out_by_us(replace(gone, booted=False, planned=False)) is (state in OUT)
    assert out_by_us(replace(gone, booted=True, planned=True)) is (state in OUT)
    # A crash is nobody's wish.
    assert not out_by_us(replace(gone, booted=True, planned=False))


def test_nothing_is_wanted_without_an_address() -> None:
    machines = {"m1": out(State.DRAINED, "m1", "r1")}
    assert wanted(machines, parse_policy("{}").silences) == {}
    policy = parse_policy("silences: {alertmanager: 'http://a:9093/'}")
    assert wanted(machines, policy.silences)["m1"].matchers == (Matcher("instance", "m1(:[0-9]+)?", True),)
    assert parse_policy(render_policy(policy)) == policy


def test_names_are_escaped_in_patterns_and_only_there() -> None:
    matchers = 'host="{name}", instance=~"{name}:.+", rack!="x{rack}"'
    text = f"silences: {{alertmanager: 'http://a:9093', matchers: '{matchers}'}}"
    found = parse_policy(text).silences.of("web.1", "r+7")
    assert found == (
        Matcher("host", "web.1"),
        Matcher("instance", "web\\.1:.+", True),
        Matcher("rack", "xr+7", False, False),
    )


@pytest.mark.parametrize("matchers", ['severity="page"', 'instance!="{name}"', "nonsense", 'a=~"("', ""])
def test_matchers_that_would_silence_others_are_refused(matchers: str) -> None:
    with pytest.raises(InvalidInput, match=r"silences\.matchers"):
        parse_policy(f"silences: {{alertmanager: 'http://a:9093', matchers: '{matchers}'}}")


def wish(name: str) -> Wanted:
    return Wanted(name, MATCHERS, "drained")


@given(
    st.sets(st.sampled_from(NAMES)),
    st.lists(
        st.tuples(st.sampled_from(NAMES), st.floats(NOW - 10, NOW + LASTS), st.sampled_from([MATCHERS, ()])), max_size=6
    ),
)
def test_afterwards_each_has_one_for_long_enough_and_nobody_else_has_any(
    names: set[str], there: list[tuple[str, float, tuple[Matcher, ...]]]
) -> None:
    wishes = {name: wish(name) for name in sorted(names)}
    seen = {str(n): Seen(str(n), name, matchers, ends) for n, (name, ends, matchers) in enumerate(there)}
    for number, what in enumerate(asks(wishes, seen.values(), NOW)):
        assert what.ends <= NOW + LASTS
        if what.wanted is None:
            del seen[what.id]
        else:
            id_ = what.id or f"new{number}"
            seen[id_] = Seen(id_, what.wanted.machine, what.wanted.matchers, what.ends)
    assert sorted(s.machine for s in seen.values()) == sorted(names)
    assert all(s.ends >= NOW + LASTS / 2 and s.matchers == MATCHERS for s in seen.values())
    assert asks(wishes, seen.values(), NOW) == []


def test_what_must_not_be_heard_comes_before_what_may_be_again() -> None:
    old = Seen("1", "m1", (), NOW + LASTS)
    assert asks({"m1": wish("m1")}, [old], NOW) == [Ask("", wish("m1"), NOW + LASTS, NOW), Ask("1")]

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebootd.core.errors import InvalidInput
from rebootd.core.inputs import (
    DAY,
    MAX_DURATION,
    Fields,
    bad_input,
    format_duration,
    format_share,
    nearest,
    parse_choice,
    parse_count,
    parse_duration,
    parse_flag,
    parse_name,
    parse_share,
    parse_text,
    parse_token,
)

if TYPE_CHECKING:
    from collections.abc import Callable

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=10**400, max_value=10**401),
    st.floats(),
    st.text(),
    st.lists(st.text(), max_size=3),
    st.dictionaries(st.text(), st.integers(), max_size=3),
    st.text(alphabet="0123456789.dhms% -", max_size=12),
)
PARSERS: list[Callable[[object, str], object]] = [
    parse_duration,
    parse_name,
    parse_token,
    parse_text,
    parse_count,
    parse_share,
    parse_flag,
    lambda value, field: parse_choice(value, field, ("one", "two")),
    lambda value, field: Fields(value, field, ("one", "two")),
    lambda value, field: Fields({"one": value}, field, ("one", "two")).items("one"),
]


@given(value=ANYTHING, parser=st.sampled_from(PARSERS))
def test_whatever_comes_only_invalid_input_is_raised(value: object, parser: Callable[[object, str], object]) -> None:
    try:
        parser(value, "field")
    except InvalidInput as error:
        said = error
    else:
        return
    assert said.field.startswith("field")
    assert said.accepted
    assert len(str(said).encode()) < 1500


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90), ("10m", 600), ("1h30m", 5400), ("2d", 2 * DAY), ("1d12h", 1.5 * DAY), ("250ms", 0.25),
        ("1.5s", 1.5), ("90", 90), (90, 90), (0.2, 0.2), ("0.2", 0.2), (0, 0), ("0s", 0), (" 5m ", 300), ("1s500ms",
        1.5),
    ],
)  # fmt: skip
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text, "soak") == seconds


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "s", "1", True, None, "-1s", -1, "1m1h", "1h 30m", "1:30", "1e3", "1y", "1.5m", "nan", math.nan,
        math.inf,
        "999999d", 1e300, 10**400, 0.0001, "0.0001", [], {}, "١s", "1_0s", "0x10", b"1s",
    ],
)  # fmt: skip
def test_what_is_no_duration(text: object) -> None:
    minimum = 2.0 if text == "1" else 0.0
    with pytest.raises(InvalidInput) as caught:
        parse_duration(text, "soak", minimum=minimum)
    assert caught.value.field == "soak"
    assert "10m" in caught.value.accepted


def test_duration_bounds_are_named() -> None:
    with pytest.raises(InvalidInput, match=r"deadline: '8d' is not accepted; expected .*, from 1m to 7d"):
        parse_duration("8d", "deadline", minimum=60, maximum=7 * DAY)


@given(st.integers(min_value=0, max_value=int(MAX_DURATION * 1000)).map(lambda ms: ms / 1000))
def test_durations_survive_text(seconds: float) -> None:
    assert parse_duration(format_duration(seconds), "x") == seconds
    assert parse_duration(seconds, "x") == seconds


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (90, "1m30s"), (5400, "1h30m"), (0.25, "250ms"), (DAY + 0.5, "1d500ms")]
)
def test_durations_are_written_shortly(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize("name", ["r7", "web-1.example", "A_b", "-x", "kernel-6.12.9", ".lock", "x" * 128])
def test_names(name: str) -> None:
    assert parse_name(name, "name") == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "ä", "a\n", "x" * 129, 7, None, "a%2f"])
def test_what_is_no_name(name: object) -> None:
    with pytest.raises(InvalidInput, match=r"^rack: "):
        parse_name(name, "rack")


def test_tokens_take_what_identifiers_have_and_no_spaces() -> None:
    for token in ("6f1e0a9e-0c9b-4d58-a7c0-1a6f3b1f7d11", "m1/3/drain", "0" * 32):
        assert parse_token(token, "boot_id") == token
    for refused in ("", "a b", "a\n", "x" * 129, None, 5, "é"):
        with pytest.raises(InvalidInput):
            parse_token(refused, "boot_id")


def test_free_text_is_one_printable_line() -> None:
    assert parse_text(" swap Ö disk ", "reason") == "swap Ö disk"
    assert parse_text("", "reason") == ""
    for text in ("a\nb", "\x1b[31m", "x" * 1001, None, 3, "\ud800"):
        with pytest.raises(InvalidInput):
            parse_text(text, "reason")
    with pytest.raises(InvalidInput, match="1 to 1000"):
        parse_text("  ", "reason", required=True)


def test_counts() -> None:
    assert [parse_count(x, "n") for x in (0, 3, "3", " 07 ")] == [0, 3, 3, 7]
    for bad in (-1, "-1", 1.0, True, "", "1.5", None, 10**9, "9" * 5000):
        with pytest.raises(InvalidInput, match="whole number from 0 to 1000000"):
            parse_count(bad, "n")


def test_shares() -> None:
    assert [parse_share(x, "s") for x in ("20%", "0.2", 0.2, 1, "100%", "12.34%")] == [0.2, 0.2, 0.2, 1, 1, 0.1234]
    for bad in ("0%", 0, "101%", "20", 1.1, -0.1, True, None, "x", math.nan, "%", 10**400):
        with pytest.raises(InvalidInput, match="1% to 100%"):
            parse_share(bad, "s")


@given(st.integers(min_value=100, max_value=10_000).map(lambda n: n / 10_000))
def test_shares_survive_text(share: float) -> None:
    assert parse_share(format_share(share), "s") == share
    assert parse_share(share, "s") == share


def test_flags() -> None:
    assert [parse_flag(x, "f") for x in (True, "true", False, "false")] == [True, True, False, False]
    for bad in ("yes", "no", 1, 0, None, "", "True "):
        with pytest.raises(InvalidInput, match="true or false"):
            parse_flag(bad, "f")


def test_choices_name_the_nearest() -> None:
    assert parse_choice("racks", "f", ("racks", "limits")) == "racks"
    with pytest.raises(InvalidInput, match=r"one of racks, limits \(did you mean limits\?\)"):
        parse_choice("limit", "f", ("racks", "limits"))
    assert nearest("zzzz", ("racks", "limits")) is None


def test_a_strict_mapping() -> None:
    fields = Fields({"a": "1", "c": {"d": "2"}, "l": ["x", "y"], "e": ""}, "top", ("a", "b", "c", "l", "e"))
    assert fields.take("a", parse_count, 9) == 1
    assert fields.take("b", parse_count, 9) == 9
    assert fields.need("a", parse_count) == 1
    assert fields.section("c", ("d",)).take("d", parse_count, 0) == 2
    assert fields.items("l") == [("top.l[0]", "x"), ("top.l[1]", "y")]
    assert fields.items("b") == fields.items("e") == []
    assert fields.section("e", ("d",)).take("d", parse_count, 5) == 5
    with pytest.raises(InvalidInput, match=r"^top\.b: None .*must be given"):
        fields.need("b", parse_count)
    with pytest.raises(InvalidInput, match=r"^top\.c\.d: '2' .*e, f"):
        fields.section("c", ("e", "f"))
    with pytest.raises(InvalidInput, match=r"^top\.a: '1' .*a mapping"):
        fields.section("a", ("d",))
    with pytest.raises(InvalidInput, match=r"^top\.a: '1' .*a list"):
        fields.items("a")


def test_an_unknown_field_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(InvalidInput, match=r"^selecter: '\*' .*name, selector, max \(did you mean selector\?\)"):
        Fields({"selecter": "*"}, "", ("name", "selector", "max"))
    with pytest.raises(InvalidInput, match=r"^7: "):
        Fields({7: "*"}, "", ("name",))


def test_errors_stay_short_and_can_be_encoded() -> None:
    nested: list[object] = ["x" * 10**6] * 1000
    for value in ("x" * 10**6, 10**5000, nested, "\ud800", {"a": [[nested]]}):
        text = str(bad_input("field", value, "less"))
        assert len(text.encode()) < 1000

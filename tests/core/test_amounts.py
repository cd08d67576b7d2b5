from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebootd.core.amounts import MAX_AMOUNT, Amount, parse_amount
from rebootd.core.errors import InvalidInput

AMOUNTS = st.one_of(
    st.builds(Amount, st.integers(0, MAX_AMOUNT), st.just(value=False)),
    st.builds(Amount, st.integers(0, 100), st.just(value=True)),
)


@pytest.mark.parametrize(
    ("value", "amount"),
    [(2, Amount(2)), ("2", Amount(2)), ("25%", Amount(25, percent=True)), (" 25 % ", Amount(25, percent=True)),
     (0, Amount(0)), ("0%", Amount(0, percent=True)), ("100%", Amount(100, percent=True))],
)  # fmt: skip
def test_amounts(value: object, amount: Amount) -> None:
    assert parse_amount(value, "max") == amount


@pytest.mark.parametrize(
    "value",
    [
        "",
        "%",
        "-1",
        -1,
        "101%",
        "12.5%",
        1.0,
        True,
        None,
        "1e3",
        "all",
        MAX_AMOUNT + 1,
        10**400,
        "9" * 5000,
        [],
        "٣",
        "1%%",
    ],
)
def test_what_is_no_amount(value: object) -> None:
    with pytest.raises(InvalidInput, match=r"^limits\[0\]\.max: .*per cent from 0% to 100%"):
        parse_amount(value, "limits[0].max")


@given(AMOUNTS)
def test_amounts_survive_text(amount: Amount) -> None:
    assert parse_amount(str(amount), "max") == amount


@pytest.mark.parametrize(
    ("text", "total", "count"),
    [("2", 100, 2), ("2", 1, 2), ("25%", 12, 3), ("25%", 11, 2), ("10%", 5, 1), ("1%", 3, 1), ("0%", 1000, 0), ("0",
     9, 0),
     ("100%", 7, 7), ("33%", 100, 33)],
)  # fmt: skip
def test_how_many_that_is(text: str, total: int, count: int) -> None:
    assert parse_amount(text, "max").of(total) == count


@given(st.integers(0, 100), st.integers(1, 100_000))
def test_per_cents_round_down_but_to_at_least_one(percent: int, total: int) -> None:
    count = Amount(percent, percent=True).of(total)
    assert count <= total
    assert count == 0 if percent == 0 else count >= 1
    assert count <= 1 or count * 100 <= percent * total


@given(st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none(), st.text(alphabet="0123456789% ")))
def test_whatever_comes_only_invalid_input_is_raised(value: object) -> None:
    try:
        amount = parse_amount(value, "max")
    except InvalidInput:
        return
    assert 0 <= amount.value <= (100 if amount.percent else MAX_AMOUNT)

"""What the fuzz tests share: how many examples, how long one may take, and input that is nearly right."""

from __future__ import annotations

import functools
import os
import time
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "50"))
"""Of each test; test_deep.py runs all of them again with more."""
PATIENCE = 5.0
"""Seconds of this process's own time that one example may take: a hang, not a busy machine."""

fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)


def quickly(test: Callable[..., Any]) -> Callable[..., Any]:
    """Fails when one example takes longer than ``PATIENCE``."""

    @functools.wraps(test)
    def timed(*args: Any, **kwargs: Any) -> None:
        started = time.process_time()
        test(*args, **kwargs)
        assert time.process_time() - started < PATIENCE

    return timed


EVIL = [
    *(
        "[" * 5000,
        "{" * 500,
        '{"a":' * 5000,
        "\0",
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
        "\u202e",
    ),
    *(
        "9" * 5000,
        "1e999",
        "-0",
        "NaN",
        "Infinity",
        "1e-400",
        "null",
        "true",
        '""',
        "&a [*a]",
        "!!python/object:x",
        "<<: *a",
    ),
    *("../" * 50, "%00", "\r\n", "\x1b[2J", "*" * 60, "(a+)+$", "\u0000", "\uffff", "e\u0301", "\\ud800", "\\u0000"),
]


def nearly(*seeds: str) -> st.SearchStrategy[bytes]:
    """One of the seeds, with a few places cut, doubled, swapped or filled with what is no good."""

    @st.composite
    def made(draw: st.DrawFn) -> bytes:
        text = draw(st.sampled_from(seeds))
        for _ in range(draw(st.integers(1, 4))):
            at = draw(st.integers(0, len(text)))
            to = min(len(text), at + draw(st.integers(0, 12)))
            what = draw(st.sampled_from(["cut", "double", "fill", "evil"]))
            if what == "cut":
                text = text[:at] + text[to:]
            elif what == "double":
                text = text[:to] + text[at:]
            elif what == "fill":
                text = text[:at] + draw(st.text(max_size=8)) + text[to:]
            else:
                text = text[:at] + draw(st.sampled_from(EVIL)) + text[to:]
        data = text.encode("utf-8", "surrogatepass")
        if draw(st.booleans()):
            at = draw(st.integers(0, len(data)))
            data = data[:at] + draw(st.binary(max_size=3)) + data[at:]
        return data

    return made()

"""Whatever people write (selectors, policies, windows, times, settings), only InvalidInput comes out, and soon."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from rebootd.agent.settings import AgentSettings, inputs, load, validate
from rebootd.api.listen import parse_listen
from rebootd.consul.settings import ConsulSettings
from rebootd.core.amounts import parse_amount
from rebootd.core.errors import InvalidInput
from rebootd.core.inputs import (
    format_duration,
    format_share,
    parse_count,
    parse_duration,
    parse_name,
    parse_share,
    parse_text,
    parse_token,
)
from rebootd.core.model import Machine, State
from rebootd.core.operations_inputs import parse_moment
from rebootd.core.policy import DEFAULT_POLICY, parse_policy, render_policy
from rebootd.core.selectors import parse_selector
from rebootd.core.windows import CalendarWindow, active, check_window, next_opening
from tests.fuzz.fuzzing import EVIL, fuzz, nearly, quickly

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
SHIPPED = [block.partition("```")[0] for block in (ROOT / "docs" / "policy.md").read_text().split("```yaml\n")[1:]] + [
    render_policy(DEFAULT_POLICY)
]
LONG = Machine(
    name="a" * 128, rack="r", state=State.IN_SERVICE, since=0.0, boot_id="b", kernel="6" * 200, labels={"k": "a" * 5000}
)


def text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


@fuzz
@given(
    nearly("role=web", "rack in (r1, r2), !canary", "name!=web-*", "kernel notin (6.1*,5.?)", "label.a/b=c").map(text)
)
@example("name=" + "*a" * 100 + "b")
@example("k in (" + ",".join("*a" * 30 + str(n) for n in range(50)) + ")")
@example("k=" + "[!a-z]*" * 36)
@quickly
def test_selectors(written: str) -> None:
    try:
        selector = parse_selector(written)
    except InvalidInput as error:
        assert str(error).encode()  # noqa: PT017  not every input is refused
        return
    assert selector.matches(LONG) in {True, False}
    assert parse_selector(selector.text) == selector
    assert parse_selector(selector.text).keys() == selector.keys()


@fuzz
@given(nearly(*SHIPPED).map(text))
@example("limits:\n" + "- {name: a, selector: 'x=y', max: 1}\n" * 3000)
@example("windows:\n  calendar:\n" + "  - {name: a, start: '0 0 29 2 MON', duration: 1h}\n" * 200)
@example("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]")
@example("? " * 3000)
@quickly
def test_policies(written: str) -> None:
    try:
        policy = parse_policy(written)
    except InvalidInput as error:
        assert str(error).encode()  # noqa: PT017
        return
    assert parse_policy(render_policy(policy)) == policy


FIELD = st.one_of(
    st.sampled_from(["*", "0", "L", "?", "1-5", "*/7", "MON#1", "5L", "29", "31", "2", "FEB", "0-59", "1-31/30", "7"]),
    st.text("0123456789*/,-#LWMON", min_size=1, max_size=6),
)
CRON = st.tuples(FIELD, FIELD, FIELD, FIELD, FIELD).map(" ".join)
MOMENTS = st.one_of(
    st.floats(-1e9, 1e11, allow_nan=False), st.sampled_from([0.0, 951_782_400.0, 1_709_164_800.0, 32_503_680_000.0])
)
ZONES = st.sampled_from(
    ["UTC", "Europe/Berlin", "Australia/Lord_Howe", "America/Sao_Paulo", "Pacific/Apia", "Asia/Gaza"]
)


@fuzz
@given(
    CRON | nearly("0 2 * * MON-FRI", "*/30 1 * * *").map(text), ZONES | st.text(max_size=8), MOMENTS, st.integers(1, 31)
)
@example("0 0 29 2 MON", "Australia/Lord_Howe", 1_709_164_800.0, 1)
@example("59 23 31 12 SUN", "UTC", 1_709_164_800.0, 1)
@example("*/30 * * * *", "Europe/Berlin", 1_709_164_800.0, 31)
@quickly
def test_windows(start: str, zone: str, now: float, days: int) -> None:
    window = CalendarWindow("w", start, days * 86_400.0 / 24, zone)
    try:
        check_window(window, "w")
    except InvalidInput as error:
        assert str(error).encode()  # noqa: PT017
        return
    spell, following = active(window, now), next_opening(window, now)
    assert spell is None or spell[0] <= now < spell[1]
    assert following is None or following > now


PARSERS: dict[str, tuple[Callable[[object, str], object], Callable[[object], object] | None]] = {
    "duration": (parse_duration, lambda value: format_duration(float(str(value)))),
    "share": (parse_share, lambda value: format_share(float(str(value)))),
    "amount": (parse_amount, str),
    "name": (parse_name, str),
    "token": (parse_token, str),
    "text": (parse_text, str),
    "count": (parse_count, None),
    "moment": (lambda value, field: parse_moment(value, field, 1.7e9), None),
}
VALUES = st.one_of(
    nearly("1h30m", "90s", "250ms", "25%", "0.2", "2026-03-01T22:00:00+01:00", "now", "web-17").map(text),
    st.sampled_from(EVIL),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.lists(st.text(max_size=3), max_size=3),
)


@pytest.mark.parametrize("name", sorted(PARSERS))
@fuzz
@given(value=VALUES)
@quickly
def test_single_values(name: str, value: object) -> None:
    parse, render = PARSERS[name]
    try:
        read = parse(value, "field")
    except InvalidInput as error:
        assert str(error).encode("utf-8", "backslashreplace")  # noqa: PT017
        return
    if render is not None:
        assert parse(render(read), "field") == read


SETTINGS = yaml.safe_dump(
    {"name": "m", "hooks_dir": "/etc/rebootd", "wait_out": 5, "labels": {"role": "web"}, "detect": []}
)
KNOWN = sorted(AgentSettings.__struct_fields__)


@fuzz
@given(
    st.dictionaries(
        st.sampled_from(KNOWN) | st.text(max_size=6), VALUES | st.dictionaries(st.text(), st.text()), max_size=4
    )
)
@quickly
def test_settings_of_agents(values: dict[str, object]) -> None:
    try:
        validate(values)
    except InvalidInput as error:
        assert error.accepted  # noqa: PT017


@fuzz
@given(nearly("127.0.0.1:8473", "[::1]:0", "localhost", "0.0.0.0:1").map(text))
@quickly
def test_addresses(written: str) -> None:
    try:
        assert 0 <= parse_listen(written).port < 65_536
    except InvalidInput as error:
        assert error.field == "listen"  # noqa: PT017


@fuzz
@given(
    st.dictionaries(
        st.sampled_from(
            ["CONSUL_HTTP_ADDR", "CONSUL_HTTP_SSL", "CONSUL_HTTP_TOKEN", "CONSUL_HTTP_SSL_VERIFY", "CONSUL_CACERT"]
        ),
        nearly("127.0.0.1:8500", "https://consul:8501", "unix:///run/consul.sock", "true", "0").map(text),
    )
)
@quickly
def test_the_environment_of_consul(environ: dict[str, str]) -> None:
    try:
        ConsulSettings.from_env(environ)
    except InvalidInput as error:
        assert error.field  # noqa: PT017


@fuzz
@given(nearly("rack=r7", "labels={a: b}", "wait_out=5", "traffic_ports=[80]", "detect=[file]").map(text))
@example("rack=2026-99-99")
@example("rack=\udc80")
@example("labels=" + "[" * 3000)
@quickly
def test_settings_on_the_command_line(written: str) -> None:
    try:
        validate(inputs({}, {}, [written]))
    except InvalidInput as error:
        assert error.accepted  # noqa: PT017


@fuzz
@given(nearly("rack: r7\nlabels: {a: b}\n", "wait_out: 5\n", "2026-99-99"))
@example(b"rack: 2026-99-99")
@example(b"rack: \xff")
@example(b"labels: " + b"[" * 3000)
@quickly
def test_settings_in_files(tmp_path_factory: pytest.TempPathFactory, written: bytes) -> None:
    path = tmp_path_factory.mktemp("settings") / "agent.yaml"
    path.write_bytes(written)
    try:
        load(path, {}, {})
    except InvalidInput as error:
        assert error.accepted  # noqa: PT017

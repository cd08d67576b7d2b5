from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from yarl import URL

from rebootd.core.wire import PermitRequest, Report
from tests.api.fake_desk import FakeDesk, FakeOffice, fleet
from tests.api.server import Api, running

if TYPE_CHECKING:
    from collections.abc import Iterator

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from(["r1m1", "r2m1", "n1", "", "..", "a/b", "\x00"]) | st.text(max_size=12)
fields = st.sampled_from([*Report.__struct_fields__, *PermitRequest.__struct_fields__, "colour"])
good = st.fixed_dictionaries(
    {"name": names, "machine_id": st.text(), "boot_id": st.text(), "nonce": st.text(max_size=9)}
)
bodies = st.builds(lambda a, b: {**b, **a}, good, st.dictionaries(fields, values, max_size=4))
nearly = bodies.map(lambda b: {**b, "wait": 0})


class Loop:
    """One server for all examples: hypothesis calls plain functions."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.context = running(FakeOffice(FakeDesk(fleet())))
        self.api: Api = self.runner.run(self.context.__aenter__())

    def post(self, path: str, body: bytes) -> tuple[int, Any]:
        async def ask() -> tuple[int, Any]:
            url = URL(f"{self.api.url}{path}", encoded=True)
            async with self.api.client.post(url, data=body, allow_redirects=False) as response:
                return response.status, msgspec.json.decode(await response.read())

        return self.runner.run(ask())

    def close(self) -> None:
        self.runner.run(self.context.__aexit__(None, None, None))
        self.runner.close()


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(what=st.sampled_from(["report", "permit"]), body=nearly | bodies.map(lambda b: {**b, "wait": -1}))
def test_no_report_or_permit_is_our_mistake(loop: Loop, what: str, body: dict[str, Any]) -> None:
    path = f"/v1/machines/{quote(body['name'], safe='') or 'x'}/{what}"
    status, answer = loop.post(path, msgspec.json.encode(body))
    assert status in {200, 400, 404, 409}, answer
    if status != 200:
        assert answer["error"]


@quick
@given(what=st.sampled_from(["report", "permit"]), body=st.binary(max_size=200), name=st.text(max_size=20))
def test_no_bytes_are_our_mistake(loop: Loop, what: str, body: bytes, name: str) -> None:
    status, answer = loop.post(f"/v1/machines/{quote(name, safe='', errors='replace')}/{what}", body)
    assert status in {400, 404}
    assert answer["error"]


@quick
@given(
    route=st.sampled_from(
        [
            "cycles",
            "windows",
            "machines/r1m1/forget",
            "cycles/k/pause",
            "racks/r1/unlock",
            "quarantine/r1m1/clear",
            "policy/diff",
        ]
    ),
    body=st.dictionaries(
        st.sampled_from(
            ["id", "selector", "target", "failure_budget", "by", "reason", "force", "duration", "start", "allow_empty"]
        ),
        values,
        max_size=5,
    )
    | values,
)
def test_no_request_of_an_operator_is_our_mistake(loop: Loop, route: str, body: object) -> None:
    status, answer = loop.post(f"/v1/{route}", msgspec.json.encode(body))
    assert status in {200, 400, 404, 409}, answer

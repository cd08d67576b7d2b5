"""The request id: taken from the caller if it is one, else made; given back, logged, and put into the events."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.api.server import Api


async def put_halt(api: Api, **headers: str) -> str:
    async with api.client.put(f"{api.url}/v1/halt", headers=headers) as answer:
        assert answer.status == 200
        return answer.headers["X-Request-Id"]


async def test_an_id_that_comes_with_a_change_goes_into_answer_event_and_audit(api: Api) -> None:
    given = "ticket-4711:step.2"
    assert await put_halt(api, **{"X-Request-Id": given}) == given
    assert api.desk.events[-1].request == given
    asked = api.desk.asked[-1]
    assert asked is not None
    assert asked.request == given


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "-a", "a\tb", "é", 'a"b', "{}"])
async def test_what_is_no_id_is_replaced(api: Api, given: str) -> None:
    made = await put_halt(api, **{"X-Request-Id": given})
    assert re.fullmatch(r"[0-9a-f]{32}", made)
    assert api.desk.events[-1].request == made


async def test_every_change_has_one_of_its_own_and_refusals_too(api: Api) -> None:
    first, second = await put_halt(api), await put_halt(api)
    assert first != second
    async with api.client.delete(f"{api.url}/v1/holds/rack/none") as answer:
        assert answer.status == 404
        assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["X-Request-Id"])


async def test_who_only_looks_gets_back_what_he_sent(api: Api) -> None:
    async with api.client.get(f"{api.url}/v1/status", headers={"X-Request-Id": "look-1"}) as answer:
        assert answer.headers["X-Request-Id"] == "look-1"
    async with api.client.get(f"{api.url}/v1/status") as answer:
        assert "X-Request-Id" not in answer.headers


async def test_a_change_is_one_line_in_the_log(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    made = await put_halt(api)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "change" in line and made in line]
    for word in ("method=PUT", "path=/v1/halt", "status=200", "address=127.0.0.1"):
        assert word in line

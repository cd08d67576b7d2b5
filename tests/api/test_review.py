from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.api.fake_desk import report_of
from tests.core.worlds import machine

if TYPE_CHECKING:
    from tests.api.server import Api


@pytest.mark.parametrize("field", ["boot_id", "machine_id"])
@pytest.mark.parametrize("value", ["", "x" * 60_000, "a b"])
async def test_ids_that_a_record_would_keep_are_short_and_plain(api: Api, field: str, value: str) -> None:
    status, problem = await api.bad("POST", "/v1/machines/r1m1/report", report_of(machine("r1m1"), **{field: value}))
    assert (status, problem["field"]) == (400, field)


async def test_an_origin_that_is_no_address_is_refused(api: Api) -> None:
    status, _ = await api.ask("PUT", "/v1/halt", {}, Origin="http://[")
    assert status == 401

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.api.server import Api


async def lines(api: Api, query: str) -> list[dict[str, Any]]:
    async with api.client.get(f"{api.url}/v1/events{query}") as response:
        assert response.status == 200
        assert response.content_type == "application/x-ndjson"
        return [msgspec.json.decode(line) for line in (await response.read()).splitlines()]


async def some(api: Api) -> None:
    await api.good("PUT", "/v1/holds/machine/r1m1")
    await api.good("PUT", "/v1/holds/machine/r1m2")
    await api.good("POST", "/v1/cycles", {"id": "k1", "selector": "role=web"})
    await api.desk.tick()


async def test_recent_events_are_filtered_and_limited(api: Api) -> None:
    assert await lines(api, "") == []
    await some(api)
    every = await lines(api, "")
    assert [e["seq"] for e in every] == list(range(1, len(every) + 1))
    assert len(every) >= 4
    assert await lines(api, "?limit=2") == every[-2:]
    assert await lines(api, "?limit=0") == []
    assert await lines(api, "?after=3") == every[3:]
    assert [e["machine"] for e in await lines(api, "?machine=r1m2&limit=1")] == ["r1m2"]
    assert {e["cycle"] for e in await lines(api, "?cycle=k1")} == {"k1"}


@pytest.mark.parametrize("query", ["limit=x", "limit=-1", "limit=99999", "follow=2", "after=-1", "since=1"])
async def test_bad_queries(api: Api, query: str) -> None:
    status, problem = await api.bad("GET", f"/v1/events?{query}")
    assert (status, problem["field"]) == (400, query.partition("=")[0])


async def test_following_shows_history_once_and_then_what_happens(api: Api) -> None:
    await some(api)
    known = len(api.desk.events)

    async def take(stream: AsyncIterator[bytes], count: int) -> list[int]:
        return [msgspec.json.decode(await anext(stream))["seq"] for _ in range(count)]

    async with asyncio.timeout(10), api.client.get(f"{api.url}/v1/events?follow=1&limit=2") as response:
        stream = aiter(response.content)
        assert await take(stream, 2) == [known - 1, known]
        await api.good("PUT", "/v1/halt")
        await api.good("DELETE", "/v1/halt")
        assert await take(stream, 2) == [known + 1, known + 2]
        await api.desk.end()
        assert await response.content.read() == b""


async def test_a_silent_stream_beats_and_a_follower_that_leaves_is_forgotten(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rebootd.api.stream.BEAT", 0.05)
    before = len(asyncio.all_tasks())
    async with asyncio.timeout(10), api.client.get(f"{api.url}/v1/events?follow=1&machine=r1m1") as response:
        await api.good("PUT", "/v1/holds/machine/r2m2")
        assert await response.content.readline() == b"\n"
        await api.good("PUT", "/v1/holds/machine/r1m1")
        while (line := await response.content.readline()) == b"\n":
            pass
        assert msgspec.json.decode(line)["machine"] == "r1m1"
        response.close()
    async with asyncio.timeout(5):
        while len(asyncio.all_tasks()) > before + 1:
            await asyncio.sleep(0.02)

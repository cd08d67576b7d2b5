"""Machines that are none, machines that ask too often, and answers that are asked for twice: against a real daemon."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError

import aiohttp
import pytest

from tests.support.service import MACHINES, TOKEN, Service, service

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADERS = {"Authorization": f"Bearer {TOKEN}"}
STRANGERS = 3000
GROWTH = 8_000_000
"""Bytes: 2.7 kB for each of them would be as much; a report that is kept takes some 3 kB."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(tmp_path_factory.mktemp("served")) as running:
        for name in MACHINES:
            running.join(name)
        yield running


def report(name: str, **facts: object) -> dict[str, object]:
    return {"name": name, "machine_id": f"id-{name}", "boot_id": f"boot-{name}", **facts}


async def test_machines_that_consul_does_not_know_leave_nothing_behind(served: Service) -> None:
    async def stranger(client: aiohttp.ClientSession, number: int) -> int:
        name = f"stranger-{number}"
        labels = {f"label-{n}": "x" * 50 for n in range(20)}
        async with client.post(
            f"{served.url}/v1/machines/{name}/report", json=report(name, labels=labels), headers=HEADERS
        ) as answer:
            return answer.status

    async with aiohttp.ClientSession() as client:
        first = [await stranger(client, number) for number in range(300)]
        before = served.memory
        rest: list[int] = []
        for start in range(300, STRANGERS, 100):
            rest += await asyncio.gather(*(stranger(client, number) for number in range(start, start + 100)))
    assert {*first, *rest} == {409}
    assert served.memory - before < GROWTH
    assert served.ask("GET", "/v1/machines")["known"] == len(MACHINES)
    assert "stranger" not in served.log.read_text()


async def test_a_machine_waits_once_however_often_it_asks(served: Service) -> None:
    index = served.report("r3m2", in_service=True)["index"]
    asked = report("r3m2", boot_check={"status": "passed"}, in_service=True, index=index, wait=30)
    url = f"{served.url}/v1/machines/r3m2/report"

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:

        async def wait() -> int:
            async with client.post(url, json=asked, headers=HEADERS) as answer:
                return answer.status

        waits = {asyncio.create_task(wait()) for _ in range(100)}
        async with asyncio.timeout(10):
            while len(waits) > 1:
                done, waits = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                assert {task.result() for task in done} == {200}
        (last,) = waits
        last.cancel()


def drained(served: Service, name: str) -> None:
    """A cycle takes the machine out, until it would ask for its permit."""
    served.ask("POST", "/v1/cycles", {"id": f"c-{name}", "selector": f"name={name}"})
    facts: dict[str, object] = {}
    answer: dict[str, Any] = {"state": "", "index": 0}
    while answer["state"] != "drained":
        answer = served.report(name, index=answer["index"], wait=1, **facts)
        directive = answer["directive"]
        if directive is not None and directive["kind"] == "drain":
            facts["result"] = {"id": directive["id"], "kind": "drain", "ok": True, "epoch": directive["epoch"]}


def test_a_permit_that_is_asked_for_twice_is_one_and_for_one_boot(served: Service) -> None:
    drained(served, "r1m1")
    asked = {**report("r1m1"), "nonce": "nonce-1"}

    def permit(**facts: object) -> dict[str, Any]:
        answer: dict[str, Any] = served.ask("POST", "/v1/machines/r1m1/permit", {**asked, **facts})
        return answer

    first = permit()
    assert first["granted"]
    again = permit()
    assert again["granted"]
    assert again["valid_for"] <= first["valid_for"]
    assert not permit(nonce="nonce-2")["granted"]
    assert not permit(boot_id="another")["granted"]
    assert not permit(machine_id="another")["granted"]
    with pytest.raises(HTTPError) as refused:
        served.ask("POST", "/v1/machines/r1m2/permit", asked)
    assert refused.value.code == 400
    # It has rebooted: whoever kept the request has nothing.
    served.report("r1m1", boot_id="boot-after")
    assert not permit()["granted"]
    assert not permit(boot_id="boot-after")["granted"]

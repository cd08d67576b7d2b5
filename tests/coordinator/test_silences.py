"""Silences in a real Alertmanager: one per machine while it is out by our hand, over leaders, and never in the way."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from rebootd.coordinator import silences as room
from rebootd.coordinator.gates.tools import Tools
from rebootd.coordinator.silences import Alertmanager
from rebootd.core import silences
from rebootd.core.operations_inputs import Because
from rebootd.core.operations_policy import apply_policy
from rebootd.core.policy import parse_policy
from rebootd.core.silences import LASTS, Ask, Seen
from tests.coordinator.lab import Host, Lab, eventually, start
from tests.support.cluster import free_ports
from tests.support.programs import alertmanager, ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from rebootd.coordinator.leader import Leader

WHY = Because(by="test")


@pytest.fixture(scope="module")
def alerts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with alertmanager(tmp_path_factory.mktemp("alertmanager")) as url:
        yield url


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "LOOK_EVERY", 0.3)


@asynccontextmanager
async def leading(lab: Lab, url: str) -> AsyncIterator[Leader]:
    api = Alertmanager(Tools(None))
    try:
        async with lab.leader(alerts=api) as leader:
            text = f"settle: 0\nsilences: {{alertmanager: '{url}'}}\n"
            await leader.apply(partial(apply_policy, text=text, because=WHY))
            yield leader
    finally:
        await api.close()


def standing(url: str) -> dict[str, dict[str, Any]]:
    """Silences that have not ended, by machine."""
    rows = [s for s in ask(f"{url}/api/v2/silences") if s["status"]["state"] != "expired"]
    found = {s["createdBy"].rpartition(" ")[2]: s for s in rows}
    assert len(found) == len(rows), rows
    return found


async def test_a_machine_is_silenced_before_its_drain_until_it_is_back(alerts: str) -> None:
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    async with leading(lab, alerts) as leader:
        await host.join(leader)
        assert standing(alerts) == {}
        await start(leader)
        answer = await host.report(leader, wait=5.0)
        while answer.directive is None:
            answer = await host.report(leader, wait=5.0)
        # The agent hears of the drain only now.
        silence = standing(alerts)["a1"]
        assert silence["matchers"] == [{"name": "instance", "value": "a1(:[0-9]+)?", "isRegex": True, "isEqual": True}]
        ends = datetime.fromisoformat(silence["endsAt"]).timestamp()
        assert time.time() < ends <= time.time() + LASTS
        host.done(answer)
        await host.until(leader, "drained")
        assert (await host.ask(leader)).granted
        assert "a1" in standing(alerts)
        host.reboot()
        await host.join(leader)
        await eventually(lambda: standing(alerts) == {})


async def test_the_next_leader_ends_what_a_dead_one_left_and_leaves_peoples_alone(alerts: str) -> None:
    body = {
        "matchers": [{"name": "instance", "value": "b1", "isRegex": False}],
        "startsAt": "2020-01-01T00:00:00Z",
        "endsAt": "2099-01-01T00:00:00Z",
        "createdBy": "ann",
        "comment": "mine",
    }
    theirs = ask(f"{alerts}/api/v2/silences", body)["silenceID"]
    lab, host = Lab({"r1": ["b1"]}), Host("b1")
    async with leading(lab, alerts) as leader:
        await host.join(leader)
        await start(leader)
        await host.until(leader, "drained")
        assert {"b1", "ann"} == set(standing(alerts))
    # It died here; the machine comes back under a leader that made no silence itself.
    async with leading(lab, alerts) as leader:
        assert (await host.ask(leader)).granted
        host.reboot()
        await host.join(leader)
        await eventually(lambda: set(standing(alerts)) == {"ann"})
    assert ask(f"{alerts}/api/v2/silence/{theirs}")["status"]["state"] == "active"


async def test_a_silence_is_extended_while_the_machine_stays_out(alerts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silences, "LASTS", 1.5)
    lab, host = Lab({"r1": ["c1"]}), Host("c1")
    async with leading(lab, alerts) as leader:
        await host.join(leader)
        await start(leader)
        await host.until(leader, "drained")
        first = standing(alerts)["c1"]
        for _ in range(12):
            await asyncio.sleep(0.25)
            assert "c1" in standing(alerts)
        assert standing(alerts)["c1"]["id"] == first["id"]
    # Nobody leads: it ends by itself.
    await eventually(lambda: "c1" not in standing(alerts))


class Other:
    """An Alertmanager with one silence, which another leader made."""

    def __init__(self) -> None:
        self.looks = 0
        self.asked: list[Ask] = []

    async def silences(self, address: str, owner: str) -> list[Seen]:
        self.looks += 1
        return [] if self.asked else [Seen("s1", "e1", (), time.time() + LASTS)]

    async def ask(self, address: str, owner: str, what: Ask) -> None:
        self.asked.append(what)


async def test_a_leader_that_was_frozen_ends_no_silence_of_the_next_one() -> None:
    lab, other = Lab({"r1": ["e1"]}), Other()
    async with lab.leader(alerts=other) as leader:
        leadership = leader._rooms._leadership
        leadership._deadline = -1.0  # as after a long sleep: what it knows is old
        text = "settle: 0\nsilences: {alertmanager: 'http://127.0.0.1:1'}\n"
        leader.fleet.policy = parse_policy(text)
        await eventually(lambda: other.looks > 2)
        assert other.asked == []
        leadership._deadline = 1e9
        await eventually(lambda: [a.id for a in other.asked] == ["s1"])


async def test_a_dead_alertmanager_slows_no_cycle() -> None:
    (port,) = free_ports(1)

    async def cycle(url: str) -> float:
        lab, hosts = Lab({"r1": ["d1"], "r2": ["d2"], "r3": ["d3"]}), [Host(f"d{n}") for n in (1, 2, 3)]
        async with leading(lab, url) as leader:
            for host in hosts:
                await host.join(leader)
            living = [asyncio.create_task(host.live(leader)) for host in hosts]
            began = time.monotonic()
            await start(leader, f"k{began}")
            await eventually(lambda: leader.snapshot().cycles[f"k{began}"].state.value == "done", 20)
            took = time.monotonic() - began
            for task in living:
                task.cancel()
            await asyncio.gather(*living, return_exceptions=True)
        return took

    without = await cycle("")
    refusing = await cycle(f"http://127.0.0.1:{port}")

    # One that accepts and never answers is worse than one that refuses.
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    hanging = await cycle(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    server.close()
    assert refusing < without + 1
    # The first of the three waited, and the others did not.
    assert hanging < without + 1.9 * room.PATIENCE

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import pytest

from rebootd.coordinator import forecasts, history
from rebootd.core.durations import Durations
from rebootd.core.model import Cycle, CycleState
from rebootd.store.port import Set
from tests.coordinator.lab import Host, Lab, eventually, start

if TYPE_CHECKING:
    from rebootd.coordinator.leader import Leader


@pytest.fixture(autouse=True)
def _brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecasts, "LOOK", 0.05)
    monkeypatch.setattr(history, "EVERY_SAMPLES", 5)


async def one_reboot(lab: Lab, leader: Leader, host: Host) -> None:
    await host.join(leader)
    await start(leader)
    living = asyncio.create_task(host.live(leader))
    await eventually(lambda: leader.fleet.cycles["k1"].state is CycleState.DONE)
    living.cancel()


async def test_durations_are_learnt_written_and_read_by_the_next_leader() -> None:
    lab, host = Lab({"r1": ["m1"]}), Host("m1")
    async with lab.leader() as leader:
        await one_reboot(lab, leader, host)
        await eventually(lambda: "rebootd/durations" in lab.consul.entries)
    written = msgspec.json.decode(lab.value("durations"), type=Durations)
    assert written.samples >= 5
    assert set(written.phases) == {"drain", "prepare", "reboot", "verify", "enable"}
    assert written.write_id
    async with lab.leader() as leader:
        assert leader.fleet.durations == written
        assert leader.snapshot().durations == written


async def test_a_record_of_durations_that_cannot_be_read_is_an_alarm_and_no_more() -> None:
    lab, host = Lab({"r1": ["m1"]}), Host("m1")
    await lab.store.commit([Set("rebootd/durations", b"not JSON", cas=0)])
    async with lab.leader() as leader:
        assert any("durations" in said for said in leader.snapshot().alarms)
        await one_reboot(lab, leader, host)
        await eventually(lambda: "durations" not in leader.fleet.alarms)
    assert msgspec.json.decode(lab.value("durations"), type=Durations).samples >= 5


async def test_an_estimate_is_written_into_the_cycle_and_kept_for_those_who_look() -> None:
    lab, host = Lab({"r1": ["m1"]}), Host("m1")
    async with lab.leader() as leader:
        await host.join(leader)
        await start(leader)
        await eventually(lambda: leader.fleet.cycles["k1"].estimated > 0)
        cycle = msgspec.json.decode(lab.value("cycles/k1"), type=Cycle)
        assert cycle.created < cycle.estimated_at < cycle.estimated
        estimate = leader.estimate("k1")
        assert estimate is not None
        assert (estimate.to_go, estimate.never, estimate.last) == (1, 0, cycle.estimated)
        found = await leader.forecast("k1")
        assert [p.machine for p in found.planned] == ["m1"]
        supposed = Cycle(id="k9", selector="*", created=leader.snapshot().now)
        assert (await leader.forecast(extra=supposed)).cycle == "k9"
        assert "k9" not in leader.fleet.cycles


async def test_a_mistake_in_a_forecast_does_not_cost_the_leadership(monkeypatch: pytest.MonkeyPatch) -> None:
    lab, host = Lab({"r1": ["m1"]}), Host("m1")

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(forecasts, "forecast", broken)
    async with lab.leader() as leader:
        await one_reboot(lab, leader, host)
        assert leader.fleet.cycles["k1"].estimated == 0

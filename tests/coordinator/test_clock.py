"""The leader's clock: what jumps, what was stamped by a clock that was wrong, and what follows from neither."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from rebootd.coordinator import clock
from rebootd.core.decision import Change
from rebootd.core.errors import NotLeader, Refused
from rebootd.core.model import State
from rebootd.core.operations import open_window
from rebootd.core.operations_inputs import Because
from rebootd.store.port import Set
from tests.coordinator.lab import Host, Lab, eventually, record, start

if TYPE_CHECKING:
    from rebootd.coordinator.leader import Leader

YEAR = 365 * 86400.0
JUMPS = (-YEAR, -3700.0, 300.0, 3700.0, YEAR)


class Wall:
    """The wall clock of the leader's host."""

    def __init__(self, off: float = 0.0) -> None:
        self.off = off

    def __call__(self) -> float:
        return time.time() + self.off


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "EVERY", 0.02)


async def ticks(leader: Leader, n: int = 5) -> None:
    """Decisions that began after now; with nothing to decide, a leader waits to be called."""
    for _ in range(n):
        before = leader.decision()
        leader._dirty.set()
        await eventually(lambda before=before: leader.decision() is not before)  # type: ignore[misc]


def stamp(lab: Lab, name: str, **facts: Any) -> None:
    """The record as another leader would have written it."""
    said = json.loads(lab.value(f"machines/{name}")) | facts
    lab.consul.apply([Set(f"rebootd/machines/{name}", json.dumps(said).encode())])


@pytest.mark.parametrize("by", JUMPS)
async def test_a_jump_of_the_leaders_clock_fires_no_deadline(by: float) -> None:
    lab, hosts, wall = Lab({"r1": ["a1", "a2"]}), [Host("a1"), Host("a2")], Wall()
    async with lab.leader(wall=wall) as leader:
        for host in hosts:
            await host.join(leader)
        await start(leader)
        await hosts[0].until(leader, "drained")
        before = leader.snapshot().now
        wall.off = by
        await ticks(leader)
        assert record(leader, "a1").state is State.DRAINED
        assert 0 <= leader.snapshot().now - before < 60
        assert "unseen" not in {b.kind for b in leader.decision().reasons["a2"]}
        assert any("clock" in alarm for alarm in leader.snapshot().alarms)


@pytest.mark.parametrize("by", JUMPS)
async def test_a_new_leader_whose_clock_is_off_gives_everybody_time(by: float) -> None:
    lab, hosts = Lab({"r1": ["a1", "a2"]}), [Host("a1"), Host("a2")]
    async with lab.leader() as leader:
        for host in hosts:
            await host.join(leader)
        await start(leader)
        await hosts[0].until(leader, "drained")
    async with lab.leader(wall=Wall(by)) as leader:
        await ticks(leader)
        assert record(leader, "a1").state is State.DRAINED
        await hosts[0].report(leader)
        await ticks(leader)
        assert record(leader, "a1").state in {State.DRAINED, State.ENABLING}, "brought back at the most: windows closed"
        with_clock = {b.kind for reasons in leader.decision().reasons.values() for b in reasons}
        assert with_clock & {"clock", "agent"}


async def test_a_leader_whose_clock_is_put_right_leads_anew() -> None:
    lab, host, wall = Lab({"r1": ["a1"]}), Host("a1"), Wall(-7200.0)
    async with lab.leader(wall=wall) as leader:
        await host.join(leader)
        await ticks(leader)
        assert leader.snapshot().clock_skew < -7000
        wall.off = 0.0
        with pytest.raises(NotLeader):
            await until_it_ends(leader)


async def until_it_ends(leader: Leader) -> None:
    async with asyncio.timeout(10):
        while True:
            await leader.apply(lambda _: Change())
            await asyncio.sleep(0.01)


AHEAD = {
    "since": time.time() + YEAR,
    "ended": time.time() + YEAR,
    "required_since": time.time() + YEAR,
    "unplanned_at": [time.time() + YEAR],
}


async def test_stamps_from_the_future_count_as_now_and_are_put_right() -> None:
    lab, hosts = Lab({"r1": ["a1", "a2"]}), [Host("a1"), Host("a2")]
    async with lab.leader() as leader:
        for host in hosts:
            await host.join(leader)
    stamp(lab, "a1", **AHEAD)
    async with lab.leader() as leader:
        now = leader.snapshot().now
        m = record(leader, "a1")
        assert max(m.since, m.ended, m.required_since, *m.unplanned_at) <= now
        for host in hosts:
            await host.join(leader)
        await eventually(lambda: json.loads(lab.value("machines/a1"))["ended"] <= now + 60)
        assert len(lab.consul.entries) < 50


async def test_a_leader_whose_own_clock_is_wrong_rewrites_no_stamps() -> None:
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    async with lab.leader() as leader:
        await host.join(leader)
    index = lab.consul.entries["rebootd/machines/a1"].modify_index
    async with lab.leader(wall=Wall(-YEAR)) as leader:
        assert record(leader, "a1").since <= leader.snapshot().now
        await host.join(leader)
        await ticks(leader)
        assert lab.consul.entries["rebootd/machines/a1"].modify_index == index


SMALL = {
    "cycles/k0": {"id": "k0", "selector": "*", "created": YEAR * 100, "changed": YEAR * 100},
    "holds/machine/a1": {"kind": "machine", "name": "a1", "since": YEAR * 100},
    "holds/rack/r1": {"kind": "rack", "name": "r1", "since": YEAR * 100},
    "control/halt": {"reason": "x", "since": YEAR * 100},
    "racks/r1/record": {"rack": "r1", "since": YEAR * 100},
    "power/a1": {"machine": "a1", "boot_id": "x", "address": "", "since": YEAR * 100, "changed": YEAR * 100},
}


@pytest.mark.parametrize("key", SMALL)
async def test_no_record_is_from_the_future(key: str) -> None:
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    lab.consul.apply([Set(f"rebootd/{key}", json.dumps(SMALL[key]).encode())])
    async with lab.leader() as leader:
        await host.report(leader)
        await ticks(leader)
        s = leader.snapshot()
        stamps = [h.since for h in s.machine_holds.values()] + [h.since for h in s.rack_holds.values()]
        stamps += [r.since for r in leader.fleet.rack_records.values()]
        stamps += [t for p in s.power.values() for t in (p.since, p.changed)] + ([s.halt.since] if s.halt else [])
        stamps += [t for c in s.cycles.values() for t in (c.created, c.changed)]
        assert stamps
        assert max(stamps) <= s.now


async def test_no_window_is_opened_from_now_on_by_a_clock_that_is_off() -> None:
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    because = Because(by="test", reason="a test")
    async with lab.leader(wall=Wall(YEAR)) as leader:
        await host.join(leader)
        await ticks(leader)
        with pytest.raises(Refused, match="clock"):
            await leader.apply(lambda s: open_window(s, window_id="", start=None, length="2h", because=because))

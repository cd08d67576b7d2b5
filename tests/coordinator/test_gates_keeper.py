"""When gates are read, what a leader does meanwhile, and what it tells."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from msgspec.structs import replace
from prometheus_client import CollectorRegistry, generate_latest

from rebootd.api import views, views_gates
from rebootd.coordinator.fleet import Fleet
from rebootd.coordinator.gates import health
from rebootd.coordinator.gates.health import FAULT
from rebootd.coordinator.gates.keeper import GateKeeper
from rebootd.coordinator.metrics import FleetCollector
from rebootd.coordinator.records import Keys
from rebootd.core.errors import Unreachable
from rebootd.core.gates import Reading, Samples, Servers
from rebootd.core.operations_inputs import Because
from rebootd.core.operations_policy import apply_policy
from rebootd.core.policy import parse_policy
from rebootd.core.policy_gates import ConsulQuorum, Gate
from rebootd.core.selectors import parse_selector
from rebootd.store.port import Node
from tests.coordinator.lab import Host, Lab, eventually, record, start
from tests.core.worlds import machine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    import pytest

    from rebootd.coordinator.leader import Leader
    from rebootd.core.gates import Value

POLICY = """
settle: 0s
gates: [{name: load, kind: prometheus, address: 'http://127.0.0.1:9', query: load, holds_when: < 5, max_age: 60s}]
"""


class Scripted:
    """Eyes that see what a test says, after ``slow`` seconds; None cannot be seen."""

    def __init__(self, value: float | None = 1.0) -> None:
        self.value = value
        self.slow = 0.0
        self.read_at: list[float] = []
        self.blind = self.hangs = False
        self.failed: dict[str, str] = {}
        self.news = asyncio.Event()

    async def read(self, gate: Gate, _addresses: Mapping[str, str]) -> Value:
        self.read_at.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.slow)
        if self.value is None:
            raise Unreachable("nobody there")
        return Samples((("", self.value),))

    async def failing(self, index: int, wait: float) -> tuple[dict[str, str], int]:
        if self.blind:
            raise Unreachable("no Consul")
        if self.hangs:
            await asyncio.sleep(3600)
        if index:
            try:
                async with asyncio.timeout(wait):
                    await self.news.wait()
            except TimeoutError:
                pass
        self.news.clear()
        if self.blind:
            raise Unreachable("no Consul")
        return dict(self.failed), index + 1

    async def close(self) -> None:
        pass


@asynccontextmanager
async def leading(sight: Scripted | None, policy: str = POLICY) -> AsyncIterator[tuple[Leader, Host, Host]]:
    lab, hosts = Lab({"r1": ["m1", "m2"]}), (Host("m1"), Host("m2"))
    async with lab.leader(sight=sight) as leader:
        await asyncio.gather(*(h.join(leader) for h in hosts))
        await leader.apply(lambda s: apply_policy(s, policy, Because("test", "a test")))
        yield leader, *hosts


def why(leader: Leader, name: str) -> str:
    return "; ".join(b.what for b in leader.decision().reasons.get(name, ()))


async def test_gates_are_read_only_while_somebody_waits() -> None:
    sight = Scripted()
    async with leading(sight) as (leader, m1, _):
        await asyncio.sleep(0.3)
        assert sight.read_at == []
        assert views_gates.gates(leader.snapshot(), leader.decision()).gates[0].verdict == "idle"
        await start(leader, selector="name=m1")
        await m1.until(leader, "drained")
        # Once because somebody waits, and again after each of the two transitions.
        await eventually(lambda: len(sight.read_at) >= 2)
        assert len(sight.read_at) <= 4
        assert (await m1.ask(leader)).granted
        m1.reboot()
        before = len(sight.read_at)
        await m1.join(leader)
        await asyncio.sleep(0.3)
        assert len(sight.read_at) <= before + 1


async def test_a_permit_waits_for_the_reading_after_the_drain() -> None:
    sight = Scripted()
    async with leading(sight) as (leader, m1, _):
        await start(leader, selector="name=m1")
        sight.slow = 0.5
        await m1.until(leader, "drained")
        began = asyncio.get_running_loop().time()
        assert (await m1.ask(leader)).granted
        reading = leader.fleet.readings["load"]
        assert asyncio.get_running_loop().time() - began > 0.1
        permit = record(leader, "m1").permit
        assert permit is not None
        drained = next(e for e in leader.recent(50) if e.to == "drained")
        assert reading.at > drained.time


async def test_a_gate_notes_when_a_transition_of_a_machine_that_it_covers_landed() -> None:
    fleet, now = Fleet(Keys("rebootd/")), 77.0
    fleet.policy = parse_policy(POLICY.replace("query: load", "query: load, covers: role=web"))
    keeper = GateKeeper(fleet, None, asyncio.Event(), wall=lambda: now, note=lambda _: None)
    web = machine("m1", since=10.0, labels={"role": "web"})
    keeper.changed(web, replace(web, kernel="6.12.9"))
    keeper.changed(machine("m2"), machine("m2", since=20.0))
    assert fleet.gate_changed == {}
    servers = Gate(name="servers", test=ConsulQuorum(), covers=parse_selector("role=web"))
    fleet.policy = replace(fleet.policy, gates=(servers,))
    fleet.readings["servers"] = Reading(gate=servers, at=0.0, value=Servers(members={"m2": ""}, tolerance=0))
    keeper.changed(machine("m3"), machine("m3", since=20.0))
    assert fleet.gate_changed == {}
    keeper.changed(machine("m2"), machine("m2", since=20.0))
    assert fleet.gate_changed.pop("servers") == 77.0
    fleet.policy = parse_policy(POLICY.replace("query: load", "query: load, covers: role=web"))
    # It was decided at 20 and lands at 77: a reading begun at 50 is from before it.
    keeper.changed(web, replace(web, since=20.0))
    assert fleet.gate_changed == {"load": 77.0}


async def test_many_transitions_make_few_readings() -> None:
    sight = Scripted(9.0)
    async with leading(sight) as (leader, m1, _):
        await start(leader)
        await eventually(lambda: len(sight.read_at) == 1)
        for _ in range(20):
            m1.reboot()
            await m1.join(leader)
        gaps = [b - a for a, b in zip(sight.read_at, sight.read_at[1:], strict=False)]
        assert all(gap > 0.19 for gap in gaps)


async def test_what_cannot_be_read_is_tried_again_and_a_hanging_one_times_out() -> None:
    sight = Scripted(None)
    async with leading(sight, POLICY.replace("60s", "1s")) as (leader, m1, _):
        await start(leader, selector="name=m1")
        await eventually(lambda: "nobody there" in why(leader, "m1"))
        sight.value, sight.slow = 1.0, 60.0
        await eventually(lambda: "no answer within 1 s" in why(leader, "m1"))
        sight.slow = 0.0
        await m1.until(leader, "drained")


async def test_a_daemon_without_eyes_lets_nobody_past_a_gate() -> None:
    async with leading(None) as (leader, _, __):
        await start(leader)
        await eventually(lambda: "cannot look at gates" in why(leader, "m1"))


async def test_a_changed_gate_is_another_gate() -> None:
    sight = Scripted(7.0)
    async with leading(sight, POLICY.replace("< 5", "< 9")) as (leader, m1, _):
        await start(leader, selector="name=m1")
        await m1.until(leader, "drained")
        sight.slow = 0.5
        await leader.apply(lambda s: apply_policy(s, POLICY, Because("test", "stricter")))
        # The old reading says nothing of the new comparison: no permit on it.
        assert not (await m1.ask(leader)).granted
        await eventually(lambda: record(leader, "m1").state == "enabling")
        assert "not < 5" in record(leader, "m1").cause


async def test_a_gate_that_blocks_too_long_raises_an_event_an_alarm_and_a_metric() -> None:
    sight = Scripted(9.0)
    async with leading(sight, POLICY.replace("max_age: 60s", "max_age: 1s, max_block: 1s")) as (leader, m1, _):
        await start(leader, selector="name=m1")
        await eventually(lambda: any(e.kind == "gate" for e in leader.recent(50)))
        (event,) = [e for e in leader.recent(50) if e.kind == "gate"]
        assert (event.cause, "load" in event.detail) == ("gate overdue", True)
        snapshot, decision = leader.snapshot(), leader.decision()
        assert [a.kind for a in views.alarms(snapshot)] == ["gate"]
        (row,) = views_gates.gates(snapshot, decision).gates
        assert (row.verdict, row.overdue) == ("block", True)
        assert row.since is not None
        registry = CollectorRegistry()
        registry.register(FleetCollector(lambda: (snapshot, decision, 0)))
        text = generate_latest(registry).decode()
        assert 'rebootd_gate_overdue{gate="load"} 1.0' in text
        assert 'rebootd_gate{gate="load",verdict="block"} 1.0' in text
        # It never opened by itself; once it passes, all of that is over.
        assert record(leader, "m1").state == "in-service"
        sight.value = 1.0
        await m1.until(leader, "drained")
        assert views.alarms(leader.snapshot()) == ()


# ---------------------------------------------------------------------------------------------------- capacity


async def test_while_node_checks_cannot_be_watched_nobody_goes() -> None:
    sight = Scripted()
    sight.blind = True
    async with leading(sight, "settle: 0s") as (leader, m1, _):
        await start(leader, selector="name=m1")
        await eventually(lambda: "node checks cannot be watched" in why(leader, "m1"))
        sight.blind = False
        await m1.until(leader, "drained")
        assert FAULT not in leader.fleet.faults


async def test_a_failed_machine_is_known_since_it_failed() -> None:
    sight = Scripted()
    async with leading(sight) as (leader, _, __):
        sight.failed = {"m1": "serfHealth is critical"}
        sight.news.set()
        await eventually(lambda: "m1" in leader.fleet.failing)
        first = leader.fleet.failing_since["m1"]
        sight.failed = {"m1": "in maintenance", "m2": "serfHealth is critical"}
        sight.news.set()
        await eventually(lambda: len(leader.fleet.failing) == 2)
        assert leader.fleet.failing_since["m1"] == first
        assert leader.fleet.failing_since["m2"] > first


async def test_a_watch_that_hangs_is_no_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The query hangs in a server that stands still: what was known before is unknown after a while (S6)."""
    monkeypatch.setattr(health, "WAIT", 0.2)
    monkeypatch.setattr(health, "LATE", 0.2)
    sight, lab = Scripted(), Lab({"r1": ["m1", "m2", "m3"]})
    hosts = [Host(f"m{n}") for n in (1, 2, 3)]
    async with lab.leader(sight=sight) as leader:
        await asyncio.gather(*(host.join(leader) for host in hosts))
        await eventually(lambda: FAULT not in leader.fleet.faults)
        sight.hangs = True
        await eventually(lambda: "no answer within" in leader.fleet.faults.get(FAULT, ""))
        # Meanwhile it failed and was removed: no check tells of it any more.
        lab.consul.remove_node("m1")
        sight.hangs = False
        await eventually(lambda: FAULT not in leader.fleet.faults)
        assert "m1" in leader.fleet.gone


async def test_who_has_failed_counts_so_until_the_catalog_still_has_it() -> None:
    """A check that is critical no longer may be gone with its node."""
    sight, lab = Scripted(), Lab({"r1": ["m1", "m2", "m3"]})
    hosts = [Host(f"m{n}") for n in (1, 2, 3)]
    async with lab.leader(sight=sight) as leader:
        await asyncio.gather(*(host.join(leader) for host in hosts))
        sight.failed = {"m1": "serfHealth is critical"}
        sight.news.set()
        await eventually(lambda: "m1" in leader.fleet.failing)
        lab.consul.remove_node("m1")
        sight.failed = {}
        sight.news.set()
        await eventually(lambda: "m1" not in leader.fleet.failing)
        assert "m1" in leader.fleet.gone


async def test_who_leaves_the_catalog_is_known_at_once() -> None:
    lab, hosts = Lab({"r1": ["m1", "m2", "m3"]}), [Host(f"m{n}") for n in (1, 2, 3)]
    async with lab.leader() as leader:
        await asyncio.gather(*(host.join(leader) for host in hosts))
        lab.consul.remove_node("m1")
        await eventually(lambda: "m1" in leader.fleet.gone)
        lab.consul.register_node("m1", {"rack": "r1"})
        await eventually(lambda: "m1" not in leader.fleet.gone)


def nodes(*names: str) -> list[Node]:
    return [Node(name=n, address=f"10.0.0.{i}", meta={"rack": "r1"}) for i, n in enumerate(names)]


def test_a_machine_is_gone_since_the_catalog_lacked_it_first() -> None:
    fleet = Fleet(Keys())
    fleet.machines = {n: machine(n) for n in ("m1", "m2", "m3")}
    fleet.catalog_read(nodes("m1", "m2"), 100.0)
    fleet.catalog_read(nodes("m1", "m2"), 200.0)
    assert fleet.gone == {"m3": 100.0}
    assert fleet.addresses == {"10.0.0.0": "m1", "10.0.0.1": "m2"}
    fleet.catalog_read(nodes("m1", "m2", "m3"), 300.0)
    assert fleet.gone == {}
    # A catalog that lacks most of the fleet is one that cannot be trusted.
    fleet.catalog_read(nodes("m3"), 400.0)
    assert fleet.gone == {}
    assert any("lacks 2 of 3" in fault for fault in fleet.faults.values())
    fleet.catalog_read(nodes("m1", "m2", "m3"), 500.0)
    assert not any("catalog" in fault for fault in fleet.faults.values())


async def test_a_machine_that_left_the_catalog_for_good_is_forgotten_and_does_not_come_back_by_itself() -> None:
    policy = "settle: 0s\nforget_after: 1m\nunreachable_after: 200ms"
    async with leading(None, policy) as (leader, m1, m2):
        keep = asyncio.create_task(m2.live(leader))
        leader.fleet.gone = {"m1": leader.snapshot().now - 61}
        await eventually(lambda: "m1" not in leader.fleet.machines)
        (event,) = [e for e in leader.recent(50) if e.kind == "forgotten"]
        assert (event.machine, event.rack) == ("m1", "r1")
        await asyncio.sleep(0.2)
        assert "m1" not in leader.fleet.machines
        # If it was there after all, it just joins again.
        await m1.join(leader)
        assert record(leader, "m1").state == "in-service"
        keep.cancel()
        await asyncio.gather(keep, return_exceptions=True)

from __future__ import annotations

import asyncio

import msgspec

from rebootd.core.model import CycleState, Machine, State
from rebootd.store.memory import LOST_REPLY
from tests.coordinator.lab import Host, Lab, eventually, record, start

RACKS = {"r1": ["a1", "a2"], "r2": ["b1", "b2"]}


async def run_cycle(lab: Lab, hosts: list[Host]) -> list[str]:
    """A whole cycle; returns the racks in the order in which their machines were drained."""
    async with lab.leader() as leader:
        await asyncio.gather(*(h.join(leader) for h in hosts))
        await start(leader)
        tasks = [asyncio.create_task(h.live(leader)) for h in hosts]
        await eventually(lambda: leader.fleet.cycles["k1"].state is CycleState.DONE)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return [e.rack for e in leader.recent(1000) if e.to == "draining"]


async def test_a_cycle_reboots_each_machine_once_rack_by_rack() -> None:
    lab, hosts = Lab(RACKS), [Host(n) for names in RACKS.values() for n in names]
    assert await run_cycle(lab, hosts) == ["r1", "r1", "r2", "r2"]
    assert [h.boot for h in hosts] == [1, 1, 1, 1]
    for host in hosts:
        kept = msgspec.json.decode(lab.value(f"machines/{host.name}"), type=Machine)
        assert (kept.state, kept.cycle, kept.outcomes) == (State.IN_SERVICE, "", {"k1": "rebooted"})
    assert not [e for k, e in lab.consul.entries.items() if k.endswith("/.lock") and e.session]


async def test_lost_answers_change_nothing() -> None:
    lab, hosts = Lab(RACKS), [Host(n) for names in RACKS.values() for n in names]
    count = 0

    def every_third(_ops: object) -> object:
        nonlocal count
        count += 1
        return LOST_REPLY if count % 3 == 0 else None

    lab.store.faults.choose = every_third  # type: ignore[assignment]  # a test's own function
    await run_cycle(lab, hosts)
    assert [h.boot for h in hosts] == [1, 1, 1, 1]


async def test_a_new_leader_carries_on_in_every_state() -> None:
    """Leaders change as often as they can; the same machine is never rebooted twice."""
    lab, hosts = Lab({"r1": ["a1", "a2"]}), [Host("a1"), Host("a2")]
    async with lab.leader() as leader:
        await asyncio.gather(*(h.join(leader) for h in hosts))
        await start(leader)
    lab.store.faults.delay = 0.02
    epochs = []
    for _ in range(40):
        async with lab.leader() as leader:
            epochs.append(leader.epoch)
            if leader.fleet.cycles["k1"].state is CycleState.DONE:
                break
            tasks = [asyncio.create_task(h.live(leader)) for h in hosts]
            before = len([e for e in leader.recent(1000) if e.kind == "transition"])
            try:
                await eventually(
                    lambda n=before, lead=leader: (  # type: ignore[misc]  # bound now, on purpose
                        len([e for e in lead.recent(1000) if e.kind == "transition"]) > n
                        or lead.fleet.cycles["k1"].state is CycleState.DONE
                    )
                )
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
    assert [h.boot for h in hosts] == [1, 1]
    assert epochs == sorted(set(epochs))
    assert len(epochs) > 5


async def test_a_leader_reads_what_happened_before_it() -> None:
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    async with lab.leader() as leader:
        await host.join(leader)
        told = [(e.frm, e.to) for e in leader.recent(100)]
    async with lab.leader() as leader:
        assert [(e.frm, e.to) for e in leader.recent(100)] == told
        assert record(leader, "a1").state is State.IN_SERVICE


async def test_idle_machines_cause_no_write() -> None:
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    async with lab.leader() as leader:
        await host.join(leader)
        await asyncio.sleep(0.1)
        before = lab.consul.index
        for _ in range(20):
            await host.report(leader, wait=0.01)
        assert lab.consul.index == before


async def test_a_waiting_machine_is_woken_by_its_directive() -> None:
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    async with lab.leader() as leader:
        await host.join(leader)
        waiting = asyncio.create_task(host.report(leader, wait=60.0))
        await eventually(lambda: leader.waiting == 1)
        await start(leader)
        answer = await asyncio.wait_for(waiting, 2.0)
        assert answer.directive is not None
        assert answer.directive.kind == "drain"
        assert answer.directive.boot_id == host.boot_id
        assert answer.directive.epoch == leader.epoch


async def test_a_power_loss_brings_everybody_back_together() -> None:
    racks = {f"r{r}": [f"m{r}-{i}" for i in range(10)] for r in range(5)}
    lab = Lab(racks)
    hosts = [Host(n) for names in racks.values() for n in names]
    async with lab.leader() as leader:
        await asyncio.gather(*(h.join(leader) for h in hosts))
        for host in hosts:
            host.reboot()
        await asyncio.gather(*(h.join(leader) for h in hosts))
        assert {m.state for m in leader.fleet.machines.values()} == {State.IN_SERVICE}
        assert {m.unplanned for m in leader.fleet.machines.values()} == {1}
        assert not leader.fleet.lock_holders

"""When a machine that says nothing more counts as unreachable: `unreachable_after` from its last report, no later."""

from __future__ import annotations

import asyncio

from rebootd.core.limits import available, unheard
from rebootd.store.port import Set
from tests.coordinator.lab import Host, Lab, eventually, record

AFTER = 1.0


async def test_a_host_that_lost_power_while_its_request_waited_is_unreachable_in_time() -> None:
    lab, host, other = Lab({"r1": ["a1"], "r2": ["a2"]}), Host("a1"), Host("a2")
    lab.consul.apply([Set("rebootd/policy", b"unreachable_after: 1s")])
    async with lab.leader() as leader:
        for one in (host, other):
            await one.join(leader)
        # No FIN comes from a host without power: its request stays open here, and runs to its end.
        waiting = asyncio.create_task(host.report(leader, wait=0.8))
        await asyncio.sleep(0.05)
        last = leader.fleet.observed["a1"].at
        await waiting
        await eventually(lambda: unheard(leader.snapshot(), "a1"), 3 * AFTER)
        now = leader.snapshot().now
        assert AFTER <= now - last <= AFTER + 0.3
        assert leader.fleet.observed["a1"].at == last
        assert not available(leader.snapshot(), record(leader, "a1"))


async def test_a_host_that_goes_on_calling_stays_reachable() -> None:
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    lab.consul.apply([Set("rebootd/policy", b"unreachable_after: 1s")])
    async with lab.leader() as leader:
        await host.join(leader)
        async with asyncio.timeout(10):
            for _ in range(4):
                await host.report(leader, wait=0.45)
                assert not unheard(leader.snapshot(), "a1")

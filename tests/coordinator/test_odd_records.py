"""Whatever stands at our keys in the store, somebody leads, and machines come back."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from rebootd.store.port import Set
from tests.coordinator.lab import Host, Lab, start

if TYPE_CHECKING:
    from collections.abc import Mapping

NO_TEXT = b'{"id": "\xff\xfe"}'
DEEP = b'{"zzz":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
KEYS = [
    "machines/a2",
    "cycles/k0",
    "holds/machine/a2",
    "holds/rack/r2",
    "windows/w1",
    "racks/r2/record",
    "power/a2",
    "durations",
    "events/000",
    "policy",
    "control/halt",
    "epoch",
]


@pytest.mark.parametrize("value", [NO_TEXT, DEEP], ids=["no-text", "deep"])
@pytest.mark.parametrize("key", KEYS)
async def test_no_value_at_any_key_keeps_a_leader_from_leading(key: str, value: bytes) -> None:
    lab, host = Lab({"r1": ["a1"], "r2": ["a2"]}), Host("a1")
    lab.consul.apply([Set(f"rebootd/{key}", value)])
    async with lab.leader() as leader, asyncio.timeout(10):
        await host.join(leader)
        lab.consul.apply([Set(f"rebootd/{key}", value + b" ")])
        host.reboot()
        await host.join(leader)


ODD = {
    "cycles/k0": b'{"id":"k0","selector":"!!","created":1}',
    "cycles/k1": b'{"id":"k1","selector":"*","target":"(","created":1}',
    "cycles/k2": b'{"id":"another","selector":"*","created":1,"state":"running"}',
    "cycles/k3": b'{"id":"k3","selector":"*","created":1e300,"state":"running"}',
    "windows/w1": b'{"id":"another","start":1,"end":2}',
    "windows/w2": b'{"id":"w2","start":1,"end":1e300}',
    "windows/w3": b'{"id":"w3","start":1e250,"end":1e300}',
    "power/a1": b'{"machine":"b","boot_id":"x","address":"","since":1,"changed":1e300}',
    "racks/r2/record": b'{"rack":"another","session":"x"}',
    "control/halt": b'{"reason":"x","since":1e300}',
    "epoch": b"7",
}


@pytest.mark.parametrize("key", ODD)
async def test_odd_records_keep_nobody_from_leading(key: str) -> None:
    lab, hosts = Lab({"r1": ["a1"], "r2": ["a2"]}), [Host("a1"), Host("a2")]
    lab.consul.apply([Set("rebootd/policy", b"windows: {required: true}\nwaves: [{name: all, rest: true}]")])
    async with lab.leader() as leader, asyncio.timeout(10):
        await asyncio.gather(*(h.join(leader) for h in hosts))
        await start(leader, "mine")
        lab.consul.apply([Set(f"rebootd/{key}", ODD[key])])
        await asyncio.sleep(0.3)
        for host in hosts:
            host.reboot()
            await host.join(leader)
    async with lab.leader() as leader, asyncio.timeout(10):
        for host in hosts:
            host.reboot()
            await host.join(leader)


FIELDS: tuple[Mapping[str, object], ...] = (
    {"since": 1e300},
    {"ended": 1e300},
    {"required_since": 1e300},
    {"turned_back": 3, "turned_back_at": 1e300},
    {"retry": {"what": "checks", "cycle": "", "attempts": 1, "at": 1e300}},
    {"retry": {"what": "drain", "cycle": "mine", "attempts": 1, "at": 1e300}},
    {"unplanned_at": [1e300]},
    {"rack": "no such rack"},
    {"rack": ""},
    {"version": -5},
    {"outcomes": {"mine": "??"}},
    {"cycle": "gone"},
)


@pytest.mark.parametrize("state", ["in-service", "drained", "rebooting", "verifying", "quarantined", "held"])
async def test_odd_values_in_machines_records_keep_nobody_from_leading(state: str) -> None:
    odd = [Host(f"b{n}") for n in range(len(FIELDS))]
    lab, good = Lab({"r1": ["a1"], "r2": [h.name for h in odd]}), Host("a1")
    lab.consul.apply([Set("rebootd/policy", b"racks: {unavailable: 99, open: 9}")])
    async with lab.leader() as leader, asyncio.timeout(10):
        await asyncio.gather(*(h.join(leader) for h in (good, *odd)))
        await start(leader, "mine")
    for host, facts in zip(odd, FIELDS, strict=True):
        said = json.loads(lab.value(f"machines/{host.name}")) | {"state": state} | facts
        lab.consul.apply([Set(f"rebootd/machines/{host.name}", json.dumps(said).encode())])
    async with lab.leader() as leader, asyncio.timeout(10):
        for _ in range(3):
            await asyncio.gather(*(h.report(leader) for h in odd))
        good.reboot()
        await good.join(leader)

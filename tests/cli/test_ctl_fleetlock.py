"""What rebootctl tells of a machine that has a FleetLock client in the place of an agent."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from rebootd.core.fleetlock import REASON, machine_id, voices
from rebootd.core.model import Cycle, FleetLock
from rebootd.core.policy import parse_policy
from rebootd.core.wire import Tri

if TYPE_CHECKING:
    from tests.api.server import Api
    from tests.cli.ctl_runner import Ctl


@pytest.mark.parametrize("asks", [False, True])
async def test_machine_and_explain(asks: bool, api: Api, ctl: Ctl) -> None:
    now = time.time()
    state = api.desk.state
    client = FleetLock("c988d2509fdf4cdcbed39037c56406fb", now - 60 if asks else 0.0, now - 60)
    policy = parse_policy("fleetlock: {enabled: true}\nlimits: [{name: all, selector: '*', max: 0}]")
    theirs = replace(
        state.machines["r1m1"],
        machine_id=machine_id("r1m1"),
        fleetlock=client,
        labels={"fleetlock": "g"},
        kernel="",
        reboot_required=Tri.YES if asks else Tri.NO,
        reboot_reasons=(REASON,) if asks else (),
        required_since=now - 60,
    )
    machines = {**state.machines, "r1m1": theirs}
    heard = dict(voices(machines, {}, {"r1m1": {"rack": "r1"}}, {}, policy, now))
    waits = Cycle(id="k1", selector="name=r1m1", created=now - 30, waves=False)
    observed = {**state.observed, **heard}
    api.desk.state = replace(state, machines=machines, observed=observed, cycles={"k1": waits}, policy=policy)
    shown = " ".join((await ctl.good("machine", "r1m1")).split())
    assert f"client {client.id} in the place of an agent" in shown
    assert ("asked for a reboot" in shown, "wants no reboot" in shown) == (asks, not asks)
    told = " ".join((await ctl.good("explain", "r1m1")).split())
    assert "last report: 6" in told
    assert ("the machine's FleetLock client" in told) is not asks
    assert "limit all" in told

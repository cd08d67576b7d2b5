"""The network of the box is cut at each stage of a reboot: of one host, of the leader's host, of a whole rack."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.e2e.box import faults
from tests.e2e.box.story import POLICY, cycle, figure, lossless, returned, wait_state
from tests.support.cluster import wait_for

if TYPE_CHECKING:
    from tests.e2e.box.desk import Desk

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.environ.get("BOX") != "1", reason="takes many minutes: make datacenter runs it"),
]
VICTIM = "w4"
OTHER = "w5"
"""It has no daemon, and is in another rack."""
CUT = 10.0


@pytest.mark.parametrize("stage", ["draining", "rebooting", "verifying"])
@pytest.mark.parametrize("whose", ["host", "leader", "rack"])
def test_a_network_is_cut(desk: Desk, whose: str, stage: str) -> None:
    """``rebooting`` is between the permit and the reboot, which then comes 3 s after the permit."""
    box, name = desk.box, f"cut-{whose}-{stage}"
    with ExitStack() as stack:
        if stage == "rebooting":
            stack.enter_context(faults.slow_to_reboot(box, VICTIM, 3))
        if stage == "verifying":
            stack.enter_context(faults.slow_checks(box, [VICTIM], 4))
        desk.in_service(30)
        with cycle(desk, name, f"name in ({VICTIM}, {OTHER})"):
            wait_state(desk, VICTIM, stage)
            leader = str(desk.status().daemon["node"])
            rack = [host.name for host in box.plan.rack(box.plan.host(VICTIM).rack)]
            hosts = {"host": [VICTIM], "leader": [leader], "rack": rack}[whose]
            epoch, wall = desk.status().epoch, time.time()
            with faults.cut_off(box, hosts):
                cut = time.monotonic()
                time.sleep(CUT)
                if leader in hosts:
                    desk.until(lambda: desk.status().epoch > epoch, "another leader", 30)
                    assert str(desk.status().daemon["node"]) not in hosts
                went = [e.machine for e in desk.events() if e.to == "draining" and e.time > wall + 1]
                assert OTHER not in went or VICTIM not in hosts, "another rack was opened beside one that is cut off"
                held = time.monotonic() - cut
            healed = time.monotonic()
            returned(desk, VICTIM, 0.0)
            desk.in_service(60)
            back = time.monotonic() - healed
        leading = f"leader {leader} cut off too" if leader in hosts else "the leader went on"
        figure(
            name, f"{', '.join(hosts)} cut off for {held:.1f} s, {leading}; all in service {back:.1f} s after the heal"
        )


def test_a_host_is_cut_off_between_permit_and_reboot_under_load(desk: Desk) -> None:
    # Without a network Consul and Nomad take their time to stop: the reboot alone may need 25 s.
    desk.ask_policy(POLICY.replace("rebooting: 25s", "rebooting: 90s"))
    slow = faults.slow_to_reboot(desk.box, "w6", 2)
    with slow, desk.load(200) as found, cycle(desk, "cut-off", "role=web"):
        wait_state(desk, "w6", "rebooting", 200)
        boots = len(desk.box.boot_ids("w6"))
        with faults.cut_off(desk.box, ["w6"]):
            at = time.monotonic()
            wait_for(lambda: len(desk.box.boot_ids("w6")) > boots, "w6 to reboot although cut off", 60)
            figure("cut off after the permit", f"rebooted {time.monotonic() - at:.1f} s after the cut")
            time.sleep(10)
            assert desk.box.plan.host("w6").address not in desk.pool()
        healed = time.monotonic()
        wait_state(desk, "w6", "in-service", 60)
        figure("healed", f"in service {time.monotonic() - healed:.1f} s after the heal")
    lossless("a host cut off after its permit", found[0])

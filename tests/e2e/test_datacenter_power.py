"""Power in the box: hosts that hang or never return, out-of-band power cycles, a dark rack, all hosts at once."""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from rebootd.cli.ctl_client import Trouble
from tests.e2e.box import faults, redfish, truth
from tests.e2e.box.story import POLICY, figure, out, wait_state

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.box.desk import Desk

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(os.environ.get("BOX") != "1", reason="takes many minutes: make datacenter runs it"),
]
POWER = f"{POLICY}unreachable_after: 20s\nfailures: {{power: {redfish.RULE}}}\n"


def test_a_host_that_never_returns_is_quarantined(desk: Desk) -> None:
    desk.box.order("habit", "w5", returns=False)
    desk.rebootctl("cycle", "start", "lost-host", "--selector", "name in (w4, w5, w6)", "--failure-budget", "1")
    wait_state(desk, "w5", "quarantined", 240)
    desk.done("lost-host", 240)
    assert desk.box.plan.host("w5").address not in desk.pool()
    assert [s for h, s in desk.states().items() if h != "w5"] == ["in-service"] * 8
    desk.box.order("habit", "w5", returns=True)
    desk.box.on("w5")
    desk.until(lambda: "clear" in desk.rebootctl("explain", "w5"), "explain to say what clears it", 30)
    desk.until(lambda: _cleared(desk, "w5"), "its clearance", 30)
    desk.in_service(60)
    desk.balanced(30)


def test_a_shutdown_that_hangs_beyond_its_deadline(desk: Desk) -> None:
    """Without out-of-band power: quarantined at the deadline, and so it stays when the host comes back late."""
    faults.hang_at_shutdown(desk.box, "w4", 35)
    start, boots = time.time(), len(desk.box.boot_ids("w4"))
    desk.rebootctl("cycle", "start", "hangs", "--selector", "name in (w4, w5)", "--failure-budget", "1")
    wait_state(desk, "w4", "quarantined", 90)
    desk.done("hangs", 120)
    desk.until(lambda: len(desk.box.boot_ids("w4")) > boots, "the hanging shutdown to end", 60)
    desk.until(
        lambda: any(e.machine == "w4" and e.boot_id == desk.box.boot_ids("w4")[-1] for e in desk.events()), "it", 60
    )
    assert desk.states()["w4"] == "quarantined"
    assert desk.box.plan.host("w4").address not in desk.pool()
    assert truth.breaches(desk.box.plan, desk.box.notes(), desk.events(), start) == []
    assert _cleared(desk, "w4")
    desk.in_service(60)


@pytest.fixture
def power(desk: Desk) -> Iterator[Desk]:
    """With a Redfish controller that really has power over the hosts, and agents that call each 8 s."""
    box = desk.box
    with redfish.controller(box), faults.told(box, [host.name for host in box.plan.machines], wait_idle=8):
        desk.in_service(60)
        desk.ask_policy(POWER)
        yield desk


@pytest.mark.parametrize("how", ["never-returns", "hangs"])
def test_a_host_is_power_cycled_through_redfish(power: Desk, how: str) -> None:
    desk, box = power, power.box
    start = time.time()
    if how == "hangs":
        faults.hang_at_shutdown(box, "w5", 300)
    else:
        box.order("habit", "w5", returns=False)
    desk.rebootctl("cycle", "start", f"redfish-{how}", "--selector", "name in (w4, w5)")
    wait_state(desk, "w5", "rebooting", 60)
    permitted = time.time()
    desk.until(lambda: redfish.resets(box), "the controller to be asked", 120)
    cut = time.time()
    box.order("habit", "w5", returns=True)
    wait_state(desk, "w5", "in-service", 60)
    back = time.time()
    figure(
        f"redfish, {how}",
        f"reset {cut - permitted:.1f} s after the permit (deadline 25 s), in service {back - cut:.1f} s later",
    )
    shown = desk.done(f"redfish-{how}", 60)
    assert (shown.counts.rebooted, shown.counts.failed) == (2, 0)
    causes = [e.cause for e in desk.events() if e.machine == "w5" and e.to == "verifying" and e.time > start]
    assert causes == ["planned boot"]
    sent = [e for e in desk.events() if e.machine == "w5" and e.time > start and "power" in e.kind]
    assert sent, "the power cycle is told of"
    # One reset, and only of the host that was overdue; one that is off already is only switched on.
    assert redfish.resets(box) == 1
    cuts = Counter(note.host for note in box.notes() if note.what == "cut" and note.at > start)
    assert cuts == ({"w5": 1} if how == "hangs" else {})


def _cleared(desk: Desk, host: str) -> bool:
    desk.ask("POST", f"/v1/quarantine/{host}/clear", by="test", reason="power is back")
    return True


def test_a_rack_loses_power_in_a_cycle(desk: Desk) -> None:
    start = time.time()
    desk.rebootctl("cycle", "start", "rack-dark", "--selector", "*", "--failure-budget", "1")
    desk.until(lambda: out(desk), "the first machine to go", 60)
    working = next(h.rack for h in desk.box.plan.machines if h.name in out(desk))
    dark = [h.name for h in desk.box.plan.rack("r3" if working != "r3" else "r2")]
    faults.lose_power(desk.box, dark)
    time.sleep(10)
    # S5: a halt keeps machines in, and delays nobody who comes back.
    desk.rebootctl("halt", "--reason", "a rack is dark")
    desk.box.on(*dark)
    at = time.time()

    def enabled() -> list[float]:
        return [e.time for e in desk.events() if e.machine in dark and e.to == "in-service" and e.time > at]

    desk.until(lambda: len(enabled()) >= len(dark), "the rack to be back", 120)
    figure(
        "a rack without power for 10 s", f"in service {max(enabled()) - at:.1f} s after power returned, under a halt"
    )
    desk.ask("DELETE", "/v1/halt", by="test", reason="power is back")
    desk.done("rack-dark", 300)
    desk.in_service(60)
    assert truth.breaches(desk.box.plan, desk.box.notes(), desk.events(), start) == []
    # A boot after the start of the cycle is what the cycle is for, whoever caused it: nobody boots a second time.
    booted = Counter(down.host for down in truth.downs(desk.box.plan, desk.box.notes(), start))
    assert booted == {host.name: 1 for host in desk.box.plan.machines}


@pytest.mark.parametrize("maintained", [False, True], ids=["as they are", "all in maintenance"])
def test_all_hosts_lose_power_at_once(desk: Desk, maintained: bool) -> None:
    """Nobody helps, and nothing that is needed may depend on a machine that is enabled. S4: people's marks stay."""
    start, box = time.time(), desk.box
    if maintained:
        for host in box.plan.machines:
            box.run(host.name, "/opt/bin/consul", "maint", "-enable", "-reason", "people")
    faults.lose_power(box, [host.name for host in box.plan.hosts])
    with pytest.raises(Trouble):
        desk.status()
    took = faults.cold_start(desk, 240, traffic=not maintained)
    figure("cold start" + (", every node in maintenance" if maintained else ""), took)
    events = [e for e in desk.events() if e.time > start and e.kind == "transition"]
    received = {e.machine for e in events if e.cause == "unplanned boot"}
    assert received == {host.name for host in box.plan.machines}
    assert not [e for e in events if e.to == "quarantined"]
    if not maintained:
        return
    for host in box.plan.machines:
        # A stateless Consul client forgets its own maintenance at each boot; nobody else may end it.
        kept = "people" in box.run(host.name, "curl", "-sf", "http://127.0.0.1:8500/v1/agent/checks")
        assert kept is not host.stateless, host.name
        box.run(host.name, "/opt/bin/consul", "maint", "-disable")
    desk.balanced(60)

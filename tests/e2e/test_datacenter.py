"""The data center in a box: 10 hosts, three racks, and what people and nature do to it. Run by ``make datacenter``.

Each test leaves every machine in service, and each prints what it measured. ``KEEP=1`` leaves the box up.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rebootd.cli.ctl_client import Trouble
from tests.e2e.box import __main__ as box_cli
from tests.e2e.box import cgroups, faults, rootfs, truth
from tests.e2e.box.control import Box
from tests.e2e.box.desk import Desk
from tests.e2e.box.plan import full
from tests.support.cluster import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.box.load import Tally

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.environ.get("BOX") != "1", reason="takes many minutes: make datacenter runs it"),
]
POLICY = """
gates:
  - name: consul-servers
    kind: consul-quorum
    max_age: 8s
deadlines: {rebooting: 25s}
settle: 5s
failure_budget: 1
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    reason = rootfs.missing()
    if reason:
        pytest.skip(reason)
    keep = os.environ.get("KEEP") == "1"
    folder = Path(box_cli.FOLDER) if keep else tmp_path_factory.mktemp("datacenter") / "box"
    one_file = os.environ.get("BOX_ONE_FILE")
    box = Box.build(folder, full(), Path(one_file) if one_file else None)
    box.start(stay=keep)
    try:
        desk = Desk(box)
        figure("from empty hosts", faults.cold_start(desk, 240))
        desk.ask_policy(POLICY)
        yield desk
        desk.close()
    finally:
        if not keep:
            box.stop()
    if keep:
        print("\nthe box stays up: python -m tests.e2e.box status | enter HOST | ctl status | down")
    else:
        assert not cgroups.processes(box.setup.box)


def figure(what: str, *values: object) -> None:
    print(f"\nfigure: {what}:", *values)


@contextmanager
def cycle(desk: Desk, name: str, selector: str = "*", patience: float = 300) -> Iterator[float]:
    """A cycle that the body disturbs; then it must end, with every machine rebooted once and no promise broken."""
    start, clock = time.time(), time.monotonic()
    desk.rebootctl("cycle", "start", name, "--selector", selector, "--failure-budget", "1")
    yield start
    shown = desk.done(name, patience)
    took = time.monotonic() - clock
    desk.in_service(120)
    figure(f"cycle {name}", f"{took:.1f} s", shown.counts)
    notes = desk.box.notes()
    wanted = {host.name for host in desk.box.plan.machines if selector == "*" or host.web}
    counted = truth.reboots(desk.box.plan, notes, start)
    assert {name: count for name, count in counted.items() if count} == dict.fromkeys(wanted, 1)
    assert truth.breaches(desk.box.plan, notes, desk.events(), start) == []


def lossless(desk: Desk, what: str, tally: Tally) -> None:
    figure(f"load, {what}", tally)
    assert tally.sent >= 190 * tally.seconds
    assert not tally.lost, str(tally)


def out(desk: Desk) -> list[str]:
    return [name for name, state in desk.states().items() if state not in {"in-service", "quarantined", "held"}]


def test_a_cycle_reboots_every_host_and_loses_no_request(desk: Desk) -> None:
    before = desk.hidden()
    with desk.load(200) as found, cycle(desk, "plain"):
        pass
    lossless(desk, "plain cycle", found[0])
    assert desk.hidden() == before
    leaders = {e.epoch for e in desk.events() if e.cycle == "plain"}
    assert len(leaders) > 1, "the leader's own host was rebooted, so leadership must have moved"


@pytest.mark.parametrize("control", ["no-drain", "no-wait", "power-cut"])
def test_what_must_lose_requests_does(desk: Desk, control: str) -> None:
    """Without these, a rig that hides what is lost would look like one that loses nothing."""
    start = time.time()
    with desk.load(200) as found:
        time.sleep(1)
        if control == "no-wait":
            with faults.without_wait(desk.box), cycle(desk, control, "role=web"):
                pass
        for host in () if control == "no-wait" else ("w4", "w5", "w6"):
            if control == "no-drain":
                faults.reboot_unannounced(desk.box, host)
            else:
                desk.box.cut(host, again=True)
            returned(desk, host, start)
    (tally,) = found
    figure(f"negative control {control}", tally)
    assert tally.lost


def test_a_reboot_by_hand_is_orderly_and_a_crashed_host_serves_only_when_enabled(desk: Desk) -> None:
    start = time.time()
    with desk.load(200) as found:
        time.sleep(1)
        desk.box.run("w1", "systemctl", "reboot")
        returned(desk, "w1", start)
    lossless(desk, "a reboot by hand", found[0])
    assert desk.box.exits(start)["w1"] == [133]

    with desk.load(200) as found:
        time.sleep(1)
        crashed = time.time()
        desk.box.cut("w2", again=True)
        returned(desk, "w2", crashed)
        time.sleep(1)
    enabling = next(e.time for e in desk.events() if e.machine == "w2" and e.to == "enabling" and e.time > crashed)
    served = found[0].by_host["w2"]
    again = min(t for t in served if t > enabling)
    figure("crash", f"enabled after {enabling - crashed:.1f} s, served again after {again - crashed:.1f} s")
    assert not [t for t in served if crashed + 0.5 < t < enabling], "a host served before it was enabled"


def returned(desk: Desk, host: str, since: float, timeout: float = 60) -> None:
    """Until a host that went down after ``since`` was received, enabled, and gets requests again."""

    def back() -> bool:
        enabled = [e for e in desk.events() if e.machine == host and e.to == "in-service" and e.time > since]
        return bool(enabled) and desk.states()[host] == "in-service"

    desk.until(back, f"{host} to be back", timeout)
    desk.balanced(30)


def test_kills_in_a_cycle(desk: Desk) -> None:
    with desk.load(200) as found, cycle(desk, "kills"):
        desk.until(lambda: out(desk), "the first machine to go", 60)
        leader = str(desk.status().daemon["node"])
        epoch = desk.status().epoch
        at = time.monotonic()
        faults.kill(desk.box, leader, "rebootd")
        desk.until(lambda: desk.status().epoch > epoch, "the next leader", 30)
        figure("next leader after SIGKILL", f"{time.monotonic() - at:.2f} s")
        (victim,) = desk.until(lambda: out(desk)[:1], "a machine to be out", 60)
        desk.until(lambda: _killed(desk, victim), "its agent to be killed", 30)
        faults.kill(desk.box, next(s.name for s in desk.box.plan.consul_servers if s.name not in out(desk)), "consul")
    lossless(desk, "leader, agent and Consul server killed", found[0])


def _killed(desk: Desk, host: str) -> bool:
    faults.kill(desk.box, host, "rebootd-agent")
    return True


def test_consul_servers_frozen_for_35_seconds_in_a_cycle(desk: Desk) -> None:
    servers = [server.name for server in desk.box.plan.consul_servers]
    with desk.load(200) as found, cycle(desk, "consul-frozen"):
        desk.until(lambda: set(out(desk)) - set(servers), "a worker to go", 120)
        wait_for(lambda: all(desk.box.told(server)["on"] for server in servers), "the servers to be up")
        with faults.frozen(desk.box, servers, "consul"):
            time.sleep(35)
    lossless(desk, "all Consul servers frozen for 35 s", found[0])


def test_a_rack_loses_power_in_a_cycle(desk: Desk) -> None:
    start = time.time()
    desk.rebootctl("cycle", "start", "rack-dark", "--selector", "*", "--failure-budget", "1")
    desk.until(lambda: out(desk), "the first machine to go", 60)
    working = next(h.rack for h in desk.box.plan.machines if h.name in out(desk))
    dark = [h.name for h in desk.box.plan.rack("r3" if working != "r3" else "r2")]
    faults.lose_power(desk.box, dark)
    time.sleep(10)
    desk.box.on(*dark)
    at = time.time()

    def enabled() -> list[float]:
        return [e.time for e in desk.events() if e.machine in dark and e.to == "in-service" and e.time > at]

    desk.until(lambda: len(enabled()) >= len(dark), "the rack to be back", 120)
    figure("a rack without power for 10 s", f"in service {max(enabled()) - at:.1f} s after power returned")
    desk.done("rack-dark", 300)
    desk.in_service(60)
    assert truth.breaches(desk.box.plan, desk.box.notes(), desk.events(), start) == []
    # A boot after the start of the cycle is what the cycle is for, whoever caused it: nobody boots a second time.
    booted = Counter(down.host for down in truth.downs(desk.box.plan, desk.box.notes(), start))
    assert booted == {host.name: 1 for host in desk.box.plan.machines}


def test_a_host_that_never_returns_is_quarantined(desk: Desk) -> None:
    desk.box.order("habit", "w5", returns=False)
    desk.rebootctl("cycle", "start", "lost-host", "--selector", "role=web", "--failure-budget", "1")
    desk.until(lambda: desk.states()["w5"] == "quarantined", "w5 to be quarantined", 240)
    desk.done("lost-host", 240)
    assert "10.88.0.25" not in desk.pool()
    assert [s for h, s in desk.states().items() if h != "w5"] == ["in-service"] * 8
    desk.box.order("habit", "w5", returns=True)
    desk.box.on("w5")
    desk.until(lambda: "clear" in desk.rebootctl("explain", "w5"), "explain to say what clears it", 30)
    desk.until(lambda: _cleared(desk, "w5"), "its clearance", 30)
    desk.in_service(60)
    desk.balanced(30)


def _cleared(desk: Desk, host: str) -> bool:
    desk.ask("POST", f"/v1/quarantine/{host}/clear", by="test", reason="power is back")
    return True


def test_a_host_is_cut_off_between_permit_and_reboot(desk: Desk) -> None:
    slow = faults.slow_to_reboot(desk.box, "w6", 2)
    with slow, desk.load(200) as found, cycle(desk, "cut-off", "role=web"):
        desk.until(lambda: desk.states()["w6"] == "rebooting", "w6 to be permitted", 200)
        boots = len(desk.box.boot_ids("w6"))
        desk.box.order("link", "w6", up=False)
        at = time.monotonic()
        wait_for(lambda: len(desk.box.boot_ids("w6")) > boots, "w6 to reboot although cut off", 30)
        figure("cut off after the permit", f"rebooted {time.monotonic() - at:.1f} s after the cut")
        time.sleep(10)
        assert "10.88.0.26" not in desk.pool()
        desk.box.order("link", "w6", up=True)
        healed = time.monotonic()
        desk.until(lambda: desk.states()["w6"] == "in-service", "w6 after the heal", 60)
        figure("healed", f"in service {time.monotonic() - healed:.1f} s after the heal")
    lossless(desk, "a host cut off after its permit", found[0])


def test_all_hosts_lose_power_at_once(desk: Desk) -> None:
    start = time.time()
    faults.lose_power(desk.box, [host.name for host in desk.box.plan.hosts])
    with pytest.raises(Trouble):
        desk.status()
    figure("cold start", faults.cold_start(desk, 240))
    events = [e for e in desk.events() if e.time > start and e.kind == "transition"]
    received = {e.machine for e in events if e.cause == "unplanned boot"}
    assert received == {host.name for host in desk.box.plan.machines}
    assert not [e for e in events if e.to == "quarantined"]

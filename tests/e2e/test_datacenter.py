"""The data center in a box: 10 hosts, three racks, whole cycles under load. Run by ``make datacenter``.

Each test leaves every machine in service, and each prints what it measured. ``KEEP=1`` leaves the box up.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from tests.e2e.box import faults, truth
from tests.e2e.box.story import cycle, figure, lossless, out, returned
from tests.support.cluster import wait_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rebootd.core.model import Event
    from tests.e2e.box.desk import Desk

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.environ.get("BOX") != "1", reason="takes many minutes: make datacenter runs it"),
]
WHOLE_RACKS = """
gates:
  - name: consul-servers
    kind: consul-quorum
    covers: role=consul
    max_age: 2s
racks: {unavailable: 100%}
settle: 10s
"""


def test_a_cycle_reboots_every_host_and_loses_no_request(desk: Desk) -> None:
    before, leader = desk.hidden(), str(desk.status().daemon["node"])
    with desk.load(200) as found, cycle(desk, "plain") as start:
        pass
    lossless("plain cycle", found[0])
    assert desk.hidden() == before
    rows = sorted((e for e in desk.events() if e.cycle == "plain" and e.kind == "transition"), key=lambda e: e.seq)
    ratio("plain", rows, start)
    hand_over(leader, rows, desk)


def test_a_cycle_by_whole_racks(desk: Desk) -> None:
    """The hosts of a rack go together, its Consul server too: the shortest cycle that one rack at a time allows."""
    desk.ask_policy(WHOLE_RACKS)
    with desk.load(200) as found, cycle(desk, "racks", whole_racks=True) as start:
        pass
    lossless("cycle by whole racks", found[0])
    ratio("racks", desk.events(), start, whole_racks=True)


def ratio(name: str, events: Sequence[Event], start: float, *, whole_racks: bool = False) -> None:
    """The wall time of a cycle beside the shortest one that its machines allow."""
    owned = truth.owns(events, name)
    took = max(e.time for e in events if e.cycle == name and e.to == "in-service") - start
    ideal = truth.ideal(owned, whole_racks=whole_racks)
    slowest = max(own.drain for own in owned), max(own.reboot for own in owned)
    figure(
        f"wall time of cycle {name}",
        f"{took:.1f} s, ideal {ideal:.1f} s, ratio {took / ideal:.2f};",
        "drain at most {:.1f} s, reboot at most {:.1f} s".format(*slowest),
    )


def hand_over(leader: str, rows: Sequence[Event], desk: Desk) -> None:
    """The leader's own host is rebooted last of the workers in its rack, and not before the next leader leads."""
    epoch = {e.machine: e.epoch for e in rows if e.to == "draining"}
    first = min(epoch.values())
    order = [e.machine for e in rows if e.to == "draining"]
    beside = [host.name for host in desk.box.plan.rack(desk.box.plan.host(leader).rack) if host.web]
    assert max(beside, key=order.index) == leader
    assert epoch[leader] > first, "leadership must have moved before its host was drained"
    # A leader that went down with its host could not have received that host's new boot in the epoch of the drain.
    back = {e.machine: e.epoch for e in rows if e.to == "in-service"}
    lost = [host.name for host in desk.box.plan.daemons if epoch[host.name] != back[host.name]]
    assert not lost, f"leadership changed while {lost} were out: it was not handed over before"


@pytest.mark.parametrize("control", ["no-drain", "no-wait", "power-cut"])
def test_what_must_lose_requests_does(desk: Desk, control: str) -> None:
    """Without these, a rig that hides what is lost would look like one that loses nothing."""
    start = time.time()
    with desk.load(200) as found:
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


def test_kills_in_a_cycle(desk: Desk) -> None:
    with desk.load(200) as found, cycle(desk, "kills"):
        desk.until(lambda: out(desk), "the first machine to go", 60)
        leader = str(desk.status().daemon["node"])
        epoch = desk.status().epoch
        at = time.monotonic()
        faults.kill_daemon(desk.box, leader)
        desk.until(lambda: desk.status().epoch > epoch, "the next leader", 30)
        figure("next leader after SIGKILL", f"{time.monotonic() - at:.2f} s")
        (victim,) = desk.until(lambda: out(desk)[:1], "a machine to be out", 60)
        desk.until(lambda: _killed(desk, victim), "its agent to be killed", 30)
        faults.kill(desk.box, next(s.name for s in desk.box.plan.consul_servers if s.name not in out(desk)), "consul")
    lossless("leader, agent and Consul server killed", found[0])


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
    lossless("all Consul servers frozen for 35 s", found[0])


def test_consul_servers_go_one_by_one_and_only_when_the_others_are_well(desk: Desk) -> None:
    """S7: while one server's Consul stands still no other server goes, and everybody is told why."""
    with faults.frozen(desk.box, ["cs2"], "consul"):
        desk.until(lambda: _not_whole(desk), "a gate or group to notice", 60)
        desk.rebootctl("cycle", "start", "quorum", "--selector", "role=consul")
        start = time.time()
        while time.time() < start + 8:
            gone = [h.name for h in desk.box.plan.consul_servers if h.name in out(desk)]
            assert not gone, (gone, desk.events()[-12:], desk.rebootctl("explain", "cs1", check=False))
            time.sleep(0.5)
        said = desk.rebootctl("explain", "cs1") + desk.rebootctl("explain", "cs3")
        assert "cs2" in said, said
    desk.done("quorum", 120)
    desk.in_service(60)
    events = desk.events()
    assert truth.breaches(desk.box.plan, desk.box.notes(), events, start) == []
    assert truth.reboots(desk.box.plan, desk.box.notes(), start) == {
        host.name: int(host.consul_server) for host in desk.box.plan.machines
    }


def _not_whole(desk: Desk) -> bool:
    # Gossip knows it first; autopilot, which the gate reads, judges its servers every two seconds.
    told = desk.box.run(
        "cs1", "curl", "-s", "-m", "2", "http://127.0.0.1:8500/v1/operator/autopilot/health", check=False
    )
    gossip = desk.box.run("cs1", "curl", "-sf", "http://127.0.0.1:8500/v1/health/node/cs2", check=False)
    return '"Healthy":false' in told.replace(" ", "") and "critical" in gossip

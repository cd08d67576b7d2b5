"""The data center in a box: 10 hosts, three racks, whole cycles under load. Run by ``make datacenter``.

Each test leaves every machine in service, and each prints what it measured. ``KEEP=1`` leaves the box up.
"""

from __future__ import annotations

import os
import time
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from tests.e2e.box import faults, truth
from tests.e2e.box.story import POLICY, cycle, figure, lossless, out, returned
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


def test_a_cycle_reboots_every_host_and_loses_no_request(desk: Desk) -> None:
    before = desk.hidden()
    with desk.load(200) as found, cycle(desk, "plain") as start:
        pass
    lossless("plain cycle", found[0])
    assert desk.hidden() == before
    events = desk.events()
    ratio("plain", events, start)
    hand_over("plain", events, desk)


def test_a_cycle_by_whole_racks(desk: Desk) -> None:
    """The hosts of a rack go together: the shortest cycle that one rack at a time allows."""
    desk.ask_policy(POLICY + "racks: {unavailable: 100%}\n")
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


def hand_over(name: str, events: Sequence[Event], desk: Desk) -> None:
    """The leader's own host is rebooted last in its rack, and by the next leader: leadership was handed over before."""
    rows = [e for e in sorted(events, key=lambda e: e.seq) if e.cycle == name and e.kind == "transition"]
    taken = [e for e in rows if e.to == "draining"]
    epochs = list(dict.fromkeys(e.epoch for e in rows))
    assert len(epochs) > 1, "the leader's own host was rebooted, so leadership must have moved"
    permitted = {e.machine: e.epoch for e in rows if e.to == "rebooting"}
    came = {e.machine: e.epoch for e in rows if e.to == "in-service"}
    # A leader that went down with its host could not have received that host's new boot in the epoch of the permit.
    moved = [host.name for host in desk.box.plan.daemons if permitted[host.name] != came[host.name]]
    assert not moved, f"leadership changed while {moved} rebooted: it was not handed over before"
    order = {e.machine: number for number, e in enumerate(taken)}
    for before, after in pairwise(taken):
        if before.epoch != after.epoch:
            own = {h.name for h in desk.box.plan.daemons} & {h.name for h in desk.box.plan.rack(after.rack)}
            figure("leadership", f"epoch {before.epoch} -> {after.epoch} between {before.machine} and {after.machine}")
            last = max(order[h.name] for h in desk.box.plan.rack(after.rack))
            assert own
            assert any(order[name] == last for name in own), "the leader's host goes last in its rack"


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
        faults.kill(desk.box, leader, "rebootd")
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
            assert not any(h.name in out(desk) for h in desk.box.plan.consul_servers)
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
    return "critical" in desk.box.run("cs1", "curl", "-sf", "http://127.0.0.1:8500/v1/health/node/cs2", check=False)

"""The small data center in a box: real systemd, real reboots, real traffic. ``make datacenter`` runs the large one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.e2e.box import cgroups, rootfs, truth
from tests.e2e.box.control import Box
from tests.e2e.box.desk import Desk
from tests.e2e.box.plan import small

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(150)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    reason = rootfs.missing()
    if not reason and rootfs.cached() is None:
        reason = "the box has no root file system yet: python -m tests.e2e.box rootfs makes it (a minute or more)"
    if reason:
        pytest.skip(reason)
    try:
        box = Box.build(tmp_path_factory.mktemp("box") / "box", small())
    except rootfs.NoBoxError as error:
        pytest.skip(str(error))
    try:
        box.start()
        box.on()
        desk = Desk(box)
        desk.in_service(60)
        # Leadership is handed over in the cycle, and each leader settles first.
        desk.ask_policy("settle: 5s")
        desk.balanced(20)
        yield desk
        desk.close()
    finally:
        box.stop()
    assert not box.running()
    assert not cgroups.processes(box.setup.box)


def test_every_host_reboots_once_and_no_request_is_lost(desk: Desk) -> None:
    plan, start = desk.box.plan, time.time()
    with desk.load(200) as found:
        desk.rebootctl("cycle", "start", "kernel-6.12.9", "--selector", "*")
        desk.done("kernel-6.12.9", 100)
        desk.in_service(20)
    (tally,) = found
    assert truth.reboots(plan, desk.box.notes(), start) == {host.name: 1 for host in plan.machines}
    assert truth.breaches(plan, desk.box.notes(), desk.events(), start) == []
    assert tally.sent >= 190 * tally.seconds, str(tally)
    assert not tally.lost, str(tally)
    assert not any(desk.hidden().values()), desk.hidden()
    assert set(tally.by_host) == {host.name for host in plan.machines}


def test_a_power_cut_loses_requests_and_the_host_comes_back_by_itself(desk: Desk) -> None:
    desk.balanced(20)
    start = time.time()
    with desk.load(200) as found:
        desk.box.cut("r1h2")
        # Longer than the load balancer waits for a connection: who is back sooner may lose nothing.
        time.sleep(1.0)
        desk.box.on("r1h2")
        desk.until(lambda: any(e.cause == "unplanned boot" and e.time > start for e in desk.events()), "its report", 30)
        desk.in_service(30)
    (tally,) = found
    assert tally.lost, "a rig that cannot lose a request proves nothing"
    assert desk.box.exits(start)["r1h2"] not in ([133], [0])
    assert truth.reboots(desk.box.plan, desk.box.notes(), start)["r1h2"] == 0

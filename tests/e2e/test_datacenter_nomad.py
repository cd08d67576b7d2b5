"""Nomad in the box: it runs rebootd by the shipped job on the hosts that rebootd reboots. Skipped without Nomad."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.box import nomad
from tests.e2e.box.story import cycle, figure, lossless, out

if TYPE_CHECKING:
    from tests.e2e.box.control import Box
    from tests.e2e.box.desk import Desk

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.environ.get("BOX") != "1", reason="takes many minutes: make datacenter runs it"),
    pytest.mark.skipif(nomad.binary() is None, reason="no nomad: put it on PATH or name it with NOMAD_BIN"),
]


def daemons(box: Box) -> dict[str, int]:
    """Where rebootd's allocations run, and of which version of the job."""
    rows = nomad.ask(box, "/v1/job/rebootd/allocations")
    running = [row for row in rows if row["ClientStatus"] == "running" and row["DesiredStatus"] == "run"]
    return {str(row["NodeName"]): int(row["JobVersion"]) for row in running}


def eligible(box: Box) -> dict[str, str]:
    """Whether each client takes allocations."""
    nodes: list[dict[str, Any]] = nomad.ask(box, "/v1/nodes")
    return {str(n["Name"]): str(n["SchedulingEligibility"]) for n in nodes if n["Status"] == "ready"}


def test_the_job_is_updated_in_the_middle_of_a_cycle(desk: Desk) -> None:
    """Each daemon is replaced, on other hosts or the same, while its hosts are rebooted: nothing is lost."""
    box = desk.box
    with desk.load(200) as found, cycle(desk, "job-update", "role=web"):
        desk.until(lambda: out(desk), "the first machine to go", 60)
        version = max(daemons(box).values())
        nomad.run_rebootd(box, nomad.DRIVER, log_level="debug")
    lossless("the job is updated", found[0])
    desk.until(lambda: set(daemons(box).values()) == {version + 1}, "all daemons of the new version", 120)
    where = daemons(box)
    figure("daemons after the job's update", where)
    assert len(where) == 3
    assert set(eligible(box).values()) == {"eligible"}


def test_a_client_that_a_person_made_ineligible_stays_so(desk: Desk) -> None:
    """S4, and beside it: what rebootd made ineligible is eligible again."""
    box = desk.box
    node = next(n["ID"] for n in nomad.ask(box, "/v1/nodes") if n["Name"] == "w5" and n["Status"] == "ready")
    address = f"-address=http://{box.plan.consul_servers[0].address}:4646"
    box.run("cs1", nomad.BINARY, "node", "eligibility", address, "-disable", node)
    try:
        with cycle(desk, "ineligible", "name in (w4, w5)"):
            pass
        assert eligible(box) == {host.name: "eligible" for host in box.plan.hosts if host.web} | {"w5": "ineligible"}
    finally:
        box.run("cs1", nomad.BINARY, "node", "eligibility", address, "-enable", node)

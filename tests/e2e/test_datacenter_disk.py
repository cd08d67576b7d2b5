"""Bad disks in the box: the journal's file system is full, for real."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from tests.e2e.box.host import REBOOTED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.box.desk import Desk

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.environ.get("BOX") != "1", reason="takes many minutes: make datacenter runs it"),
]
HOST = "w4"
STATE = "/var/lib/rebootd"
SMALL = f"""
systemctl stop rebootd-agent
cp -a {STATE} /root/kept
mount -t tmpfs -o size=64k,mode=700 small {STATE}
cp -a /root/kept/. {STATE}/
rm -rf /root/kept
systemctl start rebootd-agent
"""


@pytest.fixture
def small(desk: Desk) -> Iterator[Desk]:
    """The agent's state is on a file system of 64 kB of its own; gone with the next boot."""
    desk.box.run(HOST, "sh", "-ec", SMALL)
    desk.in_service(60)
    yield desk
    desk.box.run(HOST, "rm", "-f", f"{STATE}/filler", check=False)


def test_a_full_disk_under_the_journal_keeps_the_machine_from_rebooting_and_says_so(small: Desk) -> None:
    """What cannot be journaled is not done: no reboot, but a quarantine that names the disk; with room all is well."""
    desk, box = small, small.box
    filled = box.run(HOST, "sh", "-c", f"dd if=/dev/zero of={STATE}/filler bs=1k 2>&1", check=False)
    assert "No space left" in filled
    start = time.time()
    desk.rebootctl("cycle", "start", "full", "--selector", f"name={HOST}")
    desk.until(lambda: desk.states()[HOST] == "quarantined", "the machine to be quarantined", 90)
    said = desk.rebootctl("machine", HOST) + desk.rebootctl("explain", HOST)
    assert f"{STATE}/journal.json cannot be" in said
    assert "No space left on device" in said
    box.run(HOST, "rm", f"{STATE}/filler")
    desk.rebootctl("quarantine", "clear", HOST)
    desk.in_service(60)
    assert box.exits(start).get(HOST, []) == []
    desk.rebootctl("cycle", "start", "room-again", "--selector", f"name={HOST}")
    desk.done("room-again", 120)
    desk.in_service(60)
    assert box.exits(start)[HOST] == [REBOOTED]

"""The large data center in a box, one for all tests of ``make datacenter``."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.box import cgroups, faults, nomad, rootfs, story

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.box.desk import Desk


@pytest.fixture(scope="session")
def datacenter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """Ten hosts in service. ``KEEP=1`` leaves them up; ``BOX_ONE_FILE`` names the packed rebootd, else the tree."""
    from tests.e2e.box import __main__ as box_cli  # only where a box is built
    from tests.e2e.box.control import Box
    from tests.e2e.box.desk import Desk
    from tests.e2e.box.plan import full

    reason = rootfs.missing()
    if reason:
        pytest.skip(reason)
    keep = os.environ.get("KEEP") == "1"
    folder = Path(box_cli.FOLDER) if keep else tmp_path_factory.mktemp("datacenter") / "box"
    one_file = os.environ.get("BOX_ONE_FILE")
    box_cli.clear(folder)
    scheduled = nomad.binary() is not None and os.environ.get("BOX_NOMAD") != "0"
    box = Box.build(folder, full(nomad=scheduled), Path(one_file) if one_file else None)
    box.start(stay=keep)
    try:
        desk = Desk(box)
        if not scheduled:
            print("\nno Nomad at hand ($NOMAD_BIN, PATH): the daemons run as systemd's units")
        story.figure("from empty hosts", faults.cold_start(desk, 240, driver=nomad.DRIVER))
        yield desk
        desk.close()
    finally:
        if not keep:
            box.stop()
        print("\n\nfigures, all of them:", *story.FIGURES, sep="\n  ")
        sent, lost = (sum(column) for column in zip(*story.SENT, strict=True)) if story.SENT else (0, 0)
        print(f"  requests sent under loads that must lose none: {sent}, lost: {lost}")
    if keep:
        print("\nthe box stays up: python -m tests.e2e.box status | enter HOST | ctl status | down")
    else:
        assert not cgroups.processes(box.setup.box)


@pytest.fixture
def desk(datacenter: Desk) -> Desk:
    """The data center as each test finds it, whatever the one before left: all well, the usual policy, no cycle."""
    box = datacenter.box
    for host in box.plan.hosts:
        told = box.told(host.name)
        if not told["plugged"]:
            box.order("link", host.name, up=True)
        if not told["returns"]:
            box.order("habit", host.name, returns=True)
        if not told["on"]:
            box.on(host.name)
    datacenter.until(lambda: datacenter.status().epoch, "a leader", 120)
    datacenter.calm()
    datacenter.ask_policy(story.POLICY)
    datacenter.in_service(120)
    datacenter.balanced(60)
    # Machines of a new leader have a settle time; a test begins when it is over.
    time.sleep(1)
    return datacenter

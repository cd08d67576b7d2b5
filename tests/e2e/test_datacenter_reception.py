"""Boots of the box that rebootd did not ask for: received, told apart, and no request before the host is enabled."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from tests.e2e.box.host import REBOOTED
from tests.e2e.box.story import figure, lossless, returned

if TYPE_CHECKING:
    from tests.e2e.box.desk import Desk

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(200),
    pytest.mark.skipif(os.environ.get("BOX") != "1", reason="takes many minutes: make datacenter runs it"),
]
COUNTED = 'rebootd_transitions_total{{cause="{word}",from_state="{frm}",to_state="verifying"}}'


@pytest.mark.parametrize("host", ["w1", "w6"], ids=["state on disk", "stateless"])
def test_a_reboot_typed_by_a_person_waits_for_a_drain(desk: Desk, host: str) -> None:
    """logind's delay: out mark, traffic gone, a word to the coordinator, and only then the reboot. Nothing is lost."""
    start = time.time()
    before = desk.counted(COUNTED.format(word="announced", frm="verifying"))
    assert "rebootd" in desk.box.run(host, "systemd-inhibit", "--list", "--no-legend")
    with desk.load(200) as found:
        typed = time.time()
        desk.box.run(host, "reboot")
        returned(desk, host, start)
    lossless(f"{host}: a reboot by hand", found[0])
    assert desk.box.exits(start)[host] == [REBOOTED]
    went = next(note.at for note in desk.box.notes() if note.host == host and note.what == "exit" and note.at > start)
    rows = [e for e in desk.events() if e.machine == host and e.time > start and e.kind == "transition"]
    figure(
        f"{host}: a reboot by hand",
        f"down {went - typed:.1f} s later, in service {rows[-1].time - went:.1f} s after that",
    )
    assert [(e.frm, e.to, e.cause) for e in rows][:2] == [
        ("in-service", "verifying", "announced shutdown"),
        ("verifying", "verifying", "announced boot"),
    ]
    assert desk.counted(COUNTED.format(word="announced", frm="verifying")) == before + 1


@pytest.mark.parametrize("how", ["crash", "reboot -ff"])
@pytest.mark.parametrize("host", ["w2", "w3"], ids=["state on disk", "stateless"])
def test_no_request_reaches_a_host_that_crashed_before_it_is_enabled(desk: Desk, host: str, how: str) -> None:
    """``crash``: its init is killed, and it starts again at once."""
    start = time.time()
    before = desk.counted(COUNTED.format(word="unplanned", frm="in-service"))
    with desk.load(200) as found:
        crashed = time.time()
        if how == "crash":
            desk.box.cut(host, again=True)
        else:
            desk.box.run(host, "reboot", "-ff", check=False)
        returned(desk, host, crashed)
        time.sleep(1)
    rows = [e for e in desk.events() if e.machine == host and e.time > start and e.kind == "transition"]
    assert [(e.frm, e.to) for e in rows] == [
        ("in-service", "verifying"),
        ("verifying", "enabling"),
        ("enabling", "in-service"),
    ]
    assert rows[0].cause == "unplanned boot"
    known = "" if desk.box.plan.host(host).stateless else "none"
    assert ("the boot before it ended: none" in rows[0].detail) is bool(known), rows[0].detail
    # The leader may have been on that host; a metric of a daemon that went down with it is gone.
    if host not in {server.name for server in desk.box.plan.daemons}:
        assert desk.counted(COUNTED.format(word="unplanned", frm="in-service")) == before + 1
    enabling = rows[1].time
    served = found[0].by_host[host]
    again = min(t for t in served if t > enabling)
    figure(f"{host}: {how}", f"enabled after {enabling - crashed:.1f} s, served again after {again - crashed:.1f} s")
    assert not [t for t in served if crashed + 0.5 < t < enabling], "a host served before it was enabled"

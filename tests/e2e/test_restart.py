"""Daemons that come back: what a killed one left in Consul must not keep its successor from leading."""

from __future__ import annotations

import os
import time
import uuid
from typing import TYPE_CHECKING

from rebootd.cli.demo_daemons import Daemons

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.cluster import Agent


async def test_killed_daemon_leads_again_under_its_own_id(dev_consul: Agent, tmp_path: Path) -> None:
    environ = {**os.environ, "CONSUL_HTTP_ADDR": dev_consul.url}
    daemons = Daemons(tmp_path, f"e2e-{uuid.uuid4().hex[:8]}", environ, 1)
    [id_] = daemons.urls
    try:
        await daemons.start([])
        first = await daemons.ready()
        await daemons.kill(id_)
        began = time.monotonic()
        await daemons.start([])
        second = await daemons.ready()
    finally:
        await daemons.close()
    assert second.epoch == first.epoch + 1
    # The start of an interpreter included; the session's TTL would take 20 s.
    assert time.monotonic() - began < 15

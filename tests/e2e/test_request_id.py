"""One id from rebootctl through the leader's log, its events and its audit log to the log of an agent."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import TYPE_CHECKING

import msgspec

from rebootd.core.audit import Line
from tests.e2e.fleet import Fleet

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.cluster import Agent


async def test_a_request_is_followed_from_rebootctl_to_the_agent(dev_consul: Agent, tmp_path: Path) -> None:
    audit = tmp_path / "audit.log"
    async with Fleet(dev_consul, tmp_path, daemons=1, racks=1, flags=("--audit-log", str(audit))) as fleet:
        await fleet.supervisor.start()
        await fleet.all_in_service()
        url = fleet.slots[0].front.url
        command = [sys.executable, "-m", "rebootd.cli.ctl", "--server", url, "cycle", "start", "k1", "--selector", "*"]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
        assert await process.wait() == 0
        await fleet.cycle_done("k1")
        (started,) = [e for e in await fleet.events() if e.cause == "cycle-start"]
        id_ = started.request
        assert re.fullmatch(r"[0-9a-f]{32}", id_)
        assert (await fleet.cycle("k1")).cycle.request == id_
        lines = [msgspec.json.decode(raw, type=Line) for raw in audit.read_bytes().splitlines()]
        assert [line.request for line in lines if line.what == "cycle-start"] == [id_]
        leader = (tmp_path / "daemon0.log").read_text()
        assert [
            line for line in leader.splitlines() if "event='change'" in line and id_ in line and "status=200" in line
        ]
        agent = fleet.supervisor.machines[fleet.names[0]].agent
        assert agent is not None
        told = [line for line in agent.log.read_text().splitlines() if id_ in line]
        for kind in ("drain", "reboot", "enable"):
            (line,) = [t for t in told if "event='directive'" in t and f"kind='{kind}'" in t]
            assert "cycle='k1'" in line
            assert f"machine='{fleet.names[0]}'" in line
            assert "epoch=1" in line

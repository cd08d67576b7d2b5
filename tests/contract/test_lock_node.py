"""Sessions on the external node outlive the host of the daemon that made them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from rebootd.core.errors import SessionLost
from rebootd.store.consul import ConsulStore
from rebootd.store.port import CheckSession, Lock
from tests.contract.conftest import eventually
from tests.support.cluster import Agent, dev_agent

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_session_on_the_lock_node_survives_a_clean_leave_of_its_makers_host(tmp_path: Path) -> None:
    with dev_agent(tmp_path / "server") as server:
        join = {"retry_join": [f"127.0.0.1:{server.ports['serf_lan']}"], "retry_interval": "1s", "server": False}
        with Agent("host", tmp_path / "host", [], join) as host:
            here, there = ConsulStore.open(host.settings), ConsulStore.open(server.settings)
            await here.ensure_lock_node("rebootd-locks")
            rack = await here.create_session("rack r1", node="rebootd-locks")
            leader = await here.create_session("leader")
            assert {one.node for one in await there.sessions()} == {"rebootd-locks", "host"}
            await here.commit([Lock("racks/r1/.lock", b"", rack), Lock("leader", b"", leader)])
            await asyncio.to_thread(host.leave)

            async def gone() -> bool:
                try:
                    await there.renew_session(leader)
                except SessionLost:
                    return True
                return False

            await eventually(gone, "the session of the host to end")
            await there.renew_session(rack)
            assert await there.commit([CheckSession("racks/r1/.lock", rack)]) == {}
            entry = await there.get("leader")
            assert entry is not None
            assert entry.session == ""
            await here.close()
            await there.close()

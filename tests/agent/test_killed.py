"""An agent killed with SIGKILL at every point of a cycle reboots its host once and comes back into service."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.agent.fake import FakeCoordinator, FakeHost, eventually

if TYPE_CHECKING:
    from pathlib import Path

POINTS = 60
AT_ONCE = 4


async def cycle_killed_at(point: int, folder: Path) -> str:
    """One cycle with a kill at the point; returns what the agent's log says of the kill, or ``""`` if none came."""
    coordinator = await FakeCoordinator().start()
    host = FakeHost(folder, coordinator.url)
    for name in ("drain.d", "pre-reboot.d", "post-boot.d", "enable.d"):
        host.hook(name, "10-log", f"echo {name} >> {host.hook_log}")
    first = host.boot_id
    try:
        await host.start(crash=str(point))

        async def restart() -> None:
            assert host.process is not None
            await host.process.wait()
            await host.start()

        supervisor = asyncio.create_task(restart())
        await coordinator.until(lambda: coordinator.state == "in-service", 60)
        await coordinator.go("draining")
        await coordinator.until(lambda: coordinator.states[-1] == "in-service" and coordinator.boot_id != first, 60)
        # A point right after the last result's write is passed a moment after the coordinator saw the machine back.
        await eventually(lambda: supervisor.done() or host.state().get("state") == "in-service")
        supervisor.cancel()
        assert host.reboots == [first], coordinator.states
        # Killed between the permit's answer and the intent, the agent asks again with the nonce it journaled.
        assert len({p.nonce for p in coordinator.permits}) == 1
        assert "quarantined" not in coordinator.states
        assert coordinator.states.count("rebooting") == 1
        assert coordinator.states.count("draining") == 1
        results = [r.result for r in coordinator.reports if r.result]
        assert all(r.ok for r in results)
    except TimeoutError as error:
        error.add_note(f"point {point}, states {coordinator.states}, log:\n{host.log.read_text()[-4000:]}")
        raise
    finally:
        await host.end()
        await coordinator.stop()
    return next((line for line in host.log.read_text().splitlines() if line.startswith("CRASH")), "")


@pytest.mark.timeout(300)
async def test_killed_at_every_point(tmp_path: Path) -> None:
    told: dict[int, str] = {}
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(point: int) -> None:
        async with gate:
            # The points are counted through; the first one that is never reached ends the search.
            if any(told.get(earlier) == "" for earlier in range(point)):
                return
            told[point] = await cycle_killed_at(point, tmp_path / str(point))

    await asyncio.gather(*(one(point) for point in range(POINTS)))
    killed = [line for line in told.values() if line]
    print(f"killed at {len(killed)} points")
    assert len(killed) >= 25, told
    for kind in ("before a journal write", "after a journal write", "before the permit", "after the permit"):
        assert any(kind in line for line in killed), kind
    for kind in ("before the reboot command", "after the reboot command", "before hooks", "after hooks"):
        assert any(kind in line for line in killed), kind
    assert "" in told.values(), "more points than were tried"

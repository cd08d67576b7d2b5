"""A fake coordinator and fake hosts for the agent's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.agent.fake import FakeCoordinator, FakeHost

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


@pytest.fixture
async def coordinator() -> AsyncIterator[FakeCoordinator]:
    fake = await FakeCoordinator().start()
    yield fake
    await fake.stop()


@pytest.fixture
async def make_host(tmp_path: Path, coordinator: FakeCoordinator) -> AsyncIterator[Callable[..., FakeHost]]:
    made: list[FakeHost] = []

    def make(**settings: Any) -> FakeHost:
        host = FakeHost(tmp_path / f"host{len(made)}", coordinator.url, **settings)
        made.append(host)
        return host

    yield make
    for host in made:
        await host.end()

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.api.server import Api, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with running() as api:
        yield api

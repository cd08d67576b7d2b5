from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.api.server import Api, running
from tests.cli.ctl_runner import Ctl

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with running() as api:
        yield api


@pytest.fixture
def ctl(api: Api, tmp_path: Path) -> Ctl:
    return Ctl(api, tmp_path)

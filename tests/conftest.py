"""Fixtures that every test folder may use."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

from tests.support.cluster import dev_agent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.cluster import Agent


@pytest.fixture(scope="session")
def dev_consul(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """One real ``consul agent -dev`` for the whole test session; share it by using a ``prefix`` of your own."""
    with dev_agent(tmp_path_factory.mktemp("consul"), limits={"http_max_conns_per_client": 2000}) as agent:
        yield agent


@pytest.fixture
def prefix() -> str:
    """A key prefix that no other test uses."""
    return f"t-{uuid.uuid4().hex[:10]}/"

"""Fixtures that every test folder may use."""

from __future__ import annotations

import json
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


@pytest.fixture(autouse=True)
def nobody_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves nodes with a rack in the shared Consul: leaders of later tests would wait for them."""
    if "dev_consul" not in request.fixturenames:
        yield
        return
    agent: Agent = request.getfixturevalue("dev_consul")

    def racked() -> set[str]:
        return {node["Node"] for node in agent.ask("/v1/catalog/nodes") if (node.get("Meta") or {}).get("rack")}

    # Those of fixtures that a whole file shares stay until the file ends.
    before = racked()
    yield
    left = sorted(racked() - before)
    for name in left:
        agent.ask("/v1/catalog/deregister", "PUT", json.dumps({"Node": name}).encode())
    assert not left, f"nodes left in the shared Consul: {left}"


@pytest.fixture
def prefix() -> str:
    """A key prefix that no other test uses."""
    return f"t-{uuid.uuid4().hex[:10]}/"

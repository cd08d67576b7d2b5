"""``consul-service``: the instances of a service, and on which nodes they pass.

An instance passes when every check of it and of its node does (Consul's page "Health": ``/v1/health/service``).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from rebootd.core.gates import Instances

if TYPE_CHECKING:
    from rebootd.coordinator.gates.tools import Tools
    from rebootd.core.policy_gates import ConsulService


class _Named(msgspec.Struct, rename="pascal"):
    node: str


class _Check(msgspec.Struct, rename="pascal"):
    status: str


class _Entry(msgspec.Struct, rename="pascal"):
    node: _Named
    checks: list[_Check] = []


async def read(test: ConsulService, tools: Tools) -> Instances:
    """Raises ``Unreachable``."""
    params = [("tag", test.tag)] if test.tag else []
    entries = await tools.consul_json(f"/v1/health/service/{test.service}", list[_Entry], *params)
    passing = Counter(e.node.node for e in entries if all(c.status == "passing" for c in e.checks))
    return Instances(passing=dict(passing), total=len(entries), nodes=frozenset(e.node.node for e in entries))

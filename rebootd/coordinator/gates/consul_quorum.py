"""``consul-quorum``: the Consul servers, as raft and autopilot see them (Consul's page "Operator")."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebootd.coordinator.gates.quorum import HEALTH, RAFT, UNHEALTHY, Autopilot, Raft, servers

if TYPE_CHECKING:
    from rebootd.coordinator.gates.tools import Tools
    from rebootd.core.gates import Servers
    from rebootd.core.policy_gates import ConsulQuorum


async def read(_test: ConsulQuorum, tools: Tools) -> Servers:
    """Raises ``Unreachable``."""
    raft = await tools.consul_json(RAFT, Raft)
    autopilot = await tools.consul_json(HEALTH, Autopilot, also=(UNHEALTHY,))
    return servers(raft, autopilot, lambda name, address: name or address)

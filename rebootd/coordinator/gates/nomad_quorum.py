"""``nomad-quorum``: the Nomad servers, as raft and autopilot see them (Nomad's page "Operator").

A Nomad server is called ``<name>.<region>``. Its machine is the Consul node of that name, or the one with its address.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebootd.coordinator.gates.quorum import HEALTH, RAFT, UNHEALTHY, Autopilot, Raft, servers

if TYPE_CHECKING:
    from rebootd.coordinator.gates.tools import Tools
    from rebootd.core.gates import Servers
    from rebootd.core.policy_gates import NomadQuorum


async def read(test: NomadQuorum, tools: Tools) -> Servers:
    """Raises ``Unreachable``."""
    shown = tools.token(test.address)
    headers = {"X-Nomad-Token": shown} if shown else {}
    raft = await tools.http_json(test.address + RAFT, Raft, headers=headers)
    autopilot = await tools.http_json(test.address + HEALTH, Autopilot, headers=headers, also=(UNHEALTHY,))
    names = set(tools.addresses.values())

    def machine_of(name: str, address: str) -> str:
        bare = name.rpartition(".")[0] or name
        host = address.rpartition(":")[0].strip("[]")
        if bare in names or host not in tools.addresses:
            return bare or address
        return tools.addresses[host]

    return servers(raft, autopilot, machine_of)

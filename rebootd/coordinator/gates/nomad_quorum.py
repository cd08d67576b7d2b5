"""``nomad-quorum``: the Nomad servers, as raft and autopilot see them (Nomad's page "Operator").

A Nomad server is called ``<name>.<region>``. Its machine is the Consul node of that name, or the one with its address.

With ACLs, raft's configuration takes a management token, autopilot's health only ``operator:read`` (Nomad's
``nomad/operator_endpoint.go``). Autopilot lists every server of raft's configuration, with its vote, so a token of the
shipped policy (nomad/acl) is enough: without raft's own answer, autopilot's stands in for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebootd.coordinator.gates.quorum import HEALTH, RAFT, UNHEALTHY, Autopilot, Peer, Raft, servers
from rebootd.coordinator.gates.tools import NotAllowed

if TYPE_CHECKING:
    from rebootd.coordinator.gates.tools import Tools
    from rebootd.core.gates import Servers
    from rebootd.core.policy_gates import NomadQuorum


async def read(test: NomadQuorum, tools: Tools) -> Servers:
    """Raises ``Unreachable``."""
    shown = tools.token(test.address)
    headers = {"X-Nomad-Token": shown} if shown else {}
    try:
        raft = await tools.http_json(test.address + RAFT, Raft, headers=headers)
    except NotAllowed:
        raft = None
    autopilot = await tools.http_json(test.address + HEALTH, Autopilot, headers=headers, also=(UNHEALTHY,))
    if raft is None:
        peers = [Peer(address=s.address, id=s.id, node=s.name, voter=s.voter) for s in autopilot.servers or ()]
        raft = Raft(servers=peers)
    names = set(tools.addresses.values())

    def machine_of(name: str, address: str) -> str:
        bare = name.rpartition(".")[0] or name
        host = address.rpartition(":")[0].strip("[]")
        if bare in names or host not in tools.addresses:
            return bare or address
        return tools.addresses[host]

    return servers(raft, autopilot, machine_of)

"""What the two quorum gates share: raft's configuration and autopilot's health, in Consul's and Nomad's one format."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from rebootd.core.errors import Unreachable
from rebootd.core.gates import Servers

if TYPE_CHECKING:
    from collections.abc import Callable

RAFT = "/v1/operator/raft/configuration"
HEALTH = "/v1/operator/autopilot/health"
UNHEALTHY = 429
"""The status with which autopilot's health is answered when it is not healthy; the body says why."""


class Peer(msgspec.Struct, rename="pascal"):
    """One server of raft's configuration."""

    address: str
    id: str = msgspec.field(name="ID", default="")
    node: str = ""
    voter: bool = False


class Raft(msgspec.Struct, rename="pascal"):
    """``/v1/operator/raft/configuration``."""

    servers: list[Peer]


class Health(msgspec.Struct, rename="pascal"):
    """One server as autopilot sees it."""

    address: str
    id: str = msgspec.field(name="ID", default="")
    name: str = ""
    serf_status: str = ""
    healthy: bool = False
    voter: bool = False
    read_replica: bool = False


class Autopilot(msgspec.Struct, rename="pascal"):
    """``/v1/operator/autopilot/health``; no servers until autopilot has looked for the first time [measured]."""

    healthy: bool
    failure_tolerance: int
    servers: list[Health] | None = None


def servers(raft: Raft, autopilot: Autopilot, machine_of: Callable[[str, str], str]) -> Servers:
    """Both answers as one value. ``machine_of`` names the machine of a server by its name and address.

    Raises ``Unreachable`` for a configuration without servers.
    """
    if not raft.servers:
        raise Unreachable("raft's configuration has no servers")
    known = {s.address: s for s in autopilot.servers or ()}
    members: dict[str, str] = {}
    for peer in raft.servers:
        seen = known.pop(peer.address, None)
        if seen is None:
            why = "autopilot does not know it"
        elif not seen.healthy:
            why = f"not healthy{f', serf says {seen.serf_status}' if seen.serf_status else ''}"
        else:
            why = "" if peer.voter or seen.read_replica else "it does not vote (yet)"
        members[machine_of(peer.node, peer.address)] = why
    for left in known.values():
        members[machine_of(left.name, left.address)] = "not a raft peer"
    if not autopilot.healthy and not any(members.values()):
        members["autopilot"] = "not healthy"
    return Servers(members=members, tolerance=autopilot.failure_tolerance)

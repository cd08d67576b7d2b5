"""Who else could lead: the other daemons of this fleet that answer, by the machines they run on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

import msgspec
import structlog

from rebootd.core.codec import read_json
from rebootd.core.errors import RebootdError, Unreachable

if TYPE_CHECKING:
    from rebootd.consul.client import Consul
    from rebootd.coordinator.fleet import Fleet

log = structlog.get_logger(__name__)

LOOK = 3.0
"""Seconds between two looks."""
SURE = 3
"""Looks in a row that find no other daemon before there is none: one that starts, or whose check failed once, is there
a moment later, and the leader's own host would go while it leads."""


class Peers(Protocol):
    """Where the other daemons are."""

    async def nodes(self) -> frozenset[str]:
        """The machines on which another daemon is well. Raises a ``RebootdError``."""
        ...


class _Node(msgspec.Struct, rename="pascal"):
    node: str


class _Instance(msgspec.Struct, rename="pascal"):
    id: str = msgspec.field(name="ID")
    meta: dict[str, str] | None = None


class _Entry(msgspec.Struct, rename="pascal"):
    node: _Node
    service: _Instance


class ConsulPeers:
    """By Consul's health of the service ``service``; ``own`` is the id of this daemon's instance.

    An instance whose machine is out of service does not pass, for it has the out mark.
    """

    def __init__(self, consul: Consul, service: str, own: str) -> None:
        self._consul = consul
        self._path = f"/v1/health/service/{service}"
        self._own = own

    async def nodes(self) -> frozenset[str]:
        """As the protocol says. Raises ``Unreachable``."""
        answer = await self._consul.http.request("GET", self._path, [("passing", "1")])
        if answer.status != 200:
            raise Unreachable(f"Consul answers {self._path} with {answer.status}")
        try:
            entries = read_json(answer.body, list[_Entry])
        except msgspec.MsgspecError as error:
            raise Unreachable(f"{self._path}: {error}") from error
        others = [e for e in entries if e.service.id != self._own]
        return frozenset((e.service.meta or {}).get("node") or e.node.node for e in others)


class PeersWatch:
    """Keeps ``fleet.successors`` true for as long as a leadership lasts; None until it is known who they are."""

    def __init__(self, fleet: Fleet, peers: Peers, dirty: asyncio.Event) -> None:
        self._fleet = fleet
        self._peers = peers
        self._dirty = dirty
        self._empty = 0
        fleet.successors = None

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                found = await self._peers.nodes()
            except RebootdError as error:
                log.warning("peers-unreadable", error=str(error))
            else:
                self._take(found)
            await asyncio.sleep(LOOK)

    def _take(self, found: frozenset[str]) -> None:
        self._empty = 0 if found else self._empty + 1
        known = found if found or self._empty >= SURE else None
        if known != self._fleet.successors:
            self._fleet.successors = known
            self._dirty.set()

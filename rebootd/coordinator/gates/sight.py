"""What a leader can see beside its store: gates, and which machines Consul says have failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from rebootd.coordinator.gates import alertmanager, consul_quorum, consul_service, health, nomad_quorum, prometheus
from rebootd.coordinator.gates.tools import Tools
from rebootd.core.policy_gates import ConsulQuorum, ConsulService, NoAlerts, NomadQuorum, PrometheusQuery

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from rebootd.consul.client import Consul
    from rebootd.core.gates import Value
    from rebootd.core.policy_gates import Gate
    from rebootd.tls.files import TlsFiles


class Sight(Protocol):
    """The leader's eyes. Every call raises a ``RebootdError`` when nothing can be seen."""

    async def read(self, gate: Gate, addresses: Mapping[str, str]) -> Value:
        """Reads a gate now. ``addresses`` maps the catalog's addresses to names of nodes."""
        ...

    async def failing(self, index: int, wait: float) -> tuple[dict[str, str], int]:
        """Nodes that have failed and why, once that may have changed since ``index`` (0: now), and the next index."""
        ...

    async def close(self) -> None:
        """Ends every connection."""
        ...


class Eyes:
    """The real :class:`Sight`. ``consul`` stays the caller's; with None the gates on Consul cannot be read.

    ``tokens`` is a folder with a file ``HOST:PORT`` for each address that wants a token, ``tls`` what ``https``
    addresses are spoken to with.
    """

    def __init__(self, consul: Consul | None, tokens: Path | None = None, tls: TlsFiles | None = None) -> None:
        self._tools = Tools(consul, tokens, tls)

    async def read(self, gate: Gate, addresses: Mapping[str, str]) -> Value:
        """Reads a gate now. Raises ``Unreachable``."""
        tools = self._tools
        tools.addresses = addresses
        match gate.test:
            case ConsulService() as test:
                return await consul_service.read(test, tools)
            case ConsulQuorum() as test:
                return await consul_quorum.read(test, tools)
            case NomadQuorum() as test:
                return await nomad_quorum.read(test, tools)
            case PrometheusQuery() as test:
                return await prometheus.read(test, tools)
            case NoAlerts() as test:
                return await alertmanager.read(test, tools)

    async def failing(self, index: int, wait: float) -> tuple[dict[str, str], int]:
        """As the protocol says. Raises ``Unreachable``."""
        return await health.read(self._tools, index, wait)

    async def close(self) -> None:
        """Ends every connection but Consul's."""
        await self._tools.close()

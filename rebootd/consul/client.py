"""py-consul's endpoints over our own transport."""

from __future__ import annotations

from typing import TYPE_CHECKING

import consul.base

from rebootd.consul.transport import Transport

if TYPE_CHECKING:
    from rebootd.consul.settings import ConsulSettings


class Consul(consul.base.Consul):  # type: ignore[misc]  # py-consul is untyped
    """Every endpoint of py-consul (``.kv``, ``.agent``, ``.health``, ``.catalog``, ``.query``, ...), all awaitable.

    What py-consul would take from the environment it takes from ``settings`` alone: the address, the token (which the
    transport sends with every request, transactions too), the certificates, and the datacenter. Errors are those of
    :mod:`rebootd.core.errors`. ``http`` is the transport, for requests that no endpoint can express.
    """

    http: Transport

    def __init__(self, settings: ConsulSettings) -> None:
        self.settings = settings
        scheme, host, port = settings.endpoint()
        super().__init__(host, port, scheme=scheme, verify=settings.verify)
        # py-consul lets CONSUL_HTTP_TOKEN override an explicit token; ours is in the transport.
        self.token = None

    def http_connect(self, *_: object, **__: object) -> Transport:
        """py-consul's hook for another transport."""
        return Transport(self.settings)

    async def close(self) -> None:
        """Ends every connection."""
        await self.http.close()


def connect(settings: ConsulSettings) -> Consul:
    """A client for ``settings``; nothing is sent yet. Close it when done."""
    return Consul(settings)

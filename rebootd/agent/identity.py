"""Who this machine is: its name, and the connection to Consul that knows it."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import msgspec
import structlog

from rebootd.agent.outmark import AgentMark, CatalogMark, Mark, NoMark
from rebootd.consul.http import Link
from rebootd.consul.settings import ConsulSettings
from rebootd.core.codec import read_json
from rebootd.core.errors import InvalidInput, RebootdError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rebootd.agent.host import Host
    from rebootd.agent.settings import AgentSettings
    from rebootd.consul.http import Linked

_CONSUL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_log = structlog.get_logger("rebootd.agent.identity")


class _Config(msgspec.Struct):
    NodeName: str


class _Self(msgspec.Struct):
    Config: _Config


def consul_client(settings: AgentSettings, environ: Mapping[str, str]) -> Linked | None:
    """A client of the Consul that the settings name; None when nothing here needs one. Raises ``InvalidInput``."""
    if settings.mark == "none" and settings.coordinators:
        return None
    token_file = settings.consul_token_file or None
    return Link(ConsulSettings.from_env(environ, address=settings.consul or None, token_file=token_file))


def mark_for(settings: AgentSettings, consul: Linked | None, name: str) -> Mark:
    """Where this machine's out mark goes."""
    if consul is None or settings.mark == "none":
        return NoMark()
    return AgentMark(consul) if settings.mark == "agent" else CatalogMark(consul, name)


async def machine_name(
    settings: AgentSettings, host: Host, consul: Linked | None, remembered: str, *, patience: float | None = None
) -> str:
    """The name as set; else the local Consul agent's node name (``mark: agent``); else the host's name.

    While the local Consul does not answer, the name ``remembered`` from an earlier start is used; without one, this
    waits, up to ``patience`` seconds and then takes the host's name (None: for ever), since a guessed name would be
    another machine's record.
    """
    if settings.name:
        return settings.name
    if settings.mark != "agent" or consul is None:
        return _checked(host.hostname())
    waited = 0.0
    while True:
        try:
            response = await consul.http.request("GET", "/v1/agent/self", timeout=2.0)
            return _checked(read_json(response.body, _Self).Config.NodeName)
        except (RebootdError, msgspec.MsgspecError) as error:
            if isinstance(error, InvalidInput):
                raise
            if remembered:
                return remembered
            if patience is not None and waited >= patience:
                return _checked(host.hostname())
            if not waited:
                _log.warning("waiting for the local Consul agent to learn this machine's name", error=str(error))
        await asyncio.sleep(1.0)
        waited += 1.0


def _checked(name: str) -> str:
    if not _CONSUL_NAME.fullmatch(name):
        raise InvalidInput("name", name, "a machine name of letters, digits, '.', '_' and '-'")
    return name

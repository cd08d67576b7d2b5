"""The out mark: our own node check ``rebootd``, critical while the machine is out of service.

Only this one check is ever touched. ``_node_maintenance`` belongs to people.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import structlog

from rebootd.consul.http import failure
from rebootd.core.codec import read_json
from rebootd.core.errors import NotFound, RebootdError, Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebootd.consul.http import Linked

CHECK_ID = "rebootd"
CHECK_NAME = "rebootd: out of service"
_NEVER = "87600h"
_REASSERT = 60.0
_LOOKS, _LOOK_EVERY = 20, 0.1
_log = structlog.get_logger("rebootd.agent.outmark")


class Mark(Protocol):
    """A place where the out mark can be. Each call is idempotent and raises one of the error tree."""

    async def apply(self, out: bool, why: str) -> None:
        """Sets the mark (``why`` is shown beside it) or takes it away."""
        ...

    async def shown(self) -> bool:
        """Whether somebody who asks Consul now, as a load balancer does, is shown the mark."""
        ...


class NoMark:
    """For fleets that take machines out by hooks alone."""

    async def apply(self, out: bool, why: str) -> None:
        """Does nothing."""

    async def shown(self) -> bool:
        """There is nothing to see, and nobody looks."""
        return True


class AgentMark:
    """The mark on the local Consul agent, which keeps it over its own restarts and the host's."""

    def __init__(self, consul: Linked) -> None:
        self._consul = consul
        self._node = ""

    async def apply(self, out: bool, why: str) -> None:
        """Sets or takes away the mark on the local agent."""
        checks = _decode(await _ask(self._consul, "GET", "/v1/agent/checks"))
        present = checks.get(CHECK_ID) if isinstance(checks, dict) else None
        if not out:
            if present is not None:
                await _ask(self._consul, "PUT", f"/v1/agent/check/deregister/{CHECK_ID}")
            return
        if not (isinstance(present, dict) and present.get("Status") == "critical" and not present.get("ServiceID")):
            if present is not None:
                # Registered again, a check keeps its status (Consul 1.8.7): one that was passed by hand would stay so.
                await _ask(self._consul, "PUT", f"/v1/agent/check/deregister/{CHECK_ID}")
            # A TTL that nobody renews turns critical by itself: even a lost status keeps the machine out.
            check = {"ID": CHECK_ID, "Name": CHECK_NAME, "TTL": _NEVER, "Status": "critical", "Notes": why}
            await _ask(self._consul, "PUT", "/v1/agent/check/register", check)
        await self._seen_by_others()

    async def _seen_by_others(self) -> None:
        """Returns when the catalog shows the mark. Raises ``Refused`` when it does not for a while.

        The local agent tells the servers in its own time: right after a server came back, a host whose agent had the
        mark was still sent requests for 43 s [seen on Consul 1.8.7].
        """
        found = _decode(await _ask(self._consul, "GET", "/v1/agent/self"))
        config = found.get("Config") if isinstance(found, dict) else None
        self._node = str(config.get("NodeName")) if isinstance(config, dict) else ""
        for _ in range(_LOOKS):
            checks = _decode(await _ask(self._consul, "GET", f"/v1/health/node/{self._node}"))
            if _stands(checks):
                return
            await asyncio.sleep(_LOOK_EVERY)
        raise Refused("the local Consul agent has the mark, but the catalog does not show it yet")

    async def shown(self) -> bool:
        """Whether the catalog shows it."""
        return await _shown(self._consul, self._node)


class CatalogMark:
    """The mark in the catalog, for hosts whose node is registered there without a Consul agent of its own."""

    def __init__(self, consul: Linked, node: str) -> None:
        self._consul = consul
        self._node = node

    async def apply(self, out: bool, why: str) -> None:
        """Sets or takes away the mark on the node. Raises ``NotFound`` while the node is not in the catalog."""
        found = _decode(await _ask(self._consul, "GET", f"/v1/health/node/{self._node}"))
        if out and not _stands(found):
            node = _decode(await _ask(self._consul, "GET", f"/v1/catalog/node/{self._node}"))
            if not isinstance(node, dict) or not isinstance(node.get("Node"), dict):
                raise NotFound(f"node {self._node} is not in Consul's catalog")
            check = {"Node": self._node, "CheckID": CHECK_ID, "Name": CHECK_NAME, "Status": "critical", "Output": why}
            body = {"Node": self._node, "Address": node["Node"].get("Address"), "SkipNodeUpdate": True, "Check": check}
            await _ask(self._consul, "PUT", "/v1/catalog/register", body)
        elif not out and _marks(found):
            await _ask(self._consul, "PUT", "/v1/catalog/deregister", {"Node": self._node, "CheckID": CHECK_ID})

    async def shown(self) -> bool:
        """Whether the catalog shows it."""
        return await _shown(self._consul, self._node)


async def _shown(consul: Linked, node: str) -> bool:
    try:
        # Any server may answer, as with Consul's DNS: without a leader a load balancer still learns of the mark.
        response = await consul.http.request("GET", f"/v1/health/node/{node}", [("stale", "")])
    except RebootdError:
        return False
    return response.status == 200 and _stands(_decode(response.body))


def _marks(checks: Any) -> list[dict[str, Any]]:
    """Our check among those of a node as ``/v1/health/node`` lists them."""
    if not isinstance(checks, list):
        return []
    return [check for check in checks if isinstance(check, dict) and check.get("CheckID") == CHECK_ID]


def _stands(checks: Any) -> bool:
    return any(check.get("Status") == "critical" for check in _marks(checks))


async def _ask(consul: Linked, method: str, path: str, body: object = None) -> bytes:
    response = await consul.http.request(method, path, body=msgspec.json.encode(body) if body is not None else None)
    error = failure(method, path, response)
    if error is not None:
        raise error
    if response.status == 404:
        raise NotFound(f"{method} {path}: {response.text[:200]}")
    return response.body


def _decode(body: bytes) -> Any:
    try:
        return read_json(body, object)
    except msgspec.MsgspecError:
        return None


class MarkKeeper:
    """Keeps the mark as the journal wants it, however long Consul is away.

    ``wanted`` answers whether the machine is to be out and why; it is asked before each attempt. ``problem`` says why
    the last attempt failed, or ``""``; ``standing`` is None until one succeeded.
    """

    def __init__(self, mark: Mark, wanted: Callable[[], tuple[bool, str]]) -> None:
        self._mark = mark
        self._wanted = wanted
        self._kick = asyncio.Event()
        self._changed = asyncio.Condition()
        self.standing: bool | None = None
        self.problem = ""

    def kick(self) -> None:
        """Asks for an attempt now."""
        self._kick.set()

    async def reached(self, out: bool, timeout: float) -> str:
        """Waits until the mark stands as asked; returns ``""``, or after ``timeout`` seconds what went wrong."""
        self.standing = None
        self.kick()
        try:
            async with asyncio.timeout(timeout), self._changed:
                await self._changed.wait_for(lambda: self.standing is out)
        except TimeoutError:
            verb = "set" if out else "taken away"
            return f"the out mark cannot be {verb} since {timeout:g} s: {self.problem or 'no answer'}"
        return ""

    async def shown(self) -> bool:
        """Whether others are shown the mark now."""
        return await self._mark.shown()

    async def run(self) -> None:
        """Works until cancelled: at each kick, after failures again and again, and from time to time to re-assert."""
        pause = 0.2
        while True:
            self._kick.clear()
            out, why = self._wanted()
            try:
                await self._mark.apply(out, why)
            except RebootdError as error:
                if not self.problem:
                    _log.warning("out mark cannot be changed", out=out, error=str(error))
                self.problem, self.standing = str(error), None
                pause = min(pause * 2, 5.0)
            else:
                if self.standing is not out and not isinstance(self._mark, NoMark):
                    _log.info("out mark set" if out else "out mark clear")
                self.problem, self.standing, pause = "", out, 0.2
            async with self._changed:
                self._changed.notify_all()
            try:
                async with asyncio.timeout(pause if self.problem else _REASSERT):
                    await self._kick.wait()
            except TimeoutError:
                continue

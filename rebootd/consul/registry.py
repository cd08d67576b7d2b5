"""What rebootd is in Consul: one service instance per daemon, and the prepared query that machines find it by.

The instance hangs on the local agent and has our HTTP check, which also decides over the leader's session. The query
ignores the out mark and node maintenance, because a data center that starts cold has every node marked, and must not
hide rebootd from the machines that wait for it.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
import structlog

from rebootd.consul.transport import failure
from rebootd.core.codec import read_json
from rebootd.core.errors import Refused, StoreError, Unreachable

if TYPE_CHECKING:
    from rebootd.consul.client import Consul
    from rebootd.consul.transport import Response

T = TypeVar("T")

log = structlog.get_logger(__name__)

SERF_HEALTH: Final = "serfHealth"
IGNORED_CHECKS: Final = ("rebootd", "_node_maintenance")
"""Checks that never hide an instance from the query: the out mark, and the mark that belongs to people."""
_CALL = 3.0


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """One instance as it stands in Consul.

    ``id`` is unique in the fleet, ``address`` and ``port`` are where its API is reached, ``check_url`` is what the
    local agent asks. ``interval`` and ``timeout`` (seconds) pace the check, ``failures`` in a row make it critical
    (more than one needs Consul 1.7; an older one ignores it), and ``deregister_after`` seconds of being critical
    remove the instance (Consul takes 60 at least).

    One failure is enough by default, with a long timeout: a killed daemon refuses the connection and is seen within an
    interval, while a slow one has the whole timeout for its answer, which is more patience than two quick attempts.
    """

    id: str
    address: str
    port: int
    check_url: str
    name: str = "rebootd"
    tags: tuple[str, ...] = ()
    meta: dict[str, str] = {}
    interval: float = 1.0
    timeout: float = 3.0
    failures: int = 1
    deregister_after: float = 600.0

    @property
    def check_id(self) -> str:
        """The id of our check on the node."""
        return f"service:{self.id}"

    @property
    def session_checks(self) -> tuple[str, ...]:
        """What a leader's session has to hang on."""
        return (SERF_HEALTH, self.check_id)

    def body(self) -> dict[str, Any]:
        """The service definition, in the words of Consul's page "Register Service"."""
        check = {
            "CheckID": self.check_id,
            "Name": f"{self.name} event loop",
            "HTTP": self.check_url,
            "Method": "GET",
            "Interval": f"{self.interval:g}s",
            "Timeout": f"{self.timeout:g}s",
            "FailuresBeforeCritical": self.failures,
            # A check starts critical by itself, and no session can be made on it until it passed.
            "Status": "passing",
            "DeregisterCriticalServiceAfter": f"{self.deregister_after:g}s",
        }
        return {
            "ID": self.id,
            "Name": self.name,
            "Address": self.address,
            "Port": self.port,
            "Tags": list(self.tags),
            "Meta": self.meta,
            "Check": check,
        }


class Registry:
    """Keeps one instance registered, and the prepared query named like its service."""

    def __init__(
        self,
        client: Consul,
        registration: Registration,
        *,
        look_every: float = 2.0,
        query_every: float = 60.0,
        rng: random.Random | None = None,
    ) -> None:
        self._client = client
        self._registration = registration
        self._look_every = look_every
        self._query_every = query_every
        self._rng = rng or random.Random()

    @property
    def registration(self) -> Registration:
        """What is kept registered."""
        return self._registration

    async def run(self) -> None:
        """Until cancelled: registers what is missing on the local agent, and puts the prepared query right.

        What an earlier daemon of the same id left is removed first. Never gives up on an operating error. Does not
        deregister when cancelled.
        """
        loop = asyncio.get_running_loop()
        query_due = loop.time()
        working, fresh = True, True
        while True:
            try:
                if fresh and await self.registered():
                    # Left by a killed daemon of the same id: its check asks a port that nobody serves, and as long as
                    # it stands, so does the dead one's session.
                    await self.deregister()
                fresh = False
                if not await self.registered():
                    await self.register()
                if loop.time() >= query_due:
                    await self.ensure_query()
                    query_due = loop.time() + self._query_every * self._rng.uniform(0.8, 1.2)
            except (StoreError, Refused) as error:
                if working:
                    log.warning("service-not-kept", service=self._registration.id, error=str(error))
                working = False
            else:
                if not working:
                    log.info("service-kept-again", service=self._registration.id)
                working = True
            await asyncio.sleep(self._look_every * self._rng.uniform(0.8, 1.2))

    async def registered(self) -> bool:
        """Whether the local agent has our check (it goes with the instance)."""
        path = "/v1/agent/checks"
        response = await self._client.http.request("GET", path, timeout=_CALL)
        return self._registration.check_id in _decode(_checked("GET", path, response), dict[str, Any])

    async def register(self) -> None:
        """Registers the instance, its check passing. Raises ``StoreError`` or ``Refused``."""
        path = "/v1/agent/service/register"
        body = msgspec.json.encode(self._registration.body())
        _checked("PUT", path, await self._client.http.request("PUT", path, body=body, timeout=_CALL))
        log.info("service-registered", service=self._registration.id, check=self._registration.check_url)

    async def deregister(self) -> None:
        """Removes the instance; it is no error if it is gone. Raises ``StoreError`` or ``Refused``."""
        path = f"/v1/agent/service/deregister/{self._registration.id}"
        response = await self._client.http.request("PUT", path, timeout=_CALL)
        # What does not exist was a 200 until 1.10 and is a 404 since.
        if response.status != 404:
            _checked("PUT", path, response)
        log.info("service-deregistered", service=self._registration.id)

    async def ensure_query(self) -> None:
        """Creates the prepared query, or puts it right. Raises ``StoreError`` or ``Refused``."""
        wanted = query_body(self._registration.name)
        existing = await self._find_query()
        if existing is None:
            try:
                await self._write_query("POST", "/v1/query", wanted)
            except StoreError:
                # Another instance may have been faster: a name that is taken is a 500.
                existing = await self._find_query()
                if existing is None:
                    raise
            else:
                return
        if not _covers(existing, wanted):
            await self._write_query("PUT", f"/v1/query/{existing['ID']}", wanted)

    async def _find_query(self) -> dict[str, Any] | None:
        path = "/v1/query"
        response = await self._client.http.request("GET", path, timeout=_CALL)
        queries = _decode(_checked("GET", path, response), list[dict[str, Any]])
        return next((query for query in queries if query.get("Name") == self._registration.name), None)

    async def _write_query(self, method: str, path: str, body: dict[str, Any]) -> None:
        response = await self._client.http.request(method, path, body=msgspec.json.encode(body), timeout=_CALL)
        _checked(method, path, response)
        log.info("query-written", query=self._registration.name)


def query_body(name: str) -> dict[str, Any]:
    """The prepared query for the service ``name``, answering SRV ``<name>.query.consul``.

    ``OnlyPassing`` is off: an instance with a critical check of its own is left out either way, and a mere warning of
    somebody's node check must not hide one.
    """
    service = {"Service": name, "OnlyPassing": False, "IgnoreCheckIDs": list(IGNORED_CHECKS)}
    return {"Name": name, "Service": service}


def _covers(existing: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether ``existing`` says all that ``wanted`` does; what an operator added to it (a DNS TTL, say) is no fault."""
    return all(
        _covers(existing.get(name) or {}, value) if isinstance(value, dict) else existing.get(name) == value
        for name, value in wanted.items()
    )


def _checked(method: str, path: str, response: Response) -> Response:
    error = failure(method, path, response)
    if error is not None:
        raise error
    return response


def _decode(response: Response, kind: type[T]) -> T:
    try:
        return read_json(response.body, kind)
    except msgspec.DecodeError as error:
        raise Unreachable(f"an unreadable answer: {error}") from error

"""People by their Consul ACL tokens: whose a token is and which role its policies come to, asked of Consul."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

from rebootd.core.caller import PEOPLE, Role, parse_role
from rebootd.core.errors import InvalidInput, StoreError, Unauthorized, Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from rebootd.consul.http import Http

KNOWN_FOR = 30.0
"""Seconds that an answer of Consul counts: a token that was deleted is refused no later than that."""
UNKNOWN_FOR = 5.0
"""Seconds that a token which Consul does not know is not asked about again."""
MOST = 1024
"""Tokens that are remembered."""
AT_ONCE = 8
"""Questions to Consul at a time: a flood of made-up tokens takes no more of its connections."""
TIME = 2.0
"""Seconds that Consul has for an answer, the wait for our turn included."""
MAX_TOKEN = 256
MOST_ROLES = 16
"""Roles of one token that are looked up."""


class Person(msgspec.Struct, frozen=True):
    """Whose token it is. ``role`` is ``""`` when none of its policies stands for one."""

    identity: str
    role: str


class _Link(msgspec.Struct):
    Name: str = ""
    ID: str = ""


class _Role(msgspec.Struct):
    Policies: list[_Link] | None = None


class _Token(msgspec.Struct):
    AccessorID: str
    Policies: list[_Link] | None = None
    Roles: list[_Link] | None = None


class ConsulPeople:
    """Looks tokens up at ``/v1/acl/token/self`` and remembers the answers for a moment, by a digest of the token.

    ``roles`` maps names of policies to roles; of several, the most counts.
    """

    def __init__(self, http: Http, roles: Mapping[str, Role], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._http = http
        self._roles = dict(roles)
        self._clock = clock
        self._known: OrderedDict[bytes, tuple[float, Person | Unauthorized]] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[Person]] = {}
        self._turn = asyncio.Semaphore(AT_ONCE)

    async def find(self, token: str) -> Person:
        """Whose it is. Raises Unauthorized when Consul does not know it, Unreachable when Consul does not say."""
        if not 0 < len(token) <= MAX_TOKEN or not token.isascii() or not token.isprintable():
            raise Unauthorized("the Consul token (X-Consul-Token) is none")
        key = hashlib.sha256(token.encode()).digest()
        until, found = self._known.get(key, (0.0, None))
        if found is not None and self._clock() < until:
            if isinstance(found, Unauthorized):
                raise Unauthorized(str(found))
            return found
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.create_task(self._look_up(key, token))
            task.add_done_callback(lambda done: self._asked(key, done))
        # One question for all who show the same token; whoever hangs up does not end it for the others.
        return await asyncio.shield(task)

    def _asked(self, key: bytes, done: asyncio.Task[Person]) -> None:
        del self._asking[key]
        if not done.cancelled():
            done.exception()

    async def _look_up(self, key: bytes, token: str) -> Person:
        try:
            async with asyncio.timeout(TIME), self._turn:
                person = await self._ask(token)
        except TimeoutError:
            raise Unreachable(f"Consul did not say within {TIME:g} s whose token this is") from None
        except Unauthorized as error:
            self._remember(key, error, UNKNOWN_FOR)
            raise
        self._remember(key, person, KNOWN_FOR)
        return person

    async def _ask(self, token: str) -> Person:
        try:
            response = await self._http.request(
                "GET", "/v1/acl/token/self", headers={"X-Consul-Token": token}, timeout=TIME
            )
        except StoreError as error:
            raise Unreachable(f"Consul cannot be asked whose token this is: {error}") from error
        if response.status in {401, 403, 404}:
            # 401: this Consul has no ACLs at all, so that it knows no tokens.
            raise Unauthorized("Consul does not know this token (X-Consul-Token)")
        if response.status != 200:
            raise Unreachable(f"Consul cannot say whose token this is: HTTP {response.status}")
        try:
            found = msgspec.json.decode(response.body, type=_Token)
        except msgspec.MsgspecError as error:
            raise Unreachable(f"Consul's answer about a token cannot be read: {error}") from error
        policies = [link.Name for link in found.Policies or ()]
        for role_ in (found.Roles or ())[:MOST_ROLES]:
            policies += await self._behind(role_.ID, token)
        mine = {self._roles[name] for name in policies if name in self._roles}
        role = max(mine, key=PEOPLE.index, default="")
        return Person(identity=f"consul:{found.AccessorID}", role=role)

    async def _behind(self, role: str, token: str) -> list[str]:
        """The policies of a role of Consul's, none when neither the token nor ours may read it (``acl:read``)."""
        for shown in ({"X-Consul-Token": token}, {}):
            try:
                response = await self._http.request(
                    "GET", f"/v1/acl/role/{quote(role, safe='')}", headers=shown, timeout=TIME
                )
            except StoreError as error:
                raise Unreachable(f"Consul cannot be asked for a role of this token: {error}") from error
            if response.status == 200:
                try:
                    found = msgspec.json.decode(response.body, type=_Role)
                except msgspec.MsgspecError as error:
                    raise Unreachable(f"Consul's answer about a role cannot be read: {error}") from error
                return [link.Name for link in found.Policies or ()]
            if response.status not in {401, 403, 404}:
                raise Unreachable(f"Consul cannot say what a role of this token is: HTTP {response.status}")
        return []

    def _remember(self, key: bytes, found: Person | Unauthorized, seconds: float) -> None:
        self._known[key] = (self._clock() + seconds, found)
        self._known.move_to_end(key)
        if len(self._known) > MOST:
            self._known.popitem(last=False)


def parse_roles(given: Iterable[str], field: str) -> dict[str, Role]:
    """``POLICY=ROLE`` texts as a map. Raises InvalidInput."""
    roles: dict[str, Role] = {}
    for text in given:
        policy, equals, role = text.partition("=")
        if not equals or not policy.strip():
            raise InvalidInput(field, text, "POLICY=ROLE, the name of a Consul policy and viewer, operator or admin")
        roles[policy.strip()] = parse_role(role.strip(), field)
    return roles

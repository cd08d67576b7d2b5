"""People by their Consul tokens: with a Consul of its own making for what goes wrong, and with a real one."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from rebootd.api import people
from rebootd.api.guard import Guard
from rebootd.api.listen import serve
from rebootd.api.people import ConsulPeople, parse_roles
from rebootd.consul.http import Http
from rebootd.consul.settings import ConsulSettings
from rebootd.core.caller import Role
from rebootd.core.errors import InvalidInput, Unauthorized, Unreachable
from tests.api.secure import secured
from tests.api.server import running
from tests.support.cluster import dev_agent
from tests.support.pki import Pki

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.support.cluster import Agent

ROLES = {"ops": Role.OPERATOR, "look": Role.VIEWER}


class FakeConsul:
    """Answers ``/v1/acl/token/self``. ``delay`` is seconds; ``asked`` has every token, ``most`` how many at once."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self.at_once = self.most = 0
        self.delay = 0.0
        self.status = 200
        self.body: bytes | None = None

    async def answer(self, request: web.Request) -> web.Response:
        token = request.headers.get("X-Consul-Token", "")
        self.asked.append(token)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await asyncio.sleep(self.delay)
        finally:
            self.at_once -= 1
        if self.status != 200 or self.body is not None:
            return web.Response(status=self.status, body=self.body)
        if token not in self.tokens:
            return web.Response(status=403, text=f"ACL not found: {token}")
        policies = [{"ID": "x", "Name": name} for name in self.tokens[token]]
        return web.json_response({"AccessorID": f"accessor-{token[:2]}", "SecretID": token, "Policies": policies})


@asynccontextmanager
async def asking(consul: FakeConsul, clock: list[float] | None = None) -> AsyncIterator[ConsulPeople]:
    app = web.Application()
    app.router.add_get("/v1/acl/token/self", consul.answer)
    serving = await serve(app, "127.0.0.1", 0)
    http = Http(ConsulSettings(address=serving.url, token="the-daemons-own"))
    now = clock if clock is not None else [0.0]
    try:
        yield ConsulPeople(http, ROLES, clock=lambda: now[0])
    finally:
        await http.close()
        await serving.close()


async def test_policies_come_to_roles_and_the_most_counts() -> None:
    consul = FakeConsul()
    consul.tokens = {"al-1": ["look", "other", "ops"], "bo-1": ["look"], "ca-1": ["other"], "da-1": []}
    async with asking(consul) as people_:
        assert await people_.find("al-1") == people.Person("consul:accessor-al", "operator")
        assert (await people_.find("bo-1")).role == "viewer"
        assert (await people_.find("ca-1")).role == ""
        assert (await people_.find("da-1")).role == ""
    assert "the-daemons-own" not in consul.asked


async def test_answers_count_for_a_moment_and_refusals_for_less() -> None:
    consul, clock = FakeConsul(), [100.0]
    consul.tokens = {"al-1": ["ops"]}
    async with asking(consul, clock) as people_:
        await asyncio.gather(*(people_.find("al-1") for _ in range(50)))
        assert consul.asked == ["al-1"]
        del consul.tokens["al-1"]
        clock[0] += people.KNOWN_FOR - 0.1
        assert (await people_.find("al-1")).role == "operator"
        clock[0] += 0.2
        for _ in range(3):
            with pytest.raises(Unauthorized, match="Consul does not know this token"):
                await people_.find("al-1")
        assert len(consul.asked) == 2
        consul.tokens["al-1"] = ["ops"]
        clock[0] += people.UNKNOWN_FOR + 0.1
        assert (await people_.find("al-1")).role == "operator"


async def test_what_is_remembered_stays_small() -> None:
    consul = FakeConsul()
    consul.tokens = {f"token-{n}": ["look"] for n in range(people.MOST + 10)}
    async with asking(consul) as people_:
        for token in consul.tokens:
            await people_.find(token)
        consul.asked.clear()
        await people_.find(f"token-{people.MOST + 9}")
        await people_.find("token-0")
        assert consul.asked == ["token-0"]


@pytest.mark.parametrize("token", ["", "a\nb", "ü", "x" * 257, "a\x00"])
async def test_what_cannot_be_a_token_is_not_asked_about(token: str) -> None:
    consul = FakeConsul()
    async with asking(consul) as people_:
        with pytest.raises(Unauthorized) as caught:
            await people_.find(token)
    assert not consul.asked
    assert not token or token not in str(caught.value)


async def test_a_slow_or_silent_consul_is_a_503_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(people, "TIME", 0.2)
    consul = FakeConsul()
    consul.tokens, consul.delay = {"secret-token": ["ops"]}, 5.0
    async with asking(consul) as people_, running(guard=Guard(people=people_)) as api:
        status, said = await api.ask("GET", "/v1/status", **{"X-Consul-Token": "secret-token"})
        assert status == 503
        assert "whose token this is" in said["error"]
        assert "secret-token" not in said["error"]
        consul.delay = 0.0
        assert (await api.ask("GET", "/v1/status", **{"X-Consul-Token": "secret-token"}))[0] == 200
        for status_, body in ((500, b"No cluster leader"), (429, b""), (200, b"<html>"), (200, b"{}")):
            consul.status, consul.body = status_, body
            with pytest.raises(Unreachable):
                await people_.find(f"new-{status_}-{len(body)}")
        consul.status, consul.body = 401, b"ACL support disabled"
        with pytest.raises(Unauthorized):
            await people_.find("new")


async def test_a_flood_of_made_up_tokens_takes_few_connections_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(people, "TIME", 0.5)
    consul = FakeConsul()
    consul.delay = 0.2
    async with asking(consul) as people_:
        outcomes = await asyncio.gather(*(people_.find(f"no-{n}") for n in range(200)), return_exceptions=True)
    assert all(isinstance(outcome, (Unauthorized, Unreachable)) for outcome in outcomes)
    assert consul.most <= people.AT_ONCE
    assert len(consul.asked) < 100


async def test_whoever_hangs_up_does_not_end_it_for_the_others() -> None:
    consul = FakeConsul()
    consul.tokens, consul.delay = {"al-1": ["ops"]}, 0.2
    async with asking(consul) as people_:
        first = asyncio.create_task(people_.find("al-1"))
        second = asyncio.create_task(people_.find("al-1"))
        await asyncio.sleep(0.05)
        first.cancel()
        assert (await second).role == "operator"
    assert consul.asked == ["al-1"]


async def test_roles_by_token_at_the_door(tmp_path: Path) -> None:
    consul = FakeConsul()
    consul.tokens = {"al-1": ["ops"], "bo-1": ["look"], "ca-1": ["other"]}
    pki = Pki(tmp_path / "pki")
    nobody = type(pki.server())(ca=str(pki.ca))
    async with asking(consul) as people_, secured(pki, people=people_) as api:

        async def ask(method: str, path: str, token: str, body: Any = None) -> tuple[int, Any]:
            return await api.ask(nobody, method, path, body, **{"X-Consul-Token": token} if token else {})

        assert (await ask("GET", "/v1/status", "bo-1"))[0] == 200
        assert (await ask("PUT", "/v1/halt", "bo-1", {}))[0] == 403
        status, done = await ask("PUT", "/v1/halt", "al-1", {"by": "mallory", "reason": "a test"})
        assert status == 200
        assert "consul:accessor-al" in str(done)
        assert "mallory" not in str(done)
        status, said = await ask("GET", "/v1/status", "ca-1")
        assert (status, "has no role" in said["error"]) == (403, True)
        status, said = await ask("GET", "/v1/status", "")
        assert (status, "X-Consul-Token" in said["error"]) == (401, True)
        # A person's token does not make a machine.
        assert (await ask("POST", "/v1/machines/r1m1/report", "al-1", {}))[0] == 403
        consul.asked.clear()
        assert (await api.ask(pki.issue("viewer", "x"), "PUT", "/v1/halt", {}, **{"X-Consul-Token": "al-1"}))[0] == 403
        assert not consul.asked


@pytest.mark.parametrize("text", ["ops", "=viewer", "ops=", "ops=root", "ops=Admin", "ops=machine"])
def test_unknown_roles_are_refused_at_the_start(text: str) -> None:
    with pytest.raises(InvalidInput, match="consul-role"):
        parse_roles(["look=viewer", text], "consul-role")
    assert parse_roles(["look=viewer", "ops = operator"], "consul-role") == ROLES


# ------------------------------------------------------------------------------------------------- a real Consul


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    acl = {"enabled": True, "default_policy": "deny", "tokens": {"master": "root", "agent": "root"}}
    with dev_agent(tmp_path_factory.mktemp("acl"), acl=acl) as agent:
        yield agent


async def test_a_real_consul_tells_whose_a_token_is(guarded: Agent) -> None:
    guarded.ask("/v1/acl/policy", "PUT", json.dumps({"Name": "ops", "Rules": 'key "x" { policy = "read" }'}).encode())
    made = guarded.ask("/v1/acl/token", "PUT", json.dumps({"Policies": [{"Name": "ops"}]}).encode())
    # The daemon's own token need not be allowed anything for it.
    http = Http(ConsulSettings(address=guarded.url, token="anonymous"))
    try:
        found = ConsulPeople(http, ROLES)
        assert await found.find(made["SecretID"]) == people.Person(f"consul:{made['AccessorID']}", "operator")
        with pytest.raises(Unauthorized, match="does not know"):
            await found.find("1b0e2c0a-5b2f-4f4e-9a55-000000000000")
        assert (await found.find("root")).role == ""
    finally:
        await http.close()


async def test_policies_behind_consuls_roles_count_where_they_may_be_read(guarded: Agent) -> None:
    def put(path: str, body: dict[str, Any]) -> Any:
        return guarded.ask(path, "PUT", json.dumps(body).encode())

    put("/v1/acl/policy", {"Name": "look", "Rules": ""})
    put("/v1/acl/policy", {"Name": "reads-acls", "Rules": 'acl = "read"'})
    role = put("/v1/acl/role", {"Name": "viewers", "Policies": [{"Name": "look"}]})
    own = put("/v1/acl/token", {"Roles": [{"ID": role["ID"]}], "Policies": [{"Name": "reads-acls"}]})
    bare = put("/v1/acl/token", {"Roles": [{"ID": role["ID"]}]})
    ours = put("/v1/acl/token", {"Policies": [{"Name": "reads-acls"}]})
    for daemons, token, expected in (
        ("anonymous", own, "viewer"),
        ("anonymous", bare, ""),
        (ours["SecretID"], bare, "viewer"),
    ):
        http = Http(ConsulSettings(address=guarded.url, token=daemons))
        try:
            assert (await ConsulPeople(http, ROLES).find(token["SecretID"])).role == expected
        finally:
            await http.close()

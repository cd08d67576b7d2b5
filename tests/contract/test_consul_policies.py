"""Each shipped Consul policy is enough for what it is for, and each of its rules is needed for it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import urllib.request
import uuid
from functools import partial
from typing import TYPE_CHECKING

import dns.resolver
import pytest

from rebootd.agent.discovery import Discovery
from rebootd.agent.outmark import AgentMark, CatalogMark
from rebootd.agent.settings import AgentSettings
from rebootd.consul.binary import locate
from rebootd.consul.health import HealthThread
from rebootd.consul.http import Link
from rebootd.consul.registry import Registration, Registry
from rebootd.consul.settings import ConsulSettings
from rebootd.coordinator.gates.sight import Eyes
from rebootd.core.amounts import Amount
from rebootd.core.errors import RebootdError
from rebootd.core.policy_gates import ConsulQuorum, ConsulService, Gate
from rebootd.store.consul import ConsulStore
from rebootd.store.port import CheckSession, Lock, Set
from tests.support.cluster import dev_agent, wait_for
from tests.support.policies import NAMES, lesser, rules, token

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from tests.support.cluster import Agent

PREFIX, SERVICE, LOCKS = "fleet/", "reboots", "rebootd-locks"
SOMEBODY = "m1"


@pytest.fixture(scope="module")
def consul(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    acl = {
        "enabled": True,
        "default_policy": "deny",
        "enable_token_persistence": True,
        "tokens": {"master": "root", "agent": "root"},
    }
    with dev_agent(tmp_path_factory.mktemp("policies"), acl=acl) as agent:
        for name in (SOMEBODY, "m2"):
            check = {"Node": name, "CheckID": "disk", "Name": "disk", "Status": "critical"}
            node = {"Node": name, "Address": "127.0.0.1", "NodeMeta": {"rack": "r1"}, "Check": check}
            put(agent, "/v1/catalog/register", {**node, "Service": {"Service": "web", "Port": 80}})
        wish = {"Name": "a person's", "Node": SOMEBODY, "NodeChecks": []}
        put(agent, "/v1/session/create", wish)
        yield agent


@pytest.fixture
def daemon(consul: Agent) -> Iterator[str]:
    """A daemon in the catalog, for those who look for one; the id of its service."""
    id_ = f"{SERVICE}-{uuid.uuid4().hex[:8]}"
    service = {"ID": id_, "Service": SERVICE, "Address": "127.0.0.1", "Port": 8473}
    put(consul, "/v1/catalog/register", {"Node": "m3", "Address": "127.0.0.1", "Service": service})
    yield id_
    put(consul, "/v1/catalog/deregister", {"Node": "m3"})


def put(consul: Agent, path: str, body: object) -> None:
    consul.ask(path, "PUT", json.dumps(body).encode())


def as_daemon(consul: Agent, shown: str) -> ConsulStore:
    return ConsulStore.open(ConsulSettings(address=consul.url, token=shown))


# ------------------------------------------------------------------------ what each of them has to be able to do


async def daemon_works(consul: Agent, shown: str) -> None:
    """From its start to its end, what a daemon and a leader say to Consul."""
    put(consul, "/v1/catalog/deregister", {"Node": LOCKS})
    store = as_daemon(consul, shown)
    health = HealthThread(hung_after=60.0)
    health.start()
    eyes = Eyes(store.client)
    try:
        answer = await store.client.http.request("GET", "/v1/agent/self")
        assert answer.status == 200
        registration = Registration(
            id=f"{SERVICE}-{uuid.uuid4().hex[:8]}",
            name=SERVICE,
            address="127.0.0.1",
            port=1,
            check_url=health.url("127.0.0.1"),
        )
        registry = Registry(store.client, registration)
        await registry.register()
        assert await registry.registered()
        await registry.ensure_query()
        # Put right again, as after an upgrade that changed it.
        found = consul.ask("/v1/query")[0]
        consul.ask(f"/v1/query/{found['ID']}", "DELETE")
        await registry.ensure_query()
        await lead(store, registration)
        assert {n.meta.get("rack") for n in (await store.watch_nodes(0, 0))[0] if n.name == SOMEBODY} == {"r1"}
        failing, _ = await eyes.failing(0, 1)
        assert SOMEBODY in failing
        await registry.deregister()
    finally:
        health.stop()
        await eyes.close()
        await store.close()


async def lead(store: ConsulStore, registration: Registration) -> None:
    session = await store.create_session("leader", ttl=10, checks=registration.session_checks)
    await store.renew_session(session)
    leader = PREFIX + "leader"
    await store.commit([Lock(leader, b"{}", session)])
    await store.ensure_lock_node(LOCKS)
    rack = await store.create_session("rack", node=LOCKS)
    lock = PREFIX + "racks/r1/.lock"
    await store.commit([CheckSession(leader, session), Lock(lock, b"{}", rack), Set(PREFIX + "machines/m1", b"{}")])
    entries, _ = await store.list(PREFIX, consistent=True)
    assert {leader, lock} <= {entry.key for entry in entries}
    # Who holds a rack's lock, if it is not us.
    assert {SOMEBODY, LOCKS} <= {s.node for s in await store.sessions()}
    for one in (rack, session):
        await store.destroy_session(one)
    assert rack not in {s.id for s in await store.sessions(node=LOCKS)}


async def gates_work(consul: Agent, shown: str) -> None:
    store = as_daemon(consul, shown)
    eyes = Eyes(store.client)
    try:
        await eyes.read(Gate(name="q", test=ConsulQuorum()), {})
        web = await eyes.read(Gate(name="w", test=ConsulService(service="web", minimum=Amount(1))), {})
        assert "m1" in str(web)
    finally:
        await eyes.close()
        await store.close()


async def agent_works(consul: Agent, shown: str) -> None:
    """What an agent says, on a host with a Consul agent (``dev``) and for its own node in the catalog (``m2``)."""
    link = Link(ConsulSettings(address=consul.url, token=shown))
    try:
        answer = await link.http.request("GET", "/v1/agent/self")
        assert answer.status == 200
        for mark in (AgentMark(link), CatalogMark(link, "dev")):
            await mark.apply(True, "a test")
            assert marked(consul, "dev")
            await mark.apply(False, "")
            wait_for(lambda: not marked(consul, "dev"), "the mark to go")
        settings = AgentSettings(service=SERVICE, dns=())
        found = [url async for batch in Discovery(settings, link).batches() for url in batch]
        assert found == ["http://127.0.0.1:8473"]
    finally:
        await link.close()


def marked(consul: Agent, node: str) -> bool:
    return "rebootd" in {check["CheckID"] for check in consul.ask(f"/v1/health/node/{node}")}


async def dns_works(consul: Agent, shown: str) -> None:
    """DNS shows no token: what counts is the Consul agent's default one."""
    put(consul, "/v1/agent/token/default", {"Token": shown})
    if not any(query["Name"] == SERVICE for query in consul.ask("/v1/query")):
        consul.ask("/v1/query", "POST", json.dumps({"Name": SERVICE, "Service": {"Service": SERVICE}}).encode())
    resolver = dns.resolver.Resolver(configure=False)
    resolver.nameservers, resolver.port = ["127.0.0.1"], consul.dns_port
    for name in (f"{SERVICE}.query.consul", f"{SERVICE}.service.consul"):
        assert {record.port for record in resolver.resolve(name, "SRV")} == {8473}


async def operator_works(consul: Agent, shown: str) -> None:
    async def run(*words: str) -> str:
        environ = {"CONSUL_HTTP_ADDR": consul.url, "CONSUL_HTTP_TOKEN": shown, "PATH": "/usr/bin:/bin"}
        command = [str(locate()), *words]
        done = await asyncio.to_thread(subprocess.run, command, env=environ, capture_output=True, text=True, timeout=15)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    await run("kv", "put", f"{PREFIX}control/halt", "smoke")
    assert "smoke" in await run("kv", "get", f"{PREFIX}control/halt")
    await run("kv", "delete", f"{PREFIX}control/halt")
    marker = consul.folder / uuid.uuid4().hex
    await run("lock", "-shell=false", "-timeout=3s", f"{PREFIX}racks/r9", "touch", str(marker))
    assert marker.exists()
    assert SERVICE in await run("catalog", "services")
    assert "m3" in await run("catalog", "nodes", f"-service={SERVICE}")


WORKS: dict[str, tuple[Callable[[Agent, str], Awaitable[None]], dict[str, str]]] = {
    "agent": (agent_works, {"service": SERVICE, "node": "dev"}),
    "daemon": (daemon_works, {"service": SERVICE, "prefix": PREFIX}),
    "daemon-gates": (gates_work, {}),
    "dns": (dns_works, {"service": SERVICE}),
    "operator": (operator_works, {"service": SERVICE, "prefix": PREFIX}),
}
BESIDE = {"daemon-gates": rules("daemon", service=SERVICE, prefix=PREFIX)}
"""What the holder of a policy has in any case."""


def test_every_shipped_policy_is_tried() -> None:
    assert sorted(WORKS) == list(NAMES)


@pytest.mark.parametrize("name", sorted(WORKS))
async def test_the_policy_is_enough(consul: Agent, daemon: str, name: str) -> None:
    works, values = WORKS[name]
    await works(consul, token(consul, [*BESIDE.get(name, []), *rules(name, **values)]))


LESS = [(name, *less) for name, (_, values) in sorted(WORKS.items()) for less in lesser(rules(name, **values))]


@pytest.mark.parametrize(("name", "less", "left"), LESS, ids=[f"{name} {less}" for name, less, _ in LESS])
async def test_nothing_in_the_policy_is_too_much(
    consul: Agent, daemon: str, name: str, less: str, left: list[str]
) -> None:
    shown = token(consul, [*BESIDE.get(name, []), *left])
    with pytest.raises((RebootdError, AssertionError, dns.exception.DNSException)):
        await WORKS[name][0](consul, shown)


async def test_a_machines_token_marks_no_other_machine(consul: Agent) -> None:
    link = Link(ConsulSettings(address=consul.url, token=token(consul, rules("agent", service=SERVICE, node=SOMEBODY))))
    try:
        await CatalogMark(link, SOMEBODY).apply(True, "its own")
        with pytest.raises(RebootdError, match="Permission denied"):
            await CatalogMark(link, "m2").apply(True, "another's")
        with pytest.raises(RebootdError, match="Permission denied"):
            await AgentMark(link).apply(True, "another's")
    finally:
        await link.close()


async def test_an_operators_token_writes_no_record(consul: Agent) -> None:
    store = as_daemon(consul, token(consul, rules("operator", service=SERVICE, prefix=PREFIX)))
    try:
        for key in ("machines/m1", "policy", "audit", "leader", "epoch"):
            with pytest.raises(RebootdError, match="Permission denied"):
                await store.commit([Set(PREFIX + key, b"{}")])
    finally:
        await store.close()


def whose(consul: Agent, secret: str) -> dict[str, str]:
    request = urllib.request.Request(f"{consul.url}/v1/acl/token/self", headers={"X-Consul-Token": secret})
    with urllib.request.urlopen(request, timeout=5) as answer:
        found = json.loads(answer.read())
        return {"SecretID": found["SecretID"], "AccessorID": found["AccessorID"]}


async def test_a_rotated_token_needs_no_restart_and_no_refusal(consul: Agent, tmp_path: Path) -> None:
    daemon_rules = rules("daemon", service=SERVICE, prefix=PREFIX)
    file = tmp_path / "token"
    secrets = [token(consul, daemon_rules) for _ in range(3)]
    accessors = {one["SecretID"]: one["AccessorID"] for one in map(partial(whose, consul), secrets)}
    file.write_text(secrets[0] + "\n")
    store = ConsulStore.open(ConsulSettings(address=consul.url, token_file=str(file)))
    try:
        for number, secret in enumerate(secrets):
            new = tmp_path / "new"
            new.write_text(secret)
            new.replace(file)
            if number:
                consul.ask(f"/v1/acl/token/{accessors[secrets[number - 1]]}", "DELETE")
            assert await store.commit([Set(f"{PREFIX}rotated", secret[:8].encode())])
        # Gone or empty for a moment: the last one stays in use.
        file.write_text("")
        assert await store.get(f"{PREFIX}rotated") is not None
        file.unlink()
        assert await store.get(f"{PREFIX}rotated") is not None
    finally:
        await store.close()

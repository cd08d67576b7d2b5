"""The service instance and the prepared query, on a real Consul and through its real DNS."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from typing import TYPE_CHECKING, Any, TypeVar

import dns.asyncresolver
import dns.resolver
import msgspec
import pytest

from rebootd.consul.client import connect
from rebootd.consul.health import HealthThread
from rebootd.consul.registry import Registration, Registry, query_body
from rebootd.core.errors import StoreError
from tests.support.cluster import dev_agent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from rebootd.consul.client import Consul
    from tests.support.cluster import Agent

T = TypeVar("T")


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    """An agent of our own: these tests put its node into maintenance."""
    with dev_agent() as made:
        yield made


@pytest.fixture
async def client(agent: Agent) -> AsyncIterator[Consul]:
    made = connect(agent.settings)
    yield made
    await made.close()


@pytest.fixture
def health() -> Iterator[HealthThread]:
    with HealthThread(hung_after=60.0) as thread:
        yield thread


@pytest.fixture
async def registry(client: Consul, health: HealthThread) -> AsyncIterator[Registry]:
    name = f"rebootd-{uuid.uuid4().hex[:8]}"
    made = Registry(client, registration(name, health), look_every=0.1)
    yield made
    await made.deregister()


def registration(name: str, health: HealthThread, port: int = 8473) -> Registration:
    return Registration(
        id=f"{name}-{uuid.uuid4().hex[:8]}",
        name=name,
        address="127.0.0.1",
        port=port,
        check_url=health.url("127.0.0.1"),
        tags=("metrics",),
        meta={"rack": "r1"},
    )


async def until(question: Callable[[], Awaitable[T]], what: str, timeout: float = 10.0) -> T:
    try:
        async with asyncio.timeout(timeout):
            while True:
                with contextlib.suppress(StoreError):
                    if answer := await question():
                        return answer
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"waited {timeout:g} s for: {what}")


@contextlib.asynccontextmanager
async def running(registry: Registry) -> AsyncIterator[None]:
    task = asyncio.create_task(registry.run())
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait({task})


async def srv(agent: Agent, name: str) -> list[tuple[str, int]]:
    """What a machine's resolver gets for SRV ``name``: target and port, or nothing."""
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers = ["127.0.0.1"]
    resolver.port = agent.dns_port
    try:
        answer = await resolver.resolve(name, "SRV", lifetime=3.0)
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        return []
    return sorted((str(record.target), record.port) for record in answer)


async def test_registers_with_a_passing_check_and_a_session_can_be_made_at_once(
    client: Consul, registry: Registry
) -> None:
    await registry.register()
    wanted = registry.registration
    assert await registry.registered()
    service = (await client.agent.services())[wanted.id]
    assert (service["Service"], service["Address"], service["Port"]) == (wanted.name, "127.0.0.1", 8473)
    assert (service["Tags"], service["Meta"]) == (["metrics"], {"rack": "r1"})
    assert await status(client, wanted.check_id, "passing")
    session = await client.session.create(checks=list(wanted.session_checks), lock_delay=0)
    await client.session.destroy(session)


async def test_the_query_answers_when_the_node_is_marked_and_the_service_does_not(
    agent: Agent, client: Consul, registry: Registry
) -> None:
    name = registry.registration.name
    async with running(registry):
        by_query = await until(lambda: srv(agent, f"{name}.query.consul"), "the query to answer")
        assert [port for _, port in by_query] == [8473]
        assert await srv(agent, f"{name}.service.consul") == by_query
        try:
            await client.agent.maintenance(True, "a person's reason")
            await put(
                client,
                "/v1/agent/check/register",
                {"Name": "out", "ID": "rebootd", "TTL": "1h", "Status": "critical"},
            )
            await until(lambda: empty(agent, f"{name}.service.consul"), "the service's name to be hidden")
            assert await srv(agent, f"{name}.query.consul") == by_query
            await client.agent.maintenance(False)
            await until(lambda: status(client, "_node_maintenance", ""), "maintenance to end")
            assert await srv(agent, f"{name}.service.consul") == [], "the out mark alone hides the service's name"
            assert await srv(agent, f"{name}.query.consul") == by_query
        finally:
            await client.agent.maintenance(False)
            await client.agent.check.deregister("rebootd")
        await until(lambda: srv(agent, f"{name}.service.consul"), "the service's name to be back")


async def test_an_instance_that_is_dead_drops_out_of_the_query(
    agent: Agent, client: Consul, registry: Registry, health: HealthThread
) -> None:
    name = registry.registration.name
    gone = HealthThread()
    gone.start()
    dead = Registry(client, registration(name, gone, port=8474))
    await dead.register()
    async with running(registry):
        await until(lambda: ports(agent, f"{name}.query.consul", [8473, 8474]), "both instances")
        gone.stop()
        await until(lambda: ports(agent, f"{name}.query.consul", [8473]), "the dead one to drop out")
    await dead.deregister()


async def test_a_lost_registration_and_a_wrong_query_are_put_right(client: Consul, health: HealthThread) -> None:
    name = f"rebootd-{uuid.uuid4().hex[:8]}"
    registry = Registry(client, registration(name, health), look_every=0.05, query_every=0.1)
    wanted = registry.registration
    async with running(registry):
        await until(registry.registered, "the registration")
        await client.agent.service.deregister(wanted.id)
        await until(registry.registered, "the registration again")
        found = await until(lambda: query(client, name), "the query")
        wrong = query_body(name)
        wrong["Service"]["IgnoreCheckIDs"] = []
        await put(client, f"/v1/query/{found['ID']}", wrong)
        await until(lambda: ignores(client, name), "the query to be right again")
        assert (await query(client, name))["ID"] == found["ID"]
    await registry.deregister()
    await registry.deregister()
    assert not await registry.registered()


async def test_many_at_once_make_one_query(client: Consul, health: HealthThread) -> None:
    name = f"rebootd-{uuid.uuid4().hex[:8]}"
    registries = [Registry(client, registration(name, health)) for _ in range(8)]
    await asyncio.gather(*(registry.ensure_query() for registry in registries))
    assert [found["Name"] for found in await client.query.list()].count(name) == 1


async def test_an_operators_addition_to_the_query_stays(client: Consul, registry: Registry) -> None:
    name = registry.registration.name
    await registry.register()
    await registry.ensure_query()
    found = await query(client, name)
    await put(client, f"/v1/query/{found['ID']}", query_body(name) | {"DNS": {"TTL": "7s"}})
    await registry.ensure_query()
    assert (await query(client, name))["DNS"]["TTL"] == "7s"


async def test_is_registered_again_after_the_agent_forgot_everything(health: HealthThread) -> None:
    with dev_agent() as agent:
        client = connect(agent.settings)
        registry = Registry(client, registration("rebootd", health), look_every=0.1)
        async with running(registry):
            await until(lambda: srv(agent, "rebootd.query.consul"), "the first answer")
            await asyncio.to_thread(agent.restart)
            await until(registry.registered, "the registration after the restart")
            # The query is looked at once a minute only; losing Consul's whole state is a disaster, not a restart.
            await registry.ensure_query()
            await until(lambda: srv(agent, "rebootd.query.consul"), "the answer after the restart")
        await client.close()


async def empty(agent: Agent, name: str) -> bool:
    return not await srv(agent, name)


async def ports(agent: Agent, name: str, wanted: list[int]) -> bool:
    return [port for _, port in await srv(agent, name)] == wanted


async def status(client: Consul, check_id: str, wanted: str) -> bool:
    found = (await client.agent.checks()).get(check_id, {})
    return bool(found.get("Status", "") == wanted)


async def query(client: Consul, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next((q for q in await client.query.list() if q["Name"] == name), {})
    return found


async def ignores(client: Consul, name: str) -> bool:
    service = (await query(client, name)).get("Service", {})
    return bool(service.get("IgnoreCheckIDs") == ["rebootd", "_node_maintenance"])


async def put(client: Consul, path: str, body: dict[str, Any]) -> None:
    response = await client.http.request("PUT", path, body=msgspec.json.encode(body))
    assert response.status == 200, response.text

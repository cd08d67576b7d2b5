"""Out mark, names and discovery against a real Consul, and discovery against DNS servers that answer nonsense."""

from __future__ import annotations

import asyncio
import os
import random
import uuid
from typing import TYPE_CHECKING, Any

import dns.message
import dns.rrset
import pytest

from rebootd.agent.discovery import Discovery
from rebootd.agent.host import Host
from rebootd.agent.identity import machine_name
from rebootd.agent.outmark import AgentMark, CatalogMark, MarkKeeper
from rebootd.agent.settings import AgentSettings
from rebootd.consul.client import Consul, connect
from rebootd.consul.settings import ConsulSettings
from rebootd.core.errors import NotFound, RebootdError
from tests.agent.fake import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.support.cluster import Agent


@pytest.fixture
async def consul(dev_consul: Agent) -> AsyncIterator[Consul]:
    client = connect(dev_consul.settings)
    yield client
    await client.close()


def node_checks(dev_consul: Agent, node: str) -> dict[str, dict[str, Any]]:
    return {c["CheckID"]: c for c in dev_consul.ask(f"/v1/health/node/{node}")}


def put(dev_consul: Agent, path: str, body: bytes) -> None:
    dev_consul.ask(path, "PUT", body)


async def test_mark_on_the_agent(dev_consul: Agent, consul: Consul) -> None:
    mark = AgentMark(consul)

    def status() -> str:
        # The catalog follows the agent a moment later.
        return str(node_checks(dev_consul, dev_consul.name).get("rebootd", {}).get("Status", ""))

    put(dev_consul, "/v1/agent/maintenance?enable=true&reason=people", b"")
    try:
        for _ in range(2):
            await mark.apply(True, "why")
            await eventually(lambda: status() == "critical")
            assert await mark.shown()
        put(dev_consul, "/v1/agent/check/pass/rebootd", b"")
        await eventually(lambda: status() == "passing")
        assert not await mark.shown()
        await mark.apply(True, "why")
        await eventually(lambda: status() == "critical")
        for _ in range(2):
            await mark.apply(False, "")
            await eventually(lambda: status() == "")
        assert node_checks(dev_consul, dev_consul.name)["_node_maintenance"]["Notes"] == "people"
    finally:
        put(dev_consul, "/v1/agent/maintenance?enable=false", b"")


async def test_mark_in_the_catalog(dev_consul: Agent, consul: Consul) -> None:
    node = f"host-{uuid.uuid4().hex[:6]}"
    mark = CatalogMark(consul, node)
    with pytest.raises(NotFound, match=node):
        await mark.apply(True, "why")
    put(
        dev_consul,
        "/v1/catalog/register",
        f'{{"Node":"{node}","Address":"10.9.8.7","NodeMeta":{{"rack":"r1"}},"TaggedAddresses":{{"lan":"10.9.8.7"}}}}'.encode(),
    )
    try:
        for _ in range(2):
            await mark.apply(True, "why")
            assert node_checks(dev_consul, node)["rebootd"]["Status"] == "critical"
            assert await mark.shown()
        found = dev_consul.ask(f"/v1/catalog/node/{node}")["Node"]
        assert found["Meta"] == {"rack": "r1"}
        assert found["Address"] == "10.9.8.7"
        for _ in range(2):
            await mark.apply(False, "")
            assert node_checks(dev_consul, node) == {}
            assert not await mark.shown()
    finally:
        # A leader that begins in this Consul with no records would wait for an agent of this node.
        put(dev_consul, "/v1/catalog/deregister", f'{{"Node":"{node}"}}'.encode())


async def test_keeper_goes_on_until_consul_is_back() -> None:
    class Flaky:
        def __init__(self) -> None:
            self.down, self.out, self.tries = True, False, 0

        async def apply(self, out: bool, why: str) -> None:
            self.tries += 1
            if self.down:
                raise NotFound("consul is away")
            self.out = out

        async def shown(self) -> bool:
            return self.out

    flaky, wanted = Flaky(), [True]

    def marked() -> bool:
        return flaky.out

    keeper = MarkKeeper(flaky, lambda: (wanted[0], "why"))
    running = asyncio.create_task(keeper.run())
    assert "cannot be set since 0.5 s: consul is away" in await keeper.reached(True, 0.5)
    flaky.down = False
    assert await keeper.reached(True, 10) == ""
    assert marked()
    wanted[0] = False
    assert await keeper.reached(False, 10) == ""
    assert not marked()
    running.cancel()


async def test_name(dev_consul: Agent, consul: Consul) -> None:
    settings = AgentSettings()
    host = Host(settings)
    assert await machine_name(settings, host, consul, "old") == dev_consul.name
    nowhere = connect(ConsulSettings(address="http://127.0.0.1:1"))
    assert await machine_name(settings, host, nowhere, "old") == "old"
    assert await machine_name(settings, host, nowhere, "", patience=0) == host.hostname()
    assert await machine_name(AgentSettings(mark="catalog"), host, nowhere, "old") == host.hostname()
    assert await machine_name(AgentSettings(name="m"), host, nowhere, "old") == "m"
    await nowhere.close()


async def batches(discovery: Discovery) -> list[list[str]]:
    return [sorted(urls) async for urls in discovery.batches()]


async def test_query_then_service_then_catalog(dev_consul: Agent, consul: Consul) -> None:
    service = f"rebootd-{uuid.uuid4().hex[:6]}"
    settings = AgentSettings(service=service, dns=(f"127.0.0.1:{dev_consul.dns_port}",))
    discovery = Discovery(settings, consul)
    assert await batches(discovery) == []
    for number in range(5):
        body = (
            f'{{"ID":"{service}-{number}","Name":"{service}","Address":"127.0.0.{number + 1}","Port":{8000 + number}}}'
        )
        put(dev_consul, "/v1/agent/service/register", body.encode())
    everyone = sorted(f"http://127.0.0.{n + 1}:{8000 + n}" for n in range(5))
    try:
        await eventually(lambda: len(dev_consul.ask(f"/v1/health/service/{service}")) == 5)
        assert await batches(discovery) == [everyone, everyone], "service and catalog, all five instances"
        query = f'{{"Name":"{service}","Service":{{"Service":"{service}"}}}}'
        put_query = dev_consul.ask("/v1/query", "POST", query.encode())
        assert await batches(discovery) == [everyone] * 3
        dead = AgentSettings(service=service, dns=("127.0.0.1:1",), dns_timeout=0.3)
        assert await batches(Discovery(dead, consul)) == [everyone]
        behind = AgentSettings(service=service, dns=("127.0.0.1:1", settings.dns[0]), dns_timeout=0.3)
        assert (await batches(Discovery(behind, None)))[0] == everyone
        dev_consul.ask(f"/v1/query/{put_query['ID']}", "DELETE")
        # Its service is critical everywhere: DNS hides it, the catalog still tells.
        await AgentMark(consul).apply(True, "why")
        await eventually(lambda: "rebootd" in node_checks(dev_consul, dev_consul.name))
        assert await batches(discovery) == [everyone]
    finally:
        await AgentMark(consul).apply(False, "")
        await eventually(lambda: "rebootd" not in node_checks(dev_consul, dev_consul.name))
        for number in range(5):
            put(dev_consul, f"/v1/agent/service/deregister/{service}-{number}", b"")


class Dns:
    """A DNS server over TCP and UDP whose answers a function makes."""

    def __init__(self, respond: Callable[[dns.message.Message], bytes]) -> None:
        self._respond = respond
        self.server = ""

    async def __aenter__(self) -> Dns:
        async def tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            data = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
            answer = self._respond(dns.message.from_wire(data))
            writer.write(len(answer).to_bytes(2, "big") + answer)
            await writer.drain()
            writer.close()

        self._tcp = await asyncio.start_server(tcp, "127.0.0.1", 0)
        self.server = f"127.0.0.1:{self._tcp.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._tcp.close()


def answering(*sections: tuple[str, ...]) -> Callable[[dns.message.Message], bytes]:
    def respond(query: dns.message.Message) -> bytes:
        response = dns.message.make_response(query)
        name = query.question[0].name
        for lines, section in zip(sections, (response.answer, response.additional), strict=False):
            for line in lines:
                owner, kind, text = line.split(" ", 2)
                if section is response.additional or kind == dns.rdatatype.to_text(query.question[0].rdtype):
                    section.append(dns.rrset.from_text(name if owner == "@" else owner, 0, "IN", kind, text))
        return response.to_wire()

    return respond


NONSENSE: list[Callable[[dns.message.Message], bytes]] = [
    lambda _: b"",
    lambda _: b"\x00",
    lambda q: q.to_wire(),
    lambda q: q.id.to_bytes(2, "big") + os.urandom(60),
    lambda q: dns.message.make_response(q).to_wire(),
    lambda q: dns.message.make_response(q).to_wire()[:-3],
    answering(("@ SRV 1 1 0 a.example.", "@ SRV 1 1 80 .")),
    answering(("@ SRV 1 1 80 unknown.example.",)),
]


@pytest.mark.parametrize("respond", NONSENSE)
async def test_nonsense_from_dns(respond: Callable[[dns.message.Message], bytes]) -> None:
    async with Dns(respond) as server:
        settings = AgentSettings(dns=(server.server,), dns_timeout=0.3)
        assert await batches(Discovery(settings, None, random.Random(1))) == []


async def test_addresses_come_from_additional_records_names_and_queries() -> None:
    respond = answering(
        (
            "@ SRV 1 1 8001 a.example.",
            "@ SRV 1 1 8002 0a000002.addr.dc1.consul.",
            "@ SRV 1 1 8003 c.example.",
            "@ A 10.0.0.3",
        ),
        ("a.example. A 10.0.0.1", "a.example. AAAA 2001:db8::1", "z.example. A 10.9.9.9"),
    )
    async with Dns(respond) as server:
        found = await batches(Discovery(AgentSettings(dns=(server.server,)), None))
    assert found[0] == [
        "http://10.0.0.1:8001",
        "http://10.0.0.2:8002",
        "http://10.0.0.3:8003",
        "http://[2001:db8::1]:8001",
    ]


async def test_catalog_garbage(consul: Consul, monkeypatch: pytest.MonkeyPatch) -> None:
    from rebootd.consul.transport import Response

    good = b'{"Node":{"Address":"10.0.0.1"},"Service":{"Address":"","Port":8473},"Checks":[]}'
    for body, found in {
        b"null": [],
        b"nonsense": [],
        b'[1,{"Node":null},{"Service":{"Port":0}},' + good + b"]": [["http://10.0.0.1:8473"]],
    }.items():

        async def request(*_: object, body: bytes = body, **__: object) -> Response:
            return Response(200, {}, body)

        monkeypatch.setattr(consul.http, "request", request)
        assert await batches(Discovery(AgentSettings(dns=("127.0.0.1:1",), dns_timeout=0.2), consul)) == found


async def test_errors_are_ours(consul: Consul) -> None:
    nowhere = connect(ConsulSettings(address="http://127.0.0.1:1"))
    with pytest.raises(RebootdError):
        await AgentMark(nowhere).apply(True, "why")
    await nowhere.close()

"""The transport under py-consul's endpoints, against a real Consul: what is sent, and what a failure means."""

from __future__ import annotations

import shutil
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from rebootd.consul.binary import locate
from rebootd.consul.client import Consul
from rebootd.consul.http import Http
from rebootd.consul.settings import ConsulSettings
from rebootd.consul.transport import is_write, milliseconds, seconds, within
from rebootd.core.errors import InvalidInput, NotFound, OutcomeUnknown, Refused, TooLarge, Unreachable
from rebootd.store.consul import ConsulStore
from rebootd.store.port import Set
from rebootd.tls import follow
from tests.support.cluster import dev_agent, free_ports
from tests.support.proxy import proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.support.cluster import Agent


@pytest.fixture
async def client(dev_consul: Agent) -> AsyncIterator[Consul]:
    made = Consul(dev_consul.settings)
    yield made
    await made.close()


async def test_endpoints_answer_through_it(client: Consul, prefix: str) -> None:
    assert await client.kv.put(f"{prefix}a b?c", b"\x00\xff", flags=7)
    index, pair = await client.kv.get(f"{prefix}a b?c")
    assert int(index) > 0
    assert (pair["Value"], pair["Flags"]) == (b"\x00\xff", 7)
    assert (await client.kv.get(f"{prefix}none"))[1] is None
    assert await client.kv.delete(f"{prefix}a b?c")
    assert (await client.agent.self())["Member"]["Name"]
    answer = await client.http.request("GET", "/v1/kv/none-such")
    assert (answer.status, answer.text) == (404, "")
    assert "x-consul-index" in answer.headers


async def test_refusals_are_told_apart(client: Consul, prefix: str) -> None:
    with pytest.raises(Refused):
        await client.http.put(lambda answer: answer, "/v1/txn", data='{"not": "a list"}')
    with pytest.raises(TooLarge):
        await client.kv.put(f"{prefix}k", b"x" * 600_000)
    with pytest.raises(NotFound):
        await client.session.renew("11111111-2222-3333-4444-555555555555")
    # A 500 may come from a write that lands all the same.
    with pytest.raises(OutcomeUnknown):
        await client.kv.put(f"{prefix}k", b"x", dc="no-such-dc")
    with pytest.raises(Unreachable):
        await client.kv.get(f"{prefix}k", dc="no-such-dc")


async def test_a_write_whose_answer_is_lost_is_sent_once(dev_consul: Agent, prefix: str) -> None:
    # aiohttp sends a PUT again by itself when a pooled connection breaks; a landed CAS would then look like a conflict.
    async with proxy(dev_consul.ports["http"]) as between:
        store = ConsulStore.open(ConsulSettings(address=f"127.0.0.1:{between.port}"))
        first = (await store.commit([Set(f"{prefix}k", b"1", cas=0)]))[f"{prefix}k"]
        between.requests = 0
        between.lose_answers = True
        with pytest.raises(OutcomeUnknown):
            await store.commit([Set(f"{prefix}k", b"2", cas=first)])
        assert between.requests == 1
        with pytest.raises(Unreachable):
            await store.get(f"{prefix}k")
        between.lose_answers = False
        entry = await store.get(f"{prefix}k")
        assert entry is not None
        assert entry.value == b"2"
        await store.close()


async def test_nobody_listening(prefix: str) -> None:
    settings = ConsulSettings(address=f"http://127.0.0.1:{free_ports(1)[0]}")
    store = ConsulStore.open(settings)
    with pytest.raises(Unreachable):
        await store.get("k")
    with pytest.raises(Unreachable):
        await store.create_session("x")
    # Nothing was sent by this call, which the transport knows; a commit only promises what the port says.
    with pytest.raises(Unreachable):
        await store.client.kv.put("k", "v")
    with pytest.raises(OutcomeUnknown):
        await store.commit([Set("k", b"")])
    await store.close()


async def test_each_call_has_a_time_limit_of_its_own(client: Consul, dev_consul: Agent, prefix: str) -> None:
    await client.kv.put(f"{prefix}k", "v")
    index, _ = await client.kv.get(f"{prefix}k")
    started = time.monotonic()
    with within(0.05):
        # A blocking query is given its own wait on top.
        same, _ = await client.kv.get(f"{prefix}k", index=index, wait="300ms")
        call = client.kv.get(f"{prefix}k")
    assert (same, time.monotonic() - started > 0.28) == (index, True)
    dev_consul.pause()
    try:
        started = time.monotonic()
        with pytest.raises(Unreachable, match=r"within 0\.05 s"):
            await call
        with pytest.raises(Unreachable), within(0.1):
            await client.session.renew("11111111-2222-3333-4444-555555555555")
        with pytest.raises(OutcomeUnknown):
            await client.kv.put(f"{prefix}k", "w", connections_timeout=0.1)
        assert time.monotonic() - started < 2
    finally:
        dev_consul.resume()


async def test_the_datacenter_is_sent_with_every_request(dev_consul: Agent, prefix: str) -> None:
    for name, expected in (("dc1", None), ("elsewhere", OutcomeUnknown)):
        store = ConsulStore.open(ConsulSettings(address=dev_consul.url, datacenter=name))
        if expected is None:
            assert await store.commit([Set(f"{prefix}k", b"")])
        else:
            with pytest.raises(expected, match="No path to datacenter"):
                await store.commit([Set(f"{prefix}k", b"")])
        await store.close()


def test_what_a_lost_answer_leaves_open() -> None:
    assert is_write("PUT", "/v1/txn")
    assert is_write("DELETE", "/v1/kv/x")
    assert not is_write("GET", "/v1/kv/x")
    assert not is_write("PUT", "/v1/session/renew/x")
    assert not is_write("PUT", "/v1/agent/check/pass/x")


@pytest.mark.parametrize(
    ("text", "expected"), [("10s", 10), ("1m30s", 90), ("250ms", 0.25), ("10.5s", 10.5), ("1h0m0s", 3600), ("", 0)]
)
def test_durations(text: str, expected: float) -> None:
    assert seconds(text) == expected
    assert seconds(milliseconds(expected)) == expected


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Agent, Path]]:
    """An agent that demands client certificates, and the folder of the certificates."""
    folder = tmp_path_factory.mktemp("tls")
    for words in (["ca", "create"], ["cert", "create", "-server"], ["cert", "create", "-client"]):
        subprocess.run([str(locate()), "tls", *words], cwd=folder, check=True, capture_output=True)
    config = {
        "ca_file": str(folder / "consul-agent-ca.pem"),
        "cert_file": str(folder / "dc1-server-consul-0.pem"),
        "key_file": str(folder / "dc1-server-consul-0-key.pem"),
        "verify_incoming_https": True,
    }
    with dev_agent(tmp_path_factory.mktemp("agent"), **config) as agent:
        yield agent, folder


@pytest.mark.parametrize(
    ("ca", "cert", "verify", "server_name", "works"),
    [
        (True, True, True, "", True),
        (True, True, True, "server.dc1.consul", True),
        (False, True, False, "", True),
        (True, True, True, "elsewhere.example", False),
        (False, True, True, "", False),
        (True, False, True, "", False),
        (True, False, False, "", False),
    ],
)
async def test_certificates(
    secured: tuple[Agent, Path], ca: bool, cert: bool, verify: bool, server_name: str, works: bool
) -> None:
    agent, folder = secured
    settings = ConsulSettings(
        address=f"https://127.0.0.1:{agent.ports['https']}",
        ca_file=str(folder / "consul-agent-ca.pem") if ca else "",
        cert_file=str(folder / "dc1-client-consul-0.pem") if cert else "",
        key_file=str(folder / "dc1-client-consul-0-key.pem") if cert else "",
        server_name=server_name,
        verify=verify,
    )
    store = ConsulStore.open(settings)
    try:
        if works:
            assert [node.name for node in (await store.watch_nodes(0, 0))[0]] == ["dev"]
        else:
            with pytest.raises(Unreachable):
                await store.watch_nodes(0, 0)
    finally:
        await store.close()


async def test_new_certificates_are_used_without_a_restart(
    secured: tuple[Agent, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "LOOK_EVERY", 0.0)
    agent, folder = secured
    files = {"cert_file": "dc1-client-consul-0.pem", "key_file": "dc1-client-consul-0-key.pem"}
    for name in files.values():
        shutil.copy(folder / name, tmp_path / name)
    http = Http(
        ConsulSettings(
            address=f"https://127.0.0.1:{agent.ports['https']}",
            ca_file=str(folder / "consul-agent-ca.pem"),
            **{setting: str(tmp_path / name) for setting, name in files.items()},  # type: ignore[arg-type]
        )
    )
    contexts = []
    try:
        for content in (None, b"broken", (folder / files["cert_file"]).read_bytes()):
            if content is not None:
                (tmp_path / files["cert_file"]).write_bytes(content)
            # A file that has just changed is given one look to be complete.
            for _ in range(2):
                assert (await http.request("GET", "/v1/status/leader")).status == 200
            assert http._tls is not None
            contexts.append(http._tls.context())
            assert ("PEM" in http._tls.problem) is (content == b"broken")
    finally:
        await http.close()
    # Broken files leave the old context in use, whole ones make a new one.
    assert contexts[0] is contexts[1]
    assert contexts[1] is not contexts[2]


def test_a_certificate_that_cannot_be_read_is_bad_input(tmp_path: Path) -> None:
    for field, variable in (("ca_file", "CONSUL_CACERT"), ("cert_file", "CONSUL_CLIENT_CERT")):
        with pytest.raises(InvalidInput, match=f"consul.{field}"):
            Consul(ConsulSettings.from_env({variable: str(tmp_path / "none")}, address="https://127.0.0.1:1"))

"""Consul, Nomad and what gates ask, with certificates that are no good: each is refused, and the message says why."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from rebootd.consul.http import Http
from rebootd.consul.settings import ConsulSettings
from rebootd.coordinator.drains.nomad_http import NomadHttp, NomadSettings
from rebootd.coordinator.gates.tools import Tools
from rebootd.core.errors import Unreachable
from rebootd.tls.files import TlsFiles
from tests.support.pki import Pki

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


def itself(pki: Pki) -> TlsFiles:
    alone = Pki(pki.folder / "alone", name="itself")
    key = alone.folder / "key.pem"
    key.touch(mode=0o600)
    key.write_bytes(alone.authority.key_pem())
    return TlsFiles(ca=str(pki.ca), cert=str(alone.ca), key=str(key))


BAD: dict[str, tuple[Callable[[Pki], TlsFiles], str, str]] = {
    "expired": (lambda p: p.expired("server", "d1"), "127.0.0.1", "it has expired"),
    "not yet valid": (lambda p: p.early("server", "d1"), "127.0.0.1", "it is not valid yet"),
    "a client's": (lambda p: p.issue("machine", "m1"), "127.0.0.1", "another purpose"),
    "another authority's": (lambda p: Pki(p.folder / "o").server(), "127.0.0.1", "not the one that is trusted"),
    "self-signed": (itself, "127.0.0.1", "it is self-signed"),
    "for another address": (lambda p: p.server(), "127.0.0.2", "it is for another name or address"),
}


async def consul(address: str, ca: str) -> None:
    http = Http(ConsulSettings(address=address, ca_file=ca))
    try:
        await http.request("GET", "/v1/status/leader")
    finally:
        await http.close()


async def consul_write(address: str, ca: str) -> None:
    http = Http(ConsulSettings(address=address, ca_file=ca))
    try:
        await http.request("PUT", "/v1/kv/x", body=b"1")
    finally:
        await http.close()


async def nomad(address: str, ca: str) -> None:
    http = NomadHttp(NomadSettings(address=address, ca_file=ca))
    try:
        await http.get("/v1/nodes", list[Any])
    finally:
        await http.close()


async def nomad_write(address: str, ca: str) -> None:
    http = NomadHttp(NomadSettings(address=address, ca_file=ca))
    try:
        await http.put("/v1/node/x/drain", {})
    finally:
        await http.close()


async def gate(address: str, ca: str) -> None:
    tools = Tools(None, None, TlsFiles(ca=ca))
    try:
        await tools.http_json(f"{address}/api/v1/query", list[Any])
    finally:
        await tools.close()


async def silence(address: str, ca: str) -> None:
    tools = Tools(None, None, TlsFiles(ca=ca))
    try:
        await tools.send("POST", f"{address}/api/v2/silences", {}, {})
    finally:
        await tools.close()


CLIENTS: tuple[Callable[[str, str], Awaitable[None]], ...] = (
    consul,
    consul_write,
    nomad,
    nomad_write,
    gate,
    silence,
)


@asynccontextmanager
async def listening(shown: TlsFiles, heard: list[bytes]) -> AsyncIterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(shown.cert, shown.key)

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(100))
        writer.close()

    server = await asyncio.start_server(hear, "0.0.0.0", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.__name__)
@pytest.mark.parametrize("case", sorted(BAD))
async def test_who_shows_a_bad_certificate_hears_nothing_and_is_told_of(
    case: str, client: Callable[[str, str], Awaitable[None]], pki: Pki
) -> None:
    make, host, said = BAD[case]
    heard: list[bytes] = []
    async with listening(make(pki), heard) as port:
        # Nothing was asked yet, so it is known that nothing was done.
        with pytest.raises(Unreachable, match=said):
            await client(f"https://{host}:{port}", str(pki.ca))
    assert not any(heard)


async def test_consul_under_another_name_is_not_told_to_be_no_daemon(pki: Pki) -> None:
    heard: list[bytes] = []
    async with listening(pki.server(), heard) as port:
        address = f"https://127.0.0.1:{port}"
        http = Http(ConsulSettings(address=address, ca_file=str(pki.ca), server_name="server.dc1.consul"))
        with pytest.raises(Unreachable) as caught:
            await http.request("GET", "/v1/status/leader")
        await http.close()
    assert address in str(caught.value)
    assert "another name or address" in str(caught.value)
    assert "daemon" not in str(caught.value)

"""Attacks by those who have a certificate, and less right than they want, on a real daemon under TLS and roles."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from rebootd.tls.contexts import client_context
from rebootd.tls.files import TlsFiles
from rebootd.tls.identity import SERVER_NAME
from tests.support.pki import Pki, field
from tests.support.secure_daemon import Process, daemon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

TOKEN = "correct-horse"
BEARER = f"Authorization: Bearer {TOKEN}"

PATHS = (
    "/v1/halt",
    "//v1/halt",
    "/v1//halt",
    "/v1/./halt",
    "/v1/%2e/halt",
    "/v1/status/../halt",
    "/v1/status/%2e%2e/halt",
    "/healthz/../v1/halt",
    "/healthz/..%2fv1/halt",
    "/healthz%2f..%2fv1%2fhalt",
    "/healthz/%2e%2e/v1/halt",
    "/v1%2fhalt",
    "/%76%31/halt",
    "/v1/h%61lt",
    "/V1/HALT",
    "/v1/halt/",
    "/v1/halt;x=/healthz",
    "/v1/halt%00",
    "/v1/halt?by=alice&role=admin",
    "/v1/halt%3f/healthz",
    "/v1/halt#/healthz",
    "/\\v1/halt",
    "https://server.rebootd/v1/halt",
    "https://healthz/v1/halt",
    "*",
)
"""Spellings of one route that a viewer and a machine may not ask."""
HEADS = (
    "X-Forwarded-For: 127.0.0.1",
    "X-Forwarded-User: carol",
    "X-Remote-User: carol",
    "X-Real-IP: 127.0.0.1\r\nForwarded: for=127.0.0.1",
    "X-HTTP-Method-Override: GET",
    "X-Original-URL: /healthz\r\nX-Rewrite-URL: /healthz",
    "X-SSL-Client-S-DN: CN=carol,OU=admin",
    "X-Consul-Token: root",
    BEARER,
    f"{BEARER}\r\nX-Consul-Token: root",
    "Authorization: Basic Y2Fyb2w6",
)
METHODS = ("HEAD", "OPTIONS", "TRACE", "PATCH", "CONNECT", "PROPFIND", "put", "Put", "GET", "POST")


class Attacker:
    """Whoever holds these files."""

    def __init__(self, real: Process, files: TlsFiles) -> None:
        self._real = real
        self._context = client_context(files, field)

    async def send(self, method: str, path: str, head: str = "", body: object = None) -> tuple[int, bytes]:
        """The status and body of the answer to these very bytes; 0 when there is none."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self._real.port, ssl=self._context, server_hostname=SERVER_NAME
        )
        try:
            data = json.dumps(body).encode() if body is not None else b""
            more = f"{head}\r\n" if head else ""
            start = (
                f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}Content-Length: {len(data)}\r\n\r\n"
            )
            writer.write(start.encode() + data)
            async with asyncio.timeout(10):
                answer = await reader.read()
        except ConnectionError:
            return 0, b""
        finally:
            writer.close()
        head_, _, rest = answer.partition(b"\r\n\r\n")
        return (int(head_.split()[1]) if head_ else 0), rest


class Scene:
    def __init__(self, real: Process, pki: Pki) -> None:
        self.real = real
        self.who = {
            role: Attacker(real, pki.issue(role, name))
            for role, name in (("machine", "m1"), ("viewer", "bob"), ("operator", "alice"), ("admin", "carol"))
        }
        self.nobody = Attacker(real, TlsFiles(ca=str(pki.ca)))

    async def seen(self) -> Any:
        """What an attacker would have changed."""
        _, status = await self.who["admin"].send("GET", "/v1/status")
        _, events = await self.who["admin"].send("GET", "/v1/events")
        said = json.loads(status)
        changes = [e for e in map(json.loads, events.splitlines()) if e.get("cause") not in {"", None}]
        return said["halt"], said["cycles"], [e["cause"] for e in changes if e["kind"] != "transition"]


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    pki = Pki(tmp_path / "pki")
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text(TOKEN)
    audit = tmp_path / "audit.log"
    async with daemon(tmp_path, pki.server(), "--token-file", str(token), "--audit-log", str(audit)) as real:
        found = Scene(real, pki)
        async with asyncio.timeout(30):
            while (await found.who["admin"].send("GET", "/v1/status"))[0] != 200:
                await asyncio.sleep(0.05)
        yield found


@pytest.mark.timeout(120)
async def test_nobody_gets_further_than_his_certificate(scene: Scene, tmp_path: Path) -> None:
    before = await scene.seen()
    low = [scene.who["machine"], scene.who["viewer"], scene.nobody]
    refused = {0, 400, 401, 403, 404, 405}
    for attacker in low:
        for path in PATHS:
            status, said = await attacker.send("PUT", path, body={"by": "carol"})
            assert status in refused, (path, status, said)
        for head in HEADS:
            if attacker is scene.nobody and BEARER in head:
                continue  # the shared token, which is whom it says
            status, said = await attacker.send("PUT", "/v1/halt", head, {"by": "carol", "role": "admin"})
            assert status in {401, 403}, (head, status, said)
        for method in METHODS:
            status, said = await attacker.send(method, "/v1/halt")
            assert status in refused, (method, status, said)
        assert (await attacker.send("POST", "/v1/cycles", body={"id": "k", "selector": "*"}))[0] in {401, 403}
    # A machine reads nothing, by whatever method, and speaks for itself alone.
    machine = scene.who["machine"]
    for method in ("GET", "HEAD"):
        for path in ("/v1/status", "/metrics", "/v1/machines/m1", "/v1/audit", "/v1/openapi.json", "//metrics"):
            assert (await machine.send(method, path))[0] in {403, 404}, (method, path)
    for path in ("/v1/machines/m2/permit", "/v1/machines/m%32/permit", "/v1/machines/m1%2f..%2fm2/permit"):
        asked = {"name": "m2", "boot_id": "b", "nonce": "n"}
        assert (await machine.send("POST", path, body=asked))[0] in {400, 403, 404}
    asked = {"name": "m2", "boot_id": "b", "nonce": "n"}
    assert (await machine.send("POST", "/v1/machines/m1/permit", body=asked))[0] == 400
    # What needs an admin is not an operator's, however it is asked for.
    operator = scene.who["operator"]
    for field_ in ({"emergency": True}, {"skip_gates": ["g"]}, {"emergency": True, "emergency ": False}):
        body = {"id": "k", "selector": "*", "reason": "r", "by": "carol", **field_}
        assert (await operator.send("POST", "/v1/cycles", body=body))[0] in {400, 403}
    assert await scene.seen() == before
    # And who did it is whom the certificate names, at the address that the connection had.
    status, _ = await operator.send("PUT", "/v1/halt", HEADS[0].replace("127.0.0.1", "10.9.9.9"), {"by": "carol"})
    assert status == 200
    lines = [json.loads(line) for line in (tmp_path / "audit.log").read_text().splitlines()]
    entry = next(line for line in lines if line["kind"] == "entry")
    assert (entry["who"]["identity"], entry["who"]["address"], entry["by"]) == ("alice", "127.0.0.1", "alice")
    # The attacks are there too, a few of each.
    tried = {line["who"]["identity"] for line in lines if line["kind"] == "refused"}
    assert {"m1", "bob", "alice"} <= tried
    assert len(lines) < 50

"""Gates that are asked over https, by services that want a certificate of us."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from aiohttp import web

from rebootd.coordinator.gates.sight import Eyes
from rebootd.coordinator.gates.tools import Tools
from rebootd.coordinator.silences import Alertmanager
from rebootd.core.errors import InvalidInput, Unreachable
from rebootd.core.gates import Firing, Samples
from rebootd.core.policy_gates import Comparison, Gate, NoAlerts, NomadQuorum, PrometheusQuery, parse_matchers
from rebootd.tls import follow
from rebootd.tls.authority import utc_now
from tests.support.pki import Pki

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rebootd.tls.files import TlsFiles


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


@asynccontextmanager
async def services(pki: Pki) -> AsyncIterator[str]:
    """Prometheus, Alertmanager and Nomad in one, behind mutual TLS."""
    cert, key = pki.authority.issue("server", "gates", 1, utc_now(), ips=["127.0.0.1"])
    at, secret = pki.folder / "gates.pem", pki.folder / "gates-key.pem"
    at.write_bytes(cert)
    secret.touch(mode=0o600)
    secret.write_bytes(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(pki.ca)
    context.load_cert_chain(at, secret)

    async def answer(request: web.Request) -> web.Response:
        body: Any = []
        if request.path == "/api/v1/query":
            body = {"status": "success", "data": {"resultType": "scalar", "result": [1, "3"]}}
        return web.json_response(body)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    try:
        yield f"https://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def ours(pki: Pki) -> TlsFiles:
    return pki.issue("viewer", "rebootd", crl=False)


def gates(url: str) -> list[Gate]:
    query = PrometheusQuery(address=url, query="3", holds_when=Comparison("<", 5))
    alerts = NoAlerts(address=url, matchers=parse_matchers('severity="page"', "m"))
    return [Gate(name="p", test=query), Gate(name="a", test=alerts)]


async def test_with_our_certificate_every_gate_is_read(pki: Pki) -> None:
    async with services(pki) as url:
        eyes = Eyes(None, tls=ours(pki))
        try:
            assert [await eyes.read(gate, {}) for gate in gates(url)] == [Samples((("", 3.0),)), Firing(())]
            # What Nomad's servers are is asked there too: the answer is none of theirs, but it came.
            with pytest.raises(Unreachable, match="cannot be read"):
                await eyes.read(Gate(name="n", test=NomadQuorum(address=url)), {})
        finally:
            await eyes.close()
        alerts = Alertmanager(Tools(None, tls=ours(pki)))
        try:
            assert await alerts.silences(url, "rebootd") == []
        finally:
            await alerts.close()


async def test_without_one_or_without_the_authority_none_is(pki: Pki) -> None:
    lone = msgspec.structs.replace(ours(pki), cert="", key="")
    stranger = msgspec.structs.replace(ours(pki), ca=str(Pki(pki.folder / "other").ca))
    async with services(pki) as url:
        for tls in (None, lone, stranger):
            eyes = Eyes(None, tls=tls)
            try:
                for gate in gates(url):
                    with pytest.raises(Unreachable, match=url):
                        await eyes.read(gate, {})
            finally:
                await eyes.close()


async def test_a_new_certificate_is_taken_as_it_comes(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "LOOK_EVERY", 0.0)
    files = ours(pki)
    async with services(pki) as url:
        good, late = Path(files.cert).read_bytes(), pki.expired("viewer", "rebootd")
        key = Path(files.key).read_bytes()
        Path(files.cert).write_bytes(Path(late.cert).read_bytes())
        Path(files.key).write_bytes(Path(late.key).read_bytes())
        eyes = Eyes(None, tls=files)
        try:
            with pytest.raises(Unreachable):
                await eyes.read(gates(url)[0], {})
            Path(files.cert).write_bytes(good)
            Path(files.key).write_bytes(key)
            assert await eyes.read(gates(url)[0], {}) == Samples((("", 3.0),))
        finally:
            await eyes.close()


def test_files_that_cannot_be_used_are_refused_at_the_start(pki: Pki) -> None:
    files = ours(pki)
    other = ours(pki)
    empty = pki.folder / "empty.pem"
    empty.touch()
    bad = {
        "gate-ca": msgspec.structs.replace(files, ca=str(empty)),
        "gate-key": msgspec.structs.replace(files, key=""),
        "gate-cert": msgspec.structs.replace(files, key=other.key),
    }
    for field, given in sorted(bad.items()):
        with pytest.raises(InvalidInput, match=field):
            Tools(None, tls=given)
    Path(files.key).chmod(0o644)
    with pytest.raises(InvalidInput, match="others cannot read"):
        Tools(None, tls=files)

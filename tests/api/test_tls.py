"""Mutual TLS on a real port: who is let in, who is told why not, and what changes while everybody waits."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
import pytest
from cryptography.x509 import load_pem_x509_certificate

from rebootd.api.door import DOOR
from rebootd.tls import follow
from rebootd.tls.contexts import client_context
from rebootd.tls.files import TlsFiles
from rebootd.tls.identity import SERVER_NAME
from rebootd.tls.words import why
from tests.api.fake_desk import FakeDesk, FakeOffice, fleet, report_of
from tests.api.secure import secured
from tests.support.pki import Pki, field

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "LOOK_EVERY", 0.02)


async def eventually(true: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.01)


def bare(files: TlsFiles, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    """A client that shows what it has, however bad it is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(files.ca)
    context.maximum_version = version
    if files.cert:
        context.load_cert_chain(files.cert, files.key)
    return context


def lone(pki: Pki) -> TlsFiles:
    """A certificate that vouches for itself."""
    alone = Pki(pki.folder / "alone", name="itself")
    key = alone.folder / "key.pem"
    key.touch(mode=0o600)
    key.write_bytes(alone.authority.key_pem())
    return TlsFiles(ca=str(pki.ca), cert=str(alone.ca), key=str(key))


def revoked(pki: Pki) -> TlsFiles:
    files = pki.issue("admin", "alice")
    pki.revoke(files)
    return files


BAD: dict[str, tuple[Callable[[Pki], TlsFiles], str, str]] = {
    "expired": (lambda p: p.expired("admin", "alice"), "it has expired", "has expired"),
    "not yet valid": (lambda p: p.early("admin", "alice"), "not valid yet", "not yet"),
    "a daemon's": (lambda p: p.server(), "another purpose", "another purpose"),
    "another authority's": (
        lambda p: msgspec.structs.replace(Pki(p.folder / "o").issue("admin", "alice"), ca=str(p.ca)),
        "not the one that is trusted",
        "does not know the authority",
    ),
    "self-signed": (lone, "self-signed", "does not know the authority"),
    "revoked": (revoked, "it is revoked", "is revoked"),
    "none": (lambda p: TlsFiles(ca=str(p.ca)), "no certificate was shown", "wants a certificate"),
}


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("case", sorted(BAD))
async def test_both_sides_are_told_why_a_handshake_failed(case: str, version: ssl.TLSVersion, pki: Pki) -> None:
    make, here, there = BAD[case]
    files = make(pki)
    async with secured(pki) as api:
        with pytest.raises((aiohttp.ClientError, OSError)) as caught:
            await api.ask(bare(files, version), "GET", "/v1/status")
        assert there in why(caught.value)
        assert any(here in said for said in api.refused)
        # Whoever fails costs the others nothing.
        assert (await api.ask(pki.issue("viewer", "bob"), "GET", "/v1/status"))[0] == 200


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_nothing_older_than_tls_1_2_is_spoken(pki: Pki) -> None:
    async with secured(pki) as api:
        old = bare(pki.issue("viewer", "bob"), ssl.TLSVersion.TLSv1_1)
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.raises(aiohttp.ClientError):
            await api.ask(old, "GET", "/v1/status")
        assert api.refused


async def test_plain_http_is_no_answer(pki: Pki) -> None:
    async with secured(pki) as api, aiohttp.ClientSession() as client:
        with pytest.raises(aiohttp.ClientError):
            await client.get(api.url.replace("https", "http") + "/healthz")
        assert any("plain HTTP" in said for said in api.refused)


async def test_a_machine_speaks_for_itself_alone(pki: Pki) -> None:
    async with secured(pki) as api:
        desk = api.office.held
        assert desk is not None
        mine, other = (desk.state.machines[name] for name in ("r1m1", "r1m2"))
        files = pki.issue("machine", "r1m1")
        wish = report_of(mine, wait=0.0)
        assert (await api.ask(files, "POST", "/v1/machines/r1m1/report", wish))[0] == 200
        status, said = await api.ask(files, "POST", "/v1/machines/r1m2/report", report_of(other, wait=0.0))
        assert (status, said["error"]) == (403, "the certificate is machine r1m1's: it may not speak for r1m2")
        # In the name of another in the body, at its own address.
        assert (await api.ask(files, "POST", "/v1/machines/r1m1/report", report_of(other, wait=0.0)))[0] == 400
        asked = {"name": "r1m2", "boot_id": other.boot_id, "nonce": "n1"}
        assert (await api.ask(files, "POST", "/v1/machines/r1m2/permit", asked))[0] == 403
        # What the path hides after decoding is another name all the same.
        assert (await api.ask(files, "POST", "/v1/machines/r1m%32/report", report_of(other, wait=0.0)))[0] == 403


async def test_who_did_it_is_whom_the_certificate_names(pki: Pki) -> None:
    async with secured(pki) as api:
        body = {"by": "mallory", "reason": "a test"}
        status, done = await api.ask(pki.issue("operator", "alice"), "PUT", "/v1/holds/machine/r1m1", body)
        assert status == 200
        assert "alice" in str(done)
        assert "mallory" not in str(done)
        assert api.office.held is not None
        assert api.office.held.state.machine_holds["r1m1"].by == "alice"


async def test_no_token_makes_more_of_a_certificate(pki: Pki) -> None:
    async with secured(pki, token="correct-horse") as api:
        bearer = {"Authorization": "Bearer correct-horse"}
        nobody = TlsFiles(ca=str(pki.ca))
        assert (await api.ask(pki.issue("viewer", "bob"), "PUT", "/v1/halt", {}, **bearer))[0] == 403
        assert (await api.ask(nobody, "PUT", "/v1/halt", {}, **bearer))[0] == 200
        status, said = await api.ask(nobody, "PUT", "/v1/halt", {}, Authorization="Bearer wrong")
        assert status == 401
        assert "wrong" not in said["error"]


async def test_a_certificate_of_nobody_is_a_401(pki: Pki) -> None:
    files = pki.issue("viewer", "bob")
    cert, key = pki.authority.issue("root", "bob", 1, pki_now())
    Path(files.cert).write_bytes(cert)
    Path(files.key).write_bytes(key)
    async with secured(pki) as api:
        status, said = await api.ask(bare(files), "GET", "/v1/status")
        assert (status, "unknown role 'root'" in said["error"]) == (401, True)


def pki_now() -> Any:
    from rebootd.tls.authority import utc_now

    return utc_now()


# ------------------------------------------------------------------------------------------------ while they wait


class Line:
    """One connection that stays open."""

    def __init__(self, url: str, files: TlsFiles) -> None:
        self._url = url
        self._context = client_context(files, field)
        self._client = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1))

    async def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        data = msgspec.json.encode(body) if body is not None else None
        async with self._client.request(
            method,
            self._url + path,
            data=data,
            ssl=self._context,
            server_hostname=SERVER_NAME,
            allow_redirects=False,
        ) as response:
            text = await response.read()
            return response.status, msgspec.json.decode(text) if text else None

    async def close(self) -> None:
        await self._client.close()


async def shown(url: str, ca: str, files: TlsFiles) -> str:
    """The serial number of the certificate that a new connection is shown."""
    port = int(url.rpartition(":")[2])
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=bare(files), server_hostname=SERVER_NAME)
    try:
        return str(writer.get_extra_info("peercert")["serialNumber"])
    finally:
        writer.close()


def put(new: TlsFiles, old: TlsFiles) -> None:
    """As tools do it that renew certificates: one file after the other."""
    for name in ("cert", "key"):
        Path(getattr(new, name)).replace(getattr(old, name))


async def test_waiting_agents_outlive_new_certificates(pki: Pki) -> None:
    files = pki.server()
    office = FakeOffice(FakeDesk(fleet()))
    async with secured(pki, files=files, office=office) as api:
        machine, viewer = pki.issue("machine", "r1m1"), pki.issue("viewer", "bob")
        line = Line(api.url, machine)
        assert office.held is not None
        known = office.held.state.machines["r1m1"]
        waiting = asyncio.create_task(
            line.ask("POST", "/v1/machines/r1m1/report", report_of(known, wait=30.0, index=known.version))
        )
        await eventually(lambda: api.serving.gate.open == 1)
        first = await shown(api.url, files.ca, viewer)
        for _ in range(3):
            before = api.tls.state
            put(pki.server(), files)
            await eventually(lambda before=before: api.tls.state is not before)  # type: ignore[misc]
        last = await shown(api.url, files.ca, viewer)
        assert last != first
        assert not waiting.done()
        # The connection is the old one, and it is answered.
        desk = office.held
        office.elect(elsewhere="https://other:1")
        await desk.end()
        status, _ = await asyncio.wait_for(waiting, 10)
        assert status == 307
        await line.close()


async def test_broken_new_files_leave_the_old_ones_in_use(pki: Pki) -> None:
    files, viewer = pki.server(), pki.issue("viewer", "bob")
    async with secured(pki, files=files) as api:
        good = api.tls.state
        for content, said in (
            (b"", "it is empty"),
            (b"noise", "a PEM file"),
            (Path(viewer.key).read_bytes(), "belongs"),
        ):
            Path(files.key).write_bytes(content)
            await eventually(lambda said=said: said in api.tls.problem)  # type: ignore[misc]
            assert api.tls.state is good
            assert (await api.ask(viewer, "GET", "/v1/status"))[0] == 200
        put(pki.expired("server", "d1"), files)
        await eventually(lambda: "has expired" in api.tls.problem)
        put(pki.server(), files)
        await eventually(lambda: not api.tls.problem and api.tls.state is not good)
        assert (await api.ask(viewer, "GET", "/v1/status"))[0] == 200


async def test_a_kick_loads_at_once(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "LOOK_EVERY", 3600.0)
    files = pki.server()
    async with secured(pki, files=files) as api:
        before = api.tls.state
        put(pki.server(), files)
        api.tls.kick()
        await eventually(lambda: api.tls.state is not before)


async def test_an_open_connection_ends_with_its_certificate(pki: Pki) -> None:
    async with secured(pki) as api:
        files, other = pki.issue("viewer", "bob"), pki.issue("viewer", "carol")
        line, beside = Line(api.url, files), Line(api.url, other)
        assert (await line.ask("GET", "/v1/status"))[0] == 200
        assert (await beside.ask("GET", "/v1/status"))[0] == 200
        pki.revoke(files)
        await eventually(lambda: bool(api.tls.state.revoked))
        status, said = await line.ask("GET", "/v1/status")
        assert (status, said["error"].partition(" of ")[2]) == (401, "rebootd://viewer/bob is revoked")
        assert (await beside.ask("GET", "/v1/status"))[0] == 200
        with pytest.raises(aiohttp.ClientError):
            await api.ask(files, "GET", "/v1/status")
        await line.close()
        await beside.close()


async def test_a_session_of_tls_1_2_that_is_resumed_is_looked_at_as_any_other(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Python cannot keep OpenSSL from resuming it by its id, as long as the files are the same.
    files = pki.issue("viewer", "bob")
    context = bare(files, ssl.TLSVersion.TLSv1_2)

    def ask(port: int, session: ssl.SSLSession | None) -> tuple[bytes, ssl.SSLSession | None, bool | None]:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=SERVER_NAME, session=session) as wire,
        ):
            wire.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return wire.recv(4096)[9:12], wire.session, wire.session_reused

    async with secured(pki) as api:
        _, session, _ = await asyncio.to_thread(ask, api.serving.port, None)
        assert (await asyncio.to_thread(ask, api.serving.port, session))[::2] == (b"200", True)
        # On such a connection, too, each request asks whether the certificate still counts.
        number = load_pem_x509_certificate(Path(files.cert).read_bytes()).serial_number
        guard = api.serving._runner.app[DOOR]._guard
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(guard, "_revoked", lambda: frozenset({number}))
            assert (await asyncio.to_thread(ask, api.serving.port, session))[::2] == (b"401", True)
        # And with the new files nothing of the old sessions counts.
        pki.revoke(files)
        await eventually(lambda: bool(api.tls.state.revoked))
        with pytest.raises(OSError, match=r"(?i)revoked"):
            await asyncio.to_thread(ask, api.serving.port, session)

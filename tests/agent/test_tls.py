"""An agent and whoever claims to be its coordinator: only a daemon's certificate counts, wherever DNS points."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
import pytest
from aiohttp import web

from rebootd.agent.client import Coordinators, NoCoordinator
from rebootd.agent.discovery import Discovery
from rebootd.agent.settings import AgentSettings, validate
from rebootd.core.errors import Forbidden, InvalidInput
from rebootd.core.wire import Answer, Report
from rebootd.tls import authority
from rebootd.tls.files import TlsFiles
from tests.agent.fake import problem
from tests.support.pki import Pki

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


REPORT = Report(name="m", machine_id="i", boot_id="b")
GOOD = msgspec.json.encode(Answer(index=3, epoch=1, state="in-service"))


class Claimant:
    """Whoever listens at an address. ``heard`` is what it was sent: a header and a name."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []
        self.location = ""
        self.status = 200
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        cert = request.transport.get_extra_info("peercert") if request.transport else None
        shown = dict(pair[0] for pair in cert["subject"])["commonName"] if cert else ""
        self.heard.append((request.headers.get("Authorization", ""), shown))
        if self.location:
            return web.Response(status=307, headers={"Location": self.location})
        return web.Response(body=GOOD) if self.status == 200 else problem(self.status)


@asynccontextmanager
async def listening(files: TlsFiles | None) -> AsyncIterator[Claimant]:
    made = Claimant()
    app = web.Application()
    app.router.add_post("/v1/machines/m/report", made.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    context = None
    if files is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_OPTIONAL
        context.load_verify_locations(files.ca)
        context.load_cert_chain(files.cert, files.key)
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    made.url = f"{'https' if files else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield made
    finally:
        await runner.cleanup()


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


def agent(pki: Pki, tmp_path: Path, *urls: str) -> Coordinators:
    files = pki.issue("machine", "m")
    (tmp_path / "token").write_text("s3cret\n")

    async def find() -> AsyncIterator[list[str]]:
        yield list(urls)

    settings = AgentSettings(
        tls_ca=files.ca,
        tls_cert=files.cert,
        tls_key=files.key,
        tls_crl=files.crl,
        token_file=str(tmp_path / "token"),
        answer_grace=10.0,
    )
    return Coordinators(settings, find)


async def test_a_daemon_is_known_by_its_certificate_and_not_by_its_address(pki: Pki, tmp_path: Path) -> None:
    async with listening(pki.server()) as daemon:
        ours = agent(pki, tmp_path, daemon.url)
        assert (await ours.report("m", REPORT)).index == 3
        await ours.close()
    assert daemon.heard == [("Bearer s3cret", "m")]


def machine(pki: Pki) -> TlsFiles:
    return pki.issue("machine", "web-1")


def admin(pki: Pki) -> TlsFiles:
    return pki.issue("admin", "mallory")


def of_another_authority(pki: Pki) -> TlsFiles:
    return Pki(pki.folder / "other").server()


def revoked(pki: Pki) -> TlsFiles:
    files = pki.server()
    pki.revoke(files)
    return files


def expired(pki: Pki) -> TlsFiles:
    return pki.expired("server", "d1")


def early(pki: Pki) -> TlsFiles:
    return pki.early("server", "d1")


def self_signed(pki: Pki) -> TlsFiles:
    alone = Pki(pki.folder / "alone", name="itself")
    key = alone.folder / "key.pem"
    key.touch(mode=0o600)
    key.write_bytes(alone.authority.key_pem())
    return TlsFiles(ca=str(pki.ca), cert=str(alone.ca), key=str(key))


def of_another_service(pki: Pki) -> TlsFiles:
    """A server's, of the same authority, that is no daemon's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(authority, "SERVER_NAME", "consul.example")
        return pki.server()


FALSE = {
    machine: "another purpose",
    admin: "another purpose",
    of_another_authority: "not the one that is trusted",
    revoked: "revoked",
    expired: "has expired",
    early: "not valid yet",
    self_signed: "self-signed",
    of_another_service: "no daemon's",
}


@pytest.mark.parametrize("who", FALSE, ids=lambda who: who.__name__)
async def test_a_false_coordinator_hears_nothing(who: object, pki: Pki, tmp_path: Path) -> None:
    assert callable(who)
    async with listening(who(pki)) as false:
        ours = agent(pki, tmp_path, false.url)
        with pytest.raises(NoCoordinator, match=FALSE[who]):
            await ours.report("m", REPORT)
        await ours.close()
    assert false.heard == []


async def test_a_redirect_to_a_false_coordinator_leads_nowhere(pki: Pki, tmp_path: Path) -> None:
    async with listening(pki.server()) as daemon, listening(machine(pki)) as false, listening(None) as plain:
        ours = agent(pki, tmp_path, daemon.url)
        for other, why in ((false, "another purpose"), (plain, "redirects to")):
            daemon.location = other.url
            with pytest.raises(NoCoordinator, match=why):
                await ours.report("m", REPORT)
            assert other.heard == []
        # To another daemon of the fleet it does, whether or not discovery names it.
        async with listening(pki.server("d2")) as leader:
            daemon.location = leader.url
            assert (await ours.report("m", REPORT)).index == 3
            assert leader.heard == [("Bearer s3cret", "m")]
            assert ours.leader == leader.url
        await ours.close()


async def test_plain_http_is_not_spoken(pki: Pki, tmp_path: Path) -> None:
    async with listening(None) as plain:
        ours = agent(pki, tmp_path, plain.url.replace("http:", "https:"))
        with pytest.raises(NoCoordinator, match="does not speak TLS"):
            await ours.report("m", REPORT)
        await ours.close()
    assert plain.heard == []
    files = pki.issue("machine", "m")
    with pytest.raises(InvalidInput, match="coordinators"):
        validate({"tls_ca": files.ca, "coordinators": [plain.url]})
    settings = validate({"tls_ca": files.ca, "tls_cert": files.cert, "tls_key": files.key})
    assert Discovery(settings, None)._url("10.0.0.1", 8473) == "https://10.0.0.1:8473"


async def test_who_is_refused_is_told_and_asks_nobody_else(pki: Pki, tmp_path: Path) -> None:
    async with listening(pki.server()) as daemon, listening(pki.server("d2")) as other:
        daemon.status = 403
        ours = agent(pki, tmp_path, daemon.url, other.url)
        with pytest.raises(Forbidden):
            await ours.report("m", REPORT)
        await ours.close()
    assert other.heard == []


def test_bad_files_are_told_at_the_start(pki: Pki) -> None:
    files = pki.issue("machine", "m")
    for given, field in (
        ({"tls_cert": files.cert, "tls_key": files.key}, "tls_ca"),
        ({"tls_ca": files.ca, "tls_cert": files.cert}, "tls_key"),
        ({"tls_ca": "/nowhere.pem"}, "tls_ca"),
        ({"tls_ca": files.ca, "tls_cert": files.cert, "tls_key": files.cert}, "tls_key"),
    ):
        with pytest.raises(InvalidInput) as caught:
            validate(given)
        assert caught.value.field == field

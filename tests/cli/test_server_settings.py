"""The flags of ``rebootd server`` that protect the wire: what starts, and what does not."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import click
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from rebootd.api.listen import serve
from rebootd.api.turns import Turns
from rebootd.cli.server_settings import ServerSettings, server_options, settings_of
from rebootd.cli.server_tls import Protection
from rebootd.core.caller import Role
from rebootd.core.errors import InvalidInput
from tests.support.pki import Pki

if TYPE_CHECKING:
    from pathlib import Path

from prometheus_client import CollectorRegistry


def settings(*words: str, **environ: str) -> ServerSettings:
    found: list[ServerSettings] = []

    @click.command(context_settings={"auto_envvar_prefix": "REBOOTD"})
    @server_options
    def command(**flags: Any) -> None:
        found.append(settings_of(flags, {}))

    with pytest.MonkeyPatch.context() as patch:
        for name, value in environ.items():
            patch.setenv(name, value)
        command.main(list(words), standalone_mode=False)
    return found[0]


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


def tls(pki: Pki) -> list[str]:
    files = pki.server()
    return ["--tls-ca", files.ca, "--tls-cert", files.cert, "--tls-key", files.key, "--tls-crl", files.crl]


async def test_with_certificates_a_daemon_listens_anywhere(pki: Pki) -> None:
    found = settings("--listen", "0.0.0.0:8473", *tls(pki))
    assert found.tls.on
    protection = Protection(found, CollectorRegistry())
    assert protection.context is not None
    assert protection.guard.wanted == "a certificate of this fleet's authority"
    await protection.close()
    by_environment = settings("--listen", "0.0.0.0:8473", REBOOTD_TLS_CA=found.tls.ca, REBOOTD_TLS_CERT=found.tls.cert)
    assert by_environment.tls.cert == found.tls.cert


async def test_a_handshake_without_a_certificate_is_for_tokens_alone(pki: Pki, tmp_path: Path) -> None:
    import ssl

    token = tmp_path / "token"
    token.write_text("correct-horse")
    token.chmod(0o600)
    for more, mode in (
        ([], ssl.CERT_REQUIRED),
        (["--token-file", str(token)], ssl.CERT_OPTIONAL),
        (["--consul-role", "ops=operator"], ssl.CERT_OPTIONAL),
    ):
        protection = Protection(settings(*tls(pki), *more), CollectorRegistry())
        assert protection.context is not None
        assert protection.context.verify_mode is mode
        assert protection.context.minimum_version is ssl.TLSVersion.TLSv1_2
        await protection.close()


async def test_a_daemon_needs_a_certificate_of_its_own(pki: Pki) -> None:
    with pytest.raises(InvalidInput, match="tls-cert"):
        Protection(settings("--tls-ca", str(pki.ca)), CollectorRegistry())
    files = pki.issue("machine", "web-1")
    found = settings("--tls-ca", files.ca, "--tls-cert", files.cert, "--tls-key", files.key)
    with pytest.raises(InvalidInput, match="another purpose"):
        Protection(found, CollectorRegistry())


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["--listen", "0.0.0.0:8473"], "listen"),
        (["--listen", "0.0.0.0:8473", "--consul-role", "ops=operator", "--insecure-http"], "consul-role"),
        (["--consul-role", "ops=root"], "consul-role"),
        (["--consul-role", "operator"], "consul-role"),
    ],
)
def test_what_does_not_start(words: list[str], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        settings(*words)
    assert caught.value.field == field


def test_plain_wires_have_to_be_asked_for(pki: Pki) -> None:
    assert settings("--listen", "0.0.0.0:8473", "--insecure-http").insecure_http
    with pytest.raises(InvalidInput, match="insecure-http"):
        settings("--insecure-http", *tls(pki))
    with pytest.raises(InvalidInput, match="--insecure-health"):
        settings("--health", "10.0.0.1", *tls(pki))
    assert settings("--health", "10.0.0.1", "--insecure-health", *tls(pki)).health == "10.0.0.1"
    assert settings("--health", "10.0.0.1").health == "10.0.0.1"
    assert settings("--consul-role", "look=viewer", "--consul-role", "ops=admin").roles == {
        "look": Role.VIEWER,
        "ops": Role.ADMIN,
    }


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1", "127.0.0.1", 0),
        ("127.0.0.1:8474", "127.0.0.1", 8474),
        ("localhost:1", "localhost", 1),
        ("::1", "::1", 0),
        ("[::1]:8474", "::1", 8474),
    ],
)
def test_the_health_check_may_have_a_port_of_its_own(pki: Pki, text: str, host: str, port: int) -> None:
    found = settings("--listen", "0.0.0.0:8473", "--health", text, *tls(pki))
    assert (found.health, found.health_port) == (host, port)


@pytest.mark.parametrize(
    "text", ["127.0.0.1:", ":8474", "127.0.0.1:0", "127.0.0.1:65536", "localhost:x", "10.0.0.1:80"]
)
def test_a_bad_health_address_or_one_that_others_reach_is_refused(pki: Pki, text: str) -> None:
    with pytest.raises(InvalidInput, match="health"):
        settings("--listen", "0.0.0.0:8473", "--health", text, *tls(pki))


async def test_handshakes_that_wait_are_shown(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    found = settings("--listen", "127.0.0.1:0", *tls(pki))
    registry = CollectorRegistry()
    protection = Protection(found, registry)
    serving = await serve(web.Application(), "127.0.0.1", 0, context=protection.context)
    protection.follow(serving)
    monkeypatch.setattr(Turns, "_run", lambda _: None)
    _, writer = await asyncio.open_connection("127.0.0.1", serving.port)
    try:
        assert registry.get_sample_value("rebootd_tls_handshakes_waiting") == 0
        writer.write(b"\x16\x03\x01")
        async with asyncio.timeout(5):
            while registry.get_sample_value("rebootd_tls_handshakes_waiting") != 1:
                await asyncio.sleep(0.01)
    finally:
        writer.close()
        await protection.close()
        await serving.close()


async def test_a_refused_handshake_is_logged_with_its_address_and_not_for_ever(pki: Pki) -> None:
    found = settings("--listen", "127.0.0.1:0", *tls(pki))
    registry = CollectorRegistry()
    protection = Protection(found, registry)
    serving = await serve(web.Application(), "127.0.0.1", 0, context=protection.context)
    try:
        with capture_logs() as told:
            for _ in range(30):
                reader, writer = await asyncio.open_connection("127.0.0.1", serving.port)
                writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                with contextlib.suppress(ConnectionError):
                    assert await asyncio.wait_for(reader.read(), 5) == b""
                writer.close()
        (line,) = [one for one in told if one["event"] == "handshake-refused"]
        assert (line["why"], line["address"], line["left_out"]) == ("the other side speaks plain HTTP", "127.0.0.1", 0)
        name = "rebootd_tls_handshakes_failed_total"
        assert registry.get_sample_value(name, {"reason": line["why"]}) == 30
        protection._told[line["why"]] = (float("-inf"), protection._told[line["why"]][1])
        with capture_logs() as later:
            protection._refused(line["why"])
        assert later[0]["left_out"] == 29
    finally:
        await serving.close()
        await protection.close()

"""``rebootctl tls``, and rebootctl behind certificates: real processes and files."""

from __future__ import annotations

import asyncio
import io
import json
import ssl
import stat
from contextlib import redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any

import pytest

from rebootd.cli import ctl
from rebootd.tls.contexts import prove_client, prove_server, server_context
from rebootd.tls.files import TlsFiles
from rebootd.tls.identity import identity_of
from tests.api.secure import secured
from tests.cli.ctl_runner import Ctl
from tests.support.pki import Pki, field

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def run(*words: str) -> tuple[int, str]:
    """rebootctl within this process: its exit code, and all that it says."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = ctl.run(list(words))
    return code, said.getvalue()


def good(*words: str) -> str:
    code, said = run(*words)
    assert code == 0, said
    return said


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "certs"
    good("tls", "ca", "create", "--dir", str(made))
    return made


def files(folder: Path, stem: str) -> TlsFiles:
    return TlsFiles(
        ca=str(folder / "rebootd-ca.pem"),
        crl=str(folder / "rebootd-crl.pem"),
        cert=str(folder / f"{stem}.pem"),
        key=str(folder / f"{stem}-key.pem"),
    )


def create(folder: Path, *words: str) -> str:
    return good("tls", "cert", "create", "--dir", str(folder), *words)


def test_what_is_made_is_what_daemons_and_agents_take(folder: Path) -> None:
    create(folder, "--server")
    create(folder, "--server", "--dns", "rebootd.example.com", "--ip", "10.0.0.7")
    create(folder, "--machine", "web-1")
    create(folder, "--operator", "alice@example.com", "--role", "admin")
    create(folder, "--operator", "prometheus")
    for stem in ("server-0", "server-1"):
        shown = files(folder, stem)
        assert identity_of(prove_server(server_context(shown, field, demand=True), shown, field)).role == "server"
    for stem, role in (
        ("machine-web-1", "machine"),
        ("operator-alice@example.com", "admin"),
        ("operator-prometheus", "viewer"),
    ):
        assert identity_of(prove_client(files(folder, stem), field)).role == role
    keys = sorted(folder.glob("*-key.pem"))
    assert len(keys) == 6
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]


def test_nothing_that_exists_is_overwritten(folder: Path) -> None:
    create(folder, "--machine", "web-1")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for words in (("ca", "create"), ("cert", "create", "--machine", "web-1")):
        code, said = run("tls", *words, "--dir", str(folder))
        assert (code, "stays as it is" in said) == (1, True)
    # The certificate alone is gone: its key stays, and no half of a new pair appears.
    (folder / "machine-web-1.pem").unlink()
    assert run("tls", "cert", "create", "--dir", str(folder), "--machine", "web-1")[0] == 1
    before.pop(folder / "machine-web-1.pem")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def readable(folder: Path) -> None:
    (folder / "rebootd-ca-key.pem").chmod(0o640)


def gone(folder: Path) -> None:
    (folder / "rebootd-ca-key.pem").unlink()


def empty(folder: Path) -> None:
    (folder / "rebootd-ca-key.pem").write_bytes(b"")


def anothers(folder: Path) -> None:
    (folder / "rebootd-ca-key.pem").write_bytes(Pki(folder / "other").authority.key_pem())


def untouched(folder: Path) -> None:
    assert folder.exists()


@pytest.mark.parametrize(
    ("spoil", "words", "said"),
    [
        (readable, ["--machine", "a"], "others can read"),
        (gone, ["--machine", "a"], "rebootctl tls ca create makes it"),
        (empty, ["--machine", "a"], "it is empty"),
        (anothers, ["--machine", "a"], "the key that belongs"),
        (untouched, [], "say one of"),
        (untouched, ["--machine", "a", "--server"], "say one of"),
        (untouched, ["--machine", "a", "--role", "admin"], "--role"),
        (untouched, ["--machine", "a", "--name", "b"], "--name"),
        (untouched, ["--machine", "../a"], "--name"),
        (untouched, ["--machine", ""], "--name"),
        (untouched, ["--machine", "a", "--days", "0"], "--days"),
        (untouched, ["--machine", "a", "--dns", "server.rebootd"], "nobody else may"),
        (untouched, ["--server", "--ip", "nowhere"], "--ip"),
        (untouched, ["--operator", "a", "--role", "root"], "root"),
    ],
)
def test_bad_input_makes_nothing(spoil: Callable[[Path], None], words: list[str], said: str, folder: Path) -> None:
    spoil(folder)
    before = sorted(folder.iterdir())
    code, told = run("tls", "cert", "create", "--dir", str(folder), *words)
    assert (code, said in told) == (2, True), told
    assert sorted(folder.iterdir()) == before
    assert "PRIVATE" not in told


def test_a_certificate_may_not_outlast_the_authority(folder: Path) -> None:
    code, said = run("tls", "cert", "create", "--dir", str(folder), "--server", "--days", "36000")
    assert (code, "the authority itself ends" in said) == (1, True)


def test_revoked_and_shown(folder: Path, tmp_path: Path) -> None:
    create(folder, "--machine", "web-1")
    create(folder, "--machine", "web-2")
    cert = folder / "machine-web-1.pem"
    [told] = json.loads(good("--json", "tls", "show", str(cert)))
    assert told["identity"] == ["rebootd://machine/web-1"]
    assert told["purpose"] == ["client"]
    assert "revoked 1" in good("tls", "revoke", "--dir", str(folder), str(cert))
    assert told["serial"] in good("tls", "show", str(folder / "rebootd-crl.pem"))
    with pytest.raises(Exception, match="revoked"):
        prove_client(files(folder, "machine-web-1"), field)
    prove_client(files(folder, "machine-web-2"), field)
    [other] = json.loads(good("--json", "tls", "show", str(folder / "machine-web-2.pem")))
    good("tls", "revoke", "--dir", str(folder), "--serial", other["serial"])
    [listed] = json.loads(good("--json", "tls", "show", str(folder / "rebootd-crl.pem")))
    assert len(listed["revoked"]) == 2
    stranger = Pki(tmp_path / "other").issue("machine", "x").cert
    for words in ([stranger], ["--serial", "xyz"], [], [str(folder / "machine-web-1-key.pem")]):
        assert run("tls", "revoke", "--dir", str(folder), *words)[0] == 2
    secret = (folder / "machine-web-1-key.pem").read_text().splitlines()[1]
    assert secret not in good("tls", "show", str(folder / "machine-web-1-key.pem"))


def test_what_is_not_valid_now_is_shown_so(tmp_path: Path) -> None:
    pki = Pki(tmp_path / "pki")
    for wrong, said in ((pki.expired("machine", "a"), "EXPIRED"), (pki.early("machine", "a"), "NOT YET")):
        code, told = run("tls", "show", wrong.cert)
        assert (code, said in told) == (1, True)
    noise = tmp_path / "noise"
    noise.write_bytes(b"-----BEGIN NOISE-----\n")
    assert run("tls", "show", str(noise))[0] == 2
    assert run("tls", "show", str(tmp_path / "nothing"))[0] == 2


# ------------------------------------------------------------------------------------------- behind certificates


def flags(shown: TlsFiles) -> list[str]:
    given = [(f"--tls-{name}", getattr(shown, name)) for name in ("ca", "cert", "key")]
    return [word for flag, path in given if path for word in (flag, path)]


async def test_rebootctl_by_role(tmp_path: Path) -> None:
    pki = Pki(tmp_path / "pki")
    async with secured(pki) as api:
        rebootctl: Any = Ctl(api, tmp_path)  # type: ignore[arg-type]  # it needs the url alone
        host = api.url.removeprefix("https://")
        operator, viewer = flags(pki.issue("operator", "alice")), flags(pki.issue("viewer", "bob"))
        # Without a scheme it speaks https, since an authority was given.
        done = await rebootctl(*operator, "--by", "mallory", "halt", "--reason", "a test", server=host)
        assert done.code == 0, done.err
        assert api.office.held is not None
        assert api.office.held.state.halt is not None
        assert "alice" in str(api.office.held.events)
        assert "mallory" not in str(api.office.held.events)
        refused = await rebootctl(*viewer, "halt", server=host)
        assert (refused.code, "needs the role operator; person bob has the role viewer" in refused.err) == (1, True)
        for shown, said in (
            (TlsFiles(ca=str(pki.ca)), "wants a certificate"),
            (pki.expired("admin", "carol"), "has expired"),
            (pki.server(), "another purpose"),
        ):
            out = await rebootctl(*flags(shown), "status", server=host)
            assert (out.code, said in out.err) == (1, True), out.err
        false = Pki(tmp_path / "false")
        stranger = await rebootctl(*flags(false.issue("admin", "carol")), "--timeout", "1", "status", server=host)
        assert (stranger.code, "not the one that is trusted" in stranger.err) == (3, True), stranger.err
        plain = await rebootctl(*viewer, "status", server=f"http://{host}")
        assert (plain.code, "expected https://" in plain.err) == (2, True)
        missing = await rebootctl(*viewer[:4], "--tls-key", str(tmp_path / "none"), "status", server=host)
        assert (missing.code, "--tls-key" in missing.err) == (2, True)


async def test_it_speaks_to_daemons_only_and_a_consul_token_crosses_no_plain_wire(tmp_path: Path) -> None:
    pki = Pki(tmp_path / "pki")
    token = tmp_path / "token"
    token.write_text("s3cret-token\n")
    impostor = pki.issue("machine", "web-1")
    async with secured(pki) as api:
        rebootctl: Any = Ctl(api, tmp_path)  # type: ignore[arg-type]  # it needs the url alone
        api.office.elect(elsewhere="http://192.0.2.1:1")
        sent = await rebootctl(*flags(pki.issue("viewer", "bob")), "status", server=api.url)
        assert (sent.code, "which is not followed" in sent.err) == (3, True), sent.err
        for server in ("http://192.0.2.1:1", "srv:rebootd.service.consul"):
            out = await rebootctl("--consul-token-file", str(token), "status", server=server)
            assert (out.code, "does not cross a plain wire" in out.err) == (2, True), out.err
            assert "s3cret" not in out.err
    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(100))
        writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(impostor.cert, impostor.key)
    listener = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=context)
    rebootctl = Ctl(api, tmp_path)  # type: ignore[arg-type]  # it needs the url alone
    at = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    words = [*flags(pki.issue("viewer", "bob")), "--consul-token-file", str(token), "--timeout", "1", "status"]
    out = await rebootctl(*words, server=at)
    listener.close()
    assert (out.code, "another purpose" in out.err) == (3, True), out.err
    assert heard == []

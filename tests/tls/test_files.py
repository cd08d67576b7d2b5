"""Files that cannot be used: each is refused with the setting, the file and what is wrong, and nothing of a key."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization

from rebootd.core.errors import InvalidInput, Unauthorized
from rebootd.tls.authority import utc_now
from rebootd.tls.contexts import client_context, prove_client, prove_server, server_context
from rebootd.tls.identity import Identity, identity_of
from tests.support.pki import Pki, field

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebootd.tls.files import TlsFiles


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


def changed(files: TlsFiles, **paths: str) -> TlsFiles:
    return msgspec.structs.replace(files, **paths)


def prove(files: TlsFiles) -> dict[str, object]:
    """As a daemon does at its start."""
    return prove_server(server_context(files, field, demand=True), files, field)


def missing(files: TlsFiles, at: Path) -> TlsFiles:
    return changed(files, key=str(at / "nothing.pem"))


def empty(files: TlsFiles, at: Path) -> TlsFiles:
    (at / "empty.pem").touch(mode=0o600)
    return changed(files, key=str(at / "empty.pem"))


def for_everybody(files: TlsFiles, at: Path) -> TlsFiles:
    Path(files.key).chmod(0o644)
    return files


def no_pem(files: TlsFiles, at: Path) -> TlsFiles:
    (at / "noise.pem").write_bytes(b"\x00\xff noise")
    return changed(files, cert=str(at / "noise.pem"))


def cut(files: TlsFiles, at: Path) -> TlsFiles:
    (at / "cut.pem").write_bytes(Path(files.cert).read_bytes()[:200])
    return changed(files, cert=str(at / "cut.pem"))


def anothers_key(files: TlsFiles, at: Path) -> TlsFiles:
    return changed(files, key=Pki(at / "other").server().key)


def with_passphrase(files: TlsFiles, at: Path) -> TlsFiles:
    key = serialization.load_pem_private_key(Path(files.key).read_bytes(), None)
    how = serialization.BestAvailableEncryption(b"s3cret")
    locked = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)
    path = at / "locked.pem"
    path.touch(mode=0o600)
    path.write_bytes(locked)
    return changed(files, key=str(path))


def no_key(files: TlsFiles, at: Path) -> TlsFiles:
    return changed(files, key="")


def no_authority(files: TlsFiles, at: Path) -> TlsFiles:
    return changed(files, ca="")


def anothers_list(files: TlsFiles, at: Path) -> TlsFiles:
    return changed(files, crl=str(Pki(at / "other").crl))


def a_folder(files: TlsFiles, at: Path) -> TlsFiles:
    return changed(files, ca=str(at))


@pytest.mark.parametrize(
    ("spoil", "setting", "said"),
    [
        (missing, "tls-key", "No such file"),
        (empty, "tls-key", "it is empty"),
        (for_everybody, "tls-key", "chmod 600"),
        (no_pem, "tls-cert", "a PEM file with a CERTIFICATE"),
        (cut, "tls-cert", "PEM"),
        (anothers_key, "tls-key", "the key that belongs to"),
        (with_passphrase, "tls-key", "without a passphrase"),
        (no_key, "tls-key", "since tls-cert is given"),
        (no_authority, "tls-ca", "authorities"),
        (anothers_list, "tls-crl", "of the authority in"),
        (a_folder, "tls-ca", "a regular file"),
    ],
)
def test_files_that_cannot_be_used(
    spoil: Callable[[TlsFiles, Path], TlsFiles], setting: str, said: str, pki: Pki, tmp_path: Path
) -> None:
    files = pki.server()
    secret = Path(files.key).read_text().splitlines()[1]
    with pytest.raises(InvalidInput) as caught:
        prove(spoil(files, tmp_path))
    assert caught.value.field == setting
    assert said in str(caught.value)
    assert secret[:20] not in str(caught.value)


def test_own_certificates_that_the_others_would_not_take(pki: Pki, tmp_path: Path) -> None:
    other = Pki(tmp_path / "other").server()
    alone = Pki(tmp_path / "alone", name="itself")
    key = tmp_path / "alone-key.pem"
    key.touch(mode=0o600)
    key.write_bytes(alone.authority.key_pem())
    cases = {
        "expired": pki.expired("server", "d1"),
        "not valid yet": pki.early("server", "d1"),
        "another purpose": pki.issue("machine", "web-1"),
        "not the one that is trusted": changed(pki.server(), cert=other.cert, key=other.key, crl=""),
        "self-signed": changed(pki.server(), cert=str(alone.ca), key=str(key), crl=""),
    }
    for said, files in cases.items():
        with pytest.raises(InvalidInput, match=said) as caught:
            prove(files)
        assert caught.value.field == "tls-cert"
    revoked = pki.server()
    pki.revoke(revoked)
    with pytest.raises(InvalidInput, match="revoked"):
        prove(revoked)


def test_a_clients_own_certificate_is_judged_as_daemons_will(pki: Pki) -> None:
    who = identity_of(prove_client(pki.issue("machine", "web-1"), field))
    assert (who.role, who.name, who.uri) == ("machine", "web-1", "rebootd://machine/web-1")
    for said, files in {
        "expired": pki.expired("machine", "web-1"),
        "not valid yet": pki.early("machine", "web-1"),
        "another purpose": pki.server(),
    }.items():
        # A host may boot with a false clock: it can still try.
        client_context(files, field)
        with pytest.raises(InvalidInput, match=said):
            prove_client(files, field)
    assert prove_client(changed(pki.server(), cert="", key=""), field) == {}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "no such name"),
        ([("URI", "spiffe://x/y"), ("DNS", "web-1")], "no such name"),
        ([("URI", "rebootd://machine/a"), ("URI", "rebootd://admin/b")], "rebootd://admin/b"),
        ([("URI", "rebootd://root/a")], "unknown role 'root'"),
        ([("URI", "rebootd:///a")], "unknown role ''"),
        ([("URI", "rebootd://machine")], "a name that is none"),
        ([("URI", "rebootd://machine/")], "a name that is none"),
        ([("URI", "rebootd://machine/../a")], "a name that is none"),
        ([("URI", "rebootd://machine/a/b")], "a name that is none"),
        ([("URI", "rebootd://machine/a%2e")], "a name that is none"),
        ([("URI", "rebootd://machine/a?role=admin")], "a name that is none"),
        ([("URI", f"rebootd://machine/{'a' * 129}")], "a name that is none"),
        ([("URI", "Rebootd://machine/a")], "no such name"),
    ],
)
def test_names_that_name_nobody(names: list[tuple[str, str]], said: str) -> None:
    cert = {
        "subject": ((("commonName", "admin"),),),
        "subjectAltName": tuple(names),
        "serialNumber": "0A1B",
        "notBefore": "Nov 23 09:00:00 2026 GMT",
        "notAfter": "Nov 24 09:00:00 2026 GMT",
    }
    with pytest.raises(Unauthorized, match="certificate 0a1b") as caught:
        identity_of(cert)
    assert said in str(caught.value)


def test_times_and_numbers_of_an_identity(pki: Pki) -> None:
    now = utc_now()
    who = identity_of(prove_client(pki.issue("admin", "carol@example.com", days=3, now=now), field))
    assert who == Identity(
        role="admin",
        name="carol@example.com",
        serial=who.serial,
        since=(now - timedelta(minutes=5)).timestamp(),
        expires=(now + timedelta(days=3)).timestamp(),
    )

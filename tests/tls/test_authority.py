from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509

from rebootd.core.errors import InvalidInput, Refused
from rebootd.tls.authority import Authority, pem, read_list, utc_now
from rebootd.tls.revoked import read_revoked
from tests.support.pki import Pki, field

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


def test_an_authority_goes_on_from_its_files(pki: Pki) -> None:
    again = Authority.load(pki.ca.read_bytes(), pki.authority.key_pem())
    cert, _ = again.issue("machine", "web-1", 1, utc_now())
    assert pki.authority.made(x509.load_pem_x509_certificate(cert))
    other = Pki(pki.folder / "other").authority
    assert not other.made(x509.load_pem_x509_certificate(cert))
    for ca, key, said in (
        (b"x", again.key_pem(), "ca:"),
        (pem(again.cert), b"x", "ca-key:"),
        (pem(again.cert), other.key_pem(), "belongs"),
    ):
        with pytest.raises(InvalidInput, match=said):
            Authority.load(ca, key)


def test_only_daemons_bear_the_daemons_name(pki: Pki) -> None:
    for role in ("machine", "viewer", "operator", "admin"):
        cert = x509.load_pem_x509_certificate(pki.authority.issue(role, "x", 1, utc_now(), dns=["x.example.com"])[0])
        names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == ["x.example.com"]
        with pytest.raises(InvalidInput, match="nobody else may"):
            pki.authority.issue(role, "x", 1, utc_now(), dns=["Server.rebootd"])
    cert = x509.load_pem_x509_certificate(pki.authority.issue("server", "d1", 1, utc_now(), ips=["10.0.0.7"])[0])
    names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "server.rebootd" in names.get_values_for_type(x509.DNSName)
    assert "10.0.0.7" in [str(ip) for ip in names.get_values_for_type(x509.IPAddress)]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "a/b"}, "name:"),
        ({"name": ""}, "name:"),
        ({"name": "-a"}, "name:"),
        ({"days": 0}, "days:"),
        ({"days": 10**9}, "days:"),
        ({"dns": ["a b"]}, "dns:"),
        ({"ips": ["10.0.0"]}, "ip:"),
    ],
)
def test_what_no_certificate_is_made_for(given: dict[str, object], said: str, pki: Pki) -> None:
    asked: dict[str, object] = {"role": "machine", "name": "web-1", "days": 1, "now": utc_now(), **given}
    with pytest.raises(InvalidInput, match=said):
        pki.authority.issue(**asked)  # type: ignore[arg-type]


def test_a_certificate_does_not_outlast_its_authority(pki: Pki) -> None:
    with pytest.raises(Refused, match="the authority itself ends"):
        pki.authority.issue("machine", "web-1", 365, utc_now())


def test_lists_grow_and_keep_when_somebody_was_revoked(pki: Pki) -> None:
    now = utc_now()
    first = pki.authority.revocations(None, [7], now)
    second = pki.authority.revocations(first, [7, 9], now + timedelta(hours=1))
    read = read_list(second, pki.authority.cert)
    assert {e.serial_number: e.revocation_date_utc - now for e in read} == {7: timedelta(0), 9: timedelta(hours=1)}
    assert read.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 2
    assert read.next_update_utc == pki.authority.cert.not_valid_after_utc
    with pytest.raises(InvalidInput, match="of this authority"):
        pki.authority.revocations(Pki(pki.folder / "other").crl.read_bytes(), [1], now)
    with pytest.raises(InvalidInput, match="of this authority"):
        pki.authority.revocations(b"nothing", [1], now)


def test_several_lists_in_one_file_are_all_read(pki: Pki, tmp_path: Path) -> None:
    other = Pki(tmp_path / "other", days=3)
    both = tmp_path / "both.pem"
    both.write_bytes(
        pki.authority.revocations(None, [7], utc_now()) + other.authority.revocations(None, [9], utc_now())
    )
    serials, ends = read_revoked(both, field)
    assert serials == {7, 9}
    assert ends == other.authority.cert.not_valid_after_utc.timestamp()
    both.write_bytes(both.read_bytes()[:-200])
    with pytest.raises(InvalidInput, match="tls-crl"):
        read_revoked(both, field)

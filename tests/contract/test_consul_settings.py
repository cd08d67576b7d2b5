"""Settings from the environment and by hand, and finding a Consul program."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from rebootd.consul.binary import UnavailableError, find_consul, locate, main
from rebootd.consul.settings import ConsulSettings
from rebootd.core.errors import InvalidInput

if TYPE_CHECKING:
    from pathlib import Path


def test_the_environment_fills_what_is_not_given() -> None:
    environ = {
        "CONSUL_HTTP_ADDR": "https://consul.example:8501",
        "CONSUL_HTTP_TOKEN": "from-env",
        "CONSUL_CACERT": "/ca",
        "CONSUL_CLIENT_CERT": "/cert",
        "CONSUL_CLIENT_KEY": "/key",
        "CONSUL_TLS_SERVER_NAME": "server.dc1.consul",
        "CONSUL_HTTP_SSL_VERIFY": "false",
    }
    settings = ConsulSettings.from_env(environ)
    assert settings == ConsulSettings(
        address="https://consul.example:8501",
        token="from-env",
        ca_file="/ca",
        cert_file="/cert",
        key_file="/key",
        server_name="server.dc1.consul",
        verify=False,
    )
    assert ConsulSettings.from_env({}) == ConsulSettings()
    explicit = ConsulSettings.from_env(environ, address="127.0.0.1:8500", verify=True, token=None)
    assert (explicit.address, explicit.verify, explicit.token) == ("127.0.0.1:8500", True, "from-env")


def test_an_explicit_secret_hides_both_of_the_environment() -> None:
    environ = {"CONSUL_HTTP_TOKEN": "env", "CONSUL_HTTP_TOKEN_FILE": "/env"}
    assert ConsulSettings.from_env(environ, token="ours").read_token() == "ours"
    assert ConsulSettings.from_env(environ, token_file="/ours").token_file == "/ours"
    assert ConsulSettings.from_env(environ, token_file="/ours").token == ""


@pytest.mark.parametrize(
    ("address", "endpoint"),
    [
        ("http://127.0.0.1:8500", ("http", "127.0.0.1", 8500)),
        ("10.0.0.1:80", ("http", "10.0.0.1", 80)),
        ("consul.example", ("http", "consul.example", 8500)),
        ("https://[::1]:8501/", ("https", "::1", 8501)),
    ],
)
def test_addresses(address: str, endpoint: tuple[str, str, int]) -> None:
    assert ConsulSettings(address=address).endpoint() == endpoint


@pytest.mark.parametrize("address", ["", "ftp://x", "http://", "http://x:port", "http://x/path", "unix:///run/x"])
def test_a_bad_address_is_named(address: str) -> None:
    with pytest.raises(InvalidInput, match=r"consul\.address"):
        ConsulSettings(address=address)


def test_other_bad_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"consul\.key_file"):
        ConsulSettings(key_file="/key")
    with pytest.raises(InvalidInput, match=r"consul\.token_file"):
        ConsulSettings(token_file=str(tmp_path / "none")).read_token()
    with pytest.raises(InvalidInput, match="CONSUL_HTTP_SSL_VERIFY"):
        ConsulSettings.from_env({"CONSUL_HTTP_SSL_VERIFY": "perhaps"})


def test_ssl_by_environment() -> None:
    assert ConsulSettings.from_env({"CONSUL_HTTP_SSL": "true"}).endpoint() == ("https", "127.0.0.1", 8500)
    environ = {"CONSUL_HTTP_SSL": "1", "CONSUL_HTTP_ADDR": "consul.example:8501"}
    assert ConsulSettings.from_env(environ).endpoint() == ("https", "consul.example", 8501)


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No CONSUL_BIN, nothing on PATH but what is put into the folder that is returned."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.delenv("CONSUL_BIN", raising=False)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def program(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_consul_is_looked_for_in_order(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = program(tmp_path / "cache" / "rebootd" / "consul" / "usr" / "bin" / "consul")
    assert find_consul() == kept
    on_path = program(bare / "consul")
    assert find_consul() == on_path
    named = program(tmp_path / "named")
    monkeypatch.setenv("CONSUL_BIN", str(named))
    assert find_consul() == named


def test_the_reason_is_told_when_there_is_none(
    bare: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UnavailableError, match="no apt-get"):
        locate()
    program(bare / "dpkg-deb")
    program(bare / "apt-get")
    with pytest.raises(UnavailableError, match="no sources"):
        locate()
    program(
        bare / "apt-get",
        '#!/bin/sh\n[ "$1" = indextargets ] && echo file:/none || { echo "E: broken" >&2; exit 100; }\n',
    )
    with pytest.raises(UnavailableError, match="E: broken"):
        locate()
    monkeypatch.setenv("CONSUL_BIN", "/none/consul")
    assert find_consul() is None
    assert main() == 1
    assert "CONSUL_BIN names /none/consul" in capsys.readouterr().err

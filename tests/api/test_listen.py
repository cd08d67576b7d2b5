from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rebootd.api.listen import is_loopback, parse_listen, serve
from rebootd.core.errors import InvalidInput
from tests.api.server import running

if TYPE_CHECKING:
    from pathlib import Path


def token(path: Path, text: str = "a-token\n", mode: int = 0o600) -> Path:
    file = path / "token"
    file.write_text(text)
    file.chmod(mode)
    return file


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("127.0.0.1:0", "127.0.0.1", 0),
        ("127.9.9.9", "127.9.9.9", 8473),
        ("localhost:99", "localhost", 99),
        ("[::1]:80", "::1", 80),
    ],
)
def test_loopback_needs_no_token(address: str, host: str, port: int) -> None:
    listen = parse_listen(address)
    assert (listen.host, listen.port, listen.token) == (host, port, "")


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0:8473", ":8473", "10.1.2.3", "[::]:1", "[::ffff:10.0.0.1]:1", "host.example:1", "127.0.0.1.evil:1"],
)
def test_other_addresses_need_one(address: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="token-file"):
        parse_listen(address)
    assert parse_listen(address, token(tmp_path)).token == "a-token"


@pytest.mark.parametrize("address", ["", " ", "127.0.0.1:99999", "127.0.0.1:x", "a b:1", "http://127.0.0.1:1", "[::1"])
def test_bad_addresses(address: str) -> None:
    with pytest.raises(InvalidInput, match="listen"):
        parse_listen(address)


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("", 0o600),
        ("\n", 0o600),
        ("two words", 0o600),
        ("tökén", 0o600),
        ("x" * 5000, 0o600),
        ("ok", 0o644),
        ("ok", 0o602),
    ],
)
def test_bad_token_files(tmp_path: Path, text: str, mode: int) -> None:
    with pytest.raises(InvalidInput, match="token-file"):
        parse_listen("127.0.0.1:0", token(tmp_path, text, mode))


def test_a_missing_token_file_or_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(InvalidInput, match="token-file"):
            parse_listen("10.0.0.1:1", path)


def test_names_are_not_loopback() -> None:
    assert not is_loopback("localhost.example")


async def test_an_address_in_use_is_an_os_error() -> None:
    async with running() as api:
        from rebootd.api.app import make_app

        with pytest.raises(OSError, match="in use"):
            await serve(make_app(api.office), "127.0.0.1", api.serving.port)

"""What a daemon does while the local Consul agent is not there, or is something else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from rebootd.cli import server
from rebootd.consul.http import Response

GOOD = b'{"Config": {"NodeName": "h1"}, "Member": {"Addr": "10.0.0.1"}, "Meta": null}'


@pytest.mark.parametrize(
    "said",
    [b"", b"<html>", b"[]", b"{}", b'{"Config": null}', b"\xff", b"[" * 100_000, b'{"Config": {"NodeName": "x"}}'],
)
async def test_it_waits_until_consul_says_who_we_are(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FIRST_LOOK", 0.0)
    answers = [Response(200, {}, said), Response(200, {}, said), Response(200, {}, GOOD)]

    async def request(*_: object, **__: object) -> Response:
        return answers.pop(0)

    client = cast("Any", SimpleNamespace(http=SimpleNamespace(request=request)))
    with capture_logs() as told:
        assert await server._who_we_are(client) == ("h1", "10.0.0.1")
    assert [t["event"] for t in told] == ["consul-not-there-yet"]

"""What a stranger meets: other servers at the address, silence, a forgotten token, and what curl shows."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from rebootd.api.listen import serve
from tests.api.server import running
from tests.cli.ctl_runner import Ctl

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.api.server import Api

ANSWERS: dict[str, tuple[str, bytes]] = {
    "a page": ("text/html", b"<html>welcome</html>"),
    "brackets": ("application/json", b"[" * 100_000),
    "no struct": ("application/json", b'{"hello": 1}'),
    "no text": ("application/json", b"\xff\xfe"),
    "nothing": ("application/json", b""),
    "a list": ("application/json", b"[]"),
}


@pytest.fixture(params=sorted(ANSWERS))
async def other(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    media, body = ANSWERS[request.param]

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body, headers={"Content-Type": media})

    app = web.Application()
    app.router.add_route("*", "/{all:.*}", answer)
    serving = await serve(app, "127.0.0.1", 0)
    yield serving.url
    await serving.close()


async def test_another_server_at_the_address_is_told_as_such(ctl: Ctl, other: str) -> None:
    for words in (["status"], ["machines"], ["halt"], ["--json", "status"], ["policy", "show"], ["events"]):
        ran = await ctl(*words, server=other)
        if words == ["events"] and not ran.err:
            continue  # no events is an answer too
        assert (ran.code, ran.out) == (1, ""), (words, ran)
        assert "is no rebootd daemon" in ran.err, (words, ran)


async def test_a_daemon_that_says_nothing_is_told_with_the_time_it_was_given(ctl: Ctl) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ran = await ctl("--timeout", "1", "status", server=f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert ran.code == 3
    assert "no answer in time" in ran.err


async def test_who_shows_nothing_is_told_which_flag_shows_it(tmp_path: Path) -> None:
    async with running(token="correct-horse") as api:
        ran = await Ctl(api, tmp_path)("status")
    assert ran.code == 1
    assert "--token-file" in ran.err


async def test_what_curl_shows_ends_its_line(api: Api) -> None:
    for path in ("/v1/status", "/v1/nothing", "/healthz"):
        async with api.client.get(api.url + path) as answer:
            assert (await answer.read()).endswith(b"}\n")


async def test_an_unknown_field_is_answered_with_the_known_ones(api: Api) -> None:
    status, said = await api.bad("PUT", "/v1/halt", {"reasn": "x"})
    assert status == 400
    assert said["field"] == "reasn"
    assert said["accepted"] == "a known field: by, force, reason (did you mean reason?)"


async def test_the_scheme_of_the_token_may_be_written_in_any_case() -> None:
    async with running(token="correct-horse") as api:
        for shown, status in (
            ("bearer correct-horse", 200),
            ("BEARER correct-horse", 200),
            ("Basic correct-horse", 401),
        ):
            assert (await api.ask("GET", "/v1/holds", Authorization=shown))[0] == status

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import pytest
from aiohttp import web
from msgspec.structs import replace

from rebootd.agent.client import Backoff, Coordinators, NoCoordinator, Reply
from rebootd.agent.settings import AgentSettings
from rebootd.core.errors import InvalidInput, NotFound, Refused, Unauthorized
from rebootd.core.wire import Answer, Report
from tests.agent.fake import problem

if TYPE_CHECKING:
    from pathlib import Path

REPORT = Report(name="m", machine_id="i", boot_id="b")
GOOD = msgspec.json.encode(Answer(index=3, epoch=1, state="in-service"))
Handler = Callable[[web.Request], Awaitable[web.Response]]


class Server:
    """One instance; ``asked`` are the Authorization headers that came."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.respond: Callable[[], web.Response] = lambda: web.Response(body=GOOD)
        self.url = ""

    async def start(self) -> web.AppRunner:
        async def handle(request: web.Request) -> web.Response:
            self.asked.append(request.headers.get("Authorization", ""))
            return self.respond()

        app = web.Application()
        app.router.add_post("/v1/machines/m/report", handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    def redirect(self, to: str, status: int = 307) -> None:
        self.respond = lambda: web.Response(status=status, headers={"Location": to})


@pytest.fixture
async def servers() -> AsyncIterator[list[Server]]:
    made = [Server() for _ in range(3)]
    runners = [await server.start() for server in made]
    yield made
    for runner in runners:
        await runner.cleanup()


def client(found: list[list[str]], tmp_path: Path) -> Coordinators:
    (tmp_path / "token").write_text("s3cret\n")

    async def find() -> AsyncIterator[list[str]]:
        for urls in found:
            yield urls

    return Coordinators(AgentSettings(token_file=str(tmp_path / "token"), answer_grace=0.5), find)


async def test_redirect_is_followed_and_leader_remembered(servers: list[Server], tmp_path: Path) -> None:
    follower, leader, _ = servers
    follower.redirect(f"{leader.url}/v1/machines/m/report?x=1")
    ours = client([[follower.url, leader.url]], tmp_path)
    for _ in range(3):
        assert (await ours.report("m", REPORT)).index == 3
    assert follower.asked == ["Bearer s3cret"]
    assert leader.asked == ["Bearer s3cret"] * 3
    assert ours.leader == leader.url
    await ours.close()


async def test_token_is_not_sent_where_discovery_does_not_point(servers: list[Server], tmp_path: Path) -> None:
    follower, stranger, _ = servers
    follower.redirect(stranger.url)
    ours = client([[follower.url]], tmp_path)
    await ours.report("m", REPORT)
    assert stranger.asked == [""]
    assert ours.leader == ""
    await ours.close()


async def test_a_new_leader_that_was_not_there_before_is_looked_up(servers: list[Server], tmp_path: Path) -> None:
    """Found in the box: after a power loss one daemon booted later than the agents, and led them at last."""
    old, new, _ = servers
    found = [[old.url]]
    coordinators = client(found, tmp_path)
    await coordinators.report("m", REPORT)
    found[:] = [[old.url, new.url]]
    old.redirect(new.url)
    assert await coordinators.report("m", REPORT) == Answer(index=3, epoch=1, state="in-service")
    assert new.asked == ["Bearer s3cret"]
    assert coordinators.leader == new.url
    await coordinators.close()


async def test_a_refusal_where_no_token_was_shown_is_not_the_last_word(servers: list[Server], tmp_path: Path) -> None:
    old, stranger, good = servers
    coordinators = client([[old.url], [good.url]], tmp_path)
    old.redirect(stranger.url)
    stranger.respond = lambda: problem(401)
    await coordinators.report("m", REPORT)
    assert stranger.asked == [""]
    assert coordinators.leader == good.url
    await coordinators.close()


async def test_loops_and_dead_instances_do_not_stop_the_search(servers: list[Server], tmp_path: Path) -> None:
    one, two, good = servers
    one.redirect(two.url)
    two.redirect(one.url)
    ours = client([["http://127.0.0.1:1", one.url], [two.url, good.url]], tmp_path)
    assert (await ours.report("m", REPORT)).index == 3
    assert len(one.asked) + len(two.asked) <= 10
    await ours.close()


async def test_each_instance_is_told_the_time_at_which_it_is_asked(servers: list[Server], tmp_path: Path) -> None:
    """Waiting for a leader that is cut off costs a minute; the next one must not take that for a wrong clock."""
    sent: list[float] = []

    class Slow:
        async def post(self, url: str, body: bytes, headers: dict[str, str], timeout: float) -> Reply:
            sent.append(msgspec.json.decode(body, type=Report).clock)
            if len(sent) == 1:
                await asyncio.sleep(0.5)
                raise TimeoutError
            return 200, {}, msgspec.json.encode(Answer(index=3, epoch=1, state="in-service"))

        async def close(self) -> None: ...

    async def find() -> AsyncIterator[list[str]]:
        yield ["http://10.0.0.1:1", "http://10.0.0.2:1"]

    ours = Coordinators(AgentSettings(), find, Slow())
    assert (await ours.report("m", replace(REPORT, clock=1000.0))).index == 3
    assert sent[0] == pytest.approx(1000.0, abs=0.2)
    assert sent[1] - sent[0] >= 0.5


GARBAGE: list[Callable[[], web.Response]] = [
    lambda: web.Response(text="hello"),
    lambda: web.Response(status=500),
    lambda: web.Response(body=b"\xff\x00" * 50),
    lambda: web.Response(text='{"index": "x"}'),
    lambda: web.Response(text=""),
    lambda: web.Response(status=404, text="nothing here"),
    lambda: web.Response(status=307),
    lambda: web.Response(status=307, headers={"Location": "ftp://nowhere/x"}),
    lambda: web.Response(status=307, headers={"Location": "http://[::1"}),
    lambda: web.Response(status=307, headers={"Location": "http://127.0.0.1:99999/"}),
    lambda: web.Response(body=b"x" * (1 << 21)),
    lambda: problem(503),
]


@pytest.mark.parametrize("respond", GARBAGE)
async def test_garbage_leads_to_the_next_instance(
    respond: Callable[[], web.Response], servers: list[Server], tmp_path: Path
) -> None:
    bad, good, _ = servers
    bad.respond = respond
    ours = client([[bad.url], [good.url]], tmp_path)
    assert (await ours.report("m", REPORT)).index == 3
    await ours.close()


async def test_definite_refusals_end_the_search(servers: list[Server], tmp_path: Path) -> None:
    kinds = {400: InvalidInput, 401: Unauthorized, 404: NotFound, 409: Refused}
    for status, kind in kinds.items():
        servers[0].respond = partial(problem, status, field="rack", value="?", accepted="a rack")
        ours = client([[servers[0].url], [servers[1].url]], tmp_path)
        with pytest.raises(kind):
            await ours.report("m", REPORT)
        await ours.close()
    assert servers[1].asked == []


async def test_retry_after_and_last_known_instances(servers: list[Server], tmp_path: Path) -> None:
    found = [[servers[0].url]]
    servers[0].respond = lambda: web.Response(status=503, headers={"Retry-After": "7"})
    ours = client(found, tmp_path)
    with pytest.raises(NoCoordinator) as caught:
        await ours.report("m", REPORT)
    assert caught.value.retry_after == 7
    found.clear()
    servers[0].respond = lambda: web.Response(body=GOOD)
    assert (await ours.report("m", REPORT)).index == 3, "DNS is gone, what was known is tried"
    await ours.close()


async def test_nothing_found(tmp_path: Path) -> None:
    with pytest.raises(NoCoordinator, match="no coordinator could be found"):
        await client([], tmp_path).report("m", REPORT)


def test_backoff() -> None:
    backoff = Backoff(random.Random(1))
    pauses = [backoff.next(5) for _ in range(30)]
    assert 0.1 <= pauses[0] <= 0.2
    assert all(2.5 <= pause <= 5 for pause in pauses[6:])
    assert len(set(pauses)) == 30
    assert all(7 <= backoff.next(5, at_least=7) <= 14 for _ in range(30))
    backoff.reset()
    assert backoff.next(5) <= 0.2


@pytest.mark.parametrize("content", [None, b"", b"\xff", b"two\nlines"])
def test_bad_token_file(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidInput, match="token_file"):
        Coordinators(AgentSettings(token_file=str(path)), lambda: None)  # type: ignore[arg-type,return-value]

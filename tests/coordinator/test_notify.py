"""Notifications through a real webhook: what arrives, how often it is tried, and that nothing waits for a dead one."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from rebootd.coordinator import notify
from rebootd.coordinator.notify import Notifications, receivers
from rebootd.core import operations
from rebootd.core.errors import InvalidInput
from rebootd.core.notices import KINDS
from rebootd.core.operations_inputs import Because
from rebootd.core.operations_policy import apply_policy
from tests.coordinator.lab import Host, Lab, eventually, start
from tests.support.cluster import free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from rebootd.coordinator.leader import Leader

pytest.importorskip("apprise")
WHY = Because(by="ann", reason="smoke")


class Hook:
    """A webhook that answers with ``status`` and keeps what came, in time."""

    def __init__(self) -> None:
        self.status = 200
        self.came: list[tuple[float, dict[str, Any]]] = []
        self.url = ""

    @property
    def titles(self) -> list[str]:
        return [said["title"] for _, said in self.came]

    async def take(self, request: web.Request) -> web.Response:
        self.came.append((time.monotonic(), await request.json()))
        return web.Response(status=self.status)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Hook]:
        app = web.Application()
        app.router.add_post("/{path:.*}", self.take)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"json://ann:s3cret-word@127.0.0.1:{runner.addresses[0][1]}/hook"
        try:
            yield self
        finally:
            await runner.cleanup()


class Office:
    """The daemon of one leader. ``wait_leader`` and the rest are not asked."""

    def __init__(self, leader: Leader) -> None:
        self.leader = leader

    def desk(self) -> Leader:
        return self.leader


@asynccontextmanager
async def telling(lab: Lab, leader: Leader, file: Path, *urls: str) -> AsyncIterator[None]:
    file.write_text("# who is on call\n" + "\n".join(urls) + "\n")
    task = asyncio.create_task(Notifications(file, KINDS, lab.metrics).run(Office(leader)))  # type: ignore[arg-type]
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def count(lab: Lab, result: str) -> float:
    return lab.metrics.registry.get_sample_value("rebootd_notifications_total", {"result": result}) or 0.0


async def halt(leader: Leader) -> None:
    await leader.apply(partial(operations.halt, because=WHY))


async def test_a_cycle_from_its_start_to_its_end_is_told(tmp_path: Path) -> None:
    lab, host, hook = Lab({"r1": ["m1"]}), Host("m1"), Hook()
    async with hook.open(), lab.leader() as leader, telling(lab, leader, tmp_path / "urls", hook.url):
        await leader.apply(partial(apply_policy, text="settle: 0\n", because=WHY))
        await host.join(leader)
        living = asyncio.create_task(host.live(leader))
        await start(leader, "k1")
        await eventually(lambda: count(lab, "sent") == 2)
        living.cancel()
        await asyncio.gather(living, return_exceptions=True)
    said = "\n".join(f"{s['title']} {s['message']}" for _, s in hook.came)
    assert "cycle k1 started" in said
    assert "a test" in said
    assert "cycle k1 is done" in said


async def test_one_that_fails_is_tried_again_and_then_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "LONGEST", 0.05)
    lab, hook, other = Lab({}), Hook(), Hook()
    hook.status = 500
    file = tmp_path / "urls"
    async with hook.open(), other.open(), lab.leader() as leader, telling(lab, leader, file, hook.url, other.url):
        await halt(leader)
        await eventually(lambda: count(lab, "failed") == 1)
        assert len(hook.came) == notify.TRIES
        # The other one was not held up by it.
        assert other.titles == ["rebootd: everything is halted"]
        hook.status = 200
        await halt(leader)
        await eventually(lambda: count(lab, "sent") == 3)


async def test_what_is_too_much_comes_in_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "EVERY", 0.8)
    lab, hook = Lab({}), Hook()
    async with hook.open(), lab.leader() as leader, telling(lab, leader, tmp_path / "urls", hook.url):
        for sent in range(1, notify.BURST + 1):
            await halt(leader)
            await eventually(partial(lambda wanted: count(lab, "sent") == wanted, sent))
        for _ in range(40):
            await halt(leader)
        await eventually(lambda: count(lab, "sent") == notify.BURST + 40)
    assert len(hook.came) <= notify.BURST + 2
    assert hook.came[notify.BURST][0] - hook.came[0][0] >= 0.7
    assert hook.titles[-1] == "rebootd: 40 things happened"


async def test_a_dead_receiver_slows_nothing(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    (port,) = free_ports(1)
    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    hanging = server.sockets[0].getsockname()[1]
    lab = Lab({})
    urls = [f"json://127.0.0.1:{port}/", f"json://127.0.0.1:{hanging}/?rto=0.5&cto=0.5"]
    async with lab.leader() as leader, telling(lab, leader, tmp_path / "urls", *urls):
        await halt(leader)
        await asyncio.sleep(0.3)
        began = time.monotonic()
        for _ in range(300):
            await halt(leader)
        assert time.monotonic() - began < 5
    server.close()


async def test_the_file_may_change_at_any_time(tmp_path: Path) -> None:
    lab, first, second = Lab({}), Hook(), Hook()
    file = tmp_path / "urls"
    async with first.open(), second.open(), lab.leader() as leader, telling(lab, leader, file, first.url):
        await halt(leader)
        await eventually(lambda: len(first.came) == 1)
        file.write_text(second.url)
        await halt(leader)
        await eventually(lambda: len(second.came) == 1)
        file.write_text("rubbish")
        await halt(leader)
        await eventually(lambda: len(second.came) == 2)
    assert len(first.came) == 1


async def test_no_secret_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(notify, "LONGEST", 0.01)
    lab, hook = Lab({}), Hook()
    hook.status = 403
    async with hook.open(), lab.leader() as leader, telling(lab, leader, tmp_path / "urls", hook.url):
        await halt(leader)
        await eventually(lambda: count(lab, "failed") == 1)
    said = capsys.readouterr()
    assert "notification-failed" in said.out
    assert "s3cret-word" not in said.out + said.err


@pytest.mark.parametrize("text", ["nonsense", "json://", "ftp://host/x"])
def test_a_url_that_is_none_is_named_by_its_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "urls").write_text(f"# first\n{text}\n")
    with pytest.raises(InvalidInput, match=r"urls:2"):
        receivers(tmp_path / "urls")
    with pytest.raises(InvalidInput, match="readable"):
        receivers(tmp_path / "none")

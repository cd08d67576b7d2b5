from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from rebootd.api.app import make_app
from rebootd.api.listen import serve
from rebootd.core.model import CycleState
from tests.api.fake_desk import FakeDesk, FakeOffice, fleet
from tests.api.server import Api, running
from tests.cli.ctl_runner import ROOT, Ctl, command

if TYPE_CHECKING:
    from pathlib import Path

COMMANDS = [
    "", "status", "machines", "machine", "explain", "hold", "release", "held", "halt", "unhalt", "events", "forget",
    "cycle", "cycle start", "cycle list", "cycle show", "cycle watch", "cycle pause", "cycle resume", "cycle cancel",
    "window", "window open", "window list", "window close", "rack", "rack list", "rack unlock",
    "quarantine", "quarantine list", "quarantine clear", "policy", "policy show", "policy diff", "policy apply",
]  # fmt: skip


def test_every_command_has_help_with_an_example() -> None:
    from click.testing import CliRunner

    from rebootd.cli.ctl import cli

    for words in COMMANDS:
        result = CliRunner().invoke(cli, [*words.split(), "--help"])
        assert result.exit_code == 0
        if words.partition(" ")[2] or words in {"", "status", "machines", "hold", "events", "forget"}:
            assert "Example:" in result.output, words
    assert "Exit codes: 0 done" in CliRunner().invoke(cli, ["--help"]).output


def test_it_starts_without_what_it_does_not_need() -> None:
    environment = command("http://127.0.0.1:1", "--help")[1]
    heavy = ("structlog", "aiohttp", "rich", "consul", "cryptography", "prometheus_client", "yaml", "dns")
    code = f"import sys, rebootd.cli.ctl; print([m for m in {heavy} if m in sys.modules])"
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, timeout=20, cwd=ROOT
    )
    assert ran.stdout == b"[]\n"


async def test_exit_code_3_when_nobody_answers_or_leads(api: Api, ctl: Ctl) -> None:
    ran = await ctl("status", server="http://127.0.0.1:9")
    assert (ran.code, ran.out) == (3, "")
    assert "cannot reach" in ran.err
    api.office.elect()
    for words in (["status"], ["halt"]):
        begun = time.monotonic()
        ran = await ctl("--timeout", "1", *words)
        assert ran.code == 3
        assert time.monotonic() - begun < 8
    ran = await ctl("--timeout", "1", "status", server="srv:rebootd.invalid@127.0.0.1:9")
    assert ran.code == 3


async def test_bad_options_are_bad_input(ctl: Ctl) -> None:
    for words in (
        ["nope"],
        ["status", "--nope"],
        ["--timeout", "x", "status"],
        ["machine"],
        ["events", "--limit", "-1"],
    ):
        ran = await ctl(*words)
        assert (ran.code, ran.out) == (2, ""), words
    for server in ("ftp://x", "http://", "http://u:p@h", "http://h:99999", ",", "http://h/path"):
        ran = await ctl("status", server=server)
        assert (ran.code, ran.out) == (2, ""), server
        assert "--server" in ran.err


async def test_tokens(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("correct-horse\n")
    async with running(token="correct-horse") as api:
        ctl = Ctl(api, tmp_path)
        assert (await ctl("status")).code == 1
        await ctl.good("--token-file", str(file), "status")
        follower = await serve(make_app(FakeOffice(elsewhere=api.url), token="correct-horse"), "127.0.0.1", 0)
        assert (await ctl("--token-file", str(file), "halt", server=follower.url)).code == 0
        assert api.desk.state.halt is not None
        await follower.close()
        for text in ("", "two words", "ü"):
            file.write_text(text)
            ran = await ctl("--token-file", str(file), "status")
            assert (ran.code, "--token-file" in ran.err) == (2, True)
        assert (await ctl("--token-file", "nowhere", "status")).code == 2


async def test_it_finds_the_leader_past_dead_daemons_and_dead_leaders(api: Api, ctl: Ctl) -> None:
    assert (await ctl("status", server=f"http://127.0.0.1:9,{api.url}")).code == 0
    office = FakeOffice(elsewhere="http://127.0.0.1:9")
    async with running(office) as other:
        asked = asyncio.create_task(ctl("halt", server=other.url))
        await asyncio.sleep(1.0)
        assert not asked.done()
        office.elect(elsewhere=api.url)
        assert (await asked).code == 0
    assert api.desk.state.halt is not None


async def test_watch_prints_lines_when_not_on_a_terminal(api: Api, ctl: Ctl) -> None:
    await ctl.good("cycle", "start", "k1", "--selector", "role=web")
    await api.desk.tick()
    watch = asyncio.create_task(ctl("cycle", "watch", "k1", "--interval", "0.1"))
    await asyncio.sleep(1.0)
    finish(api, CycleState.DONE)
    ran = await watch
    assert ran.code == 0
    first, last = ran.out.splitlines()
    assert "running: 0/9 rebooted, 1 out, 8 waiting" in first
    assert "done: 9/9 rebooted" in last


def finish(api: Api, state: CycleState) -> None:
    done = {"selected": 9, "rebooted": 9, "failed": 0, "skipped": 0} if state is CycleState.DONE else {}
    cycle = replace(api.desk.state.cycles["k1"], state=state, totals=done, why="" if done else "1 failed")
    api.desk.state = replace(api.desk.state, cycles={"k1": cycle})


@pytest.mark.parametrize("state", [CycleState.HALTED, CycleState.CANCELLED])
async def test_watch_fails_when_the_cycle_does(api: Api, ctl: Ctl, state: CycleState) -> None:
    await ctl.good("cycle", "start", "k1", "--selector", "role=web")
    finish(api, state)
    ran = await ctl("cycle", "watch", "k1", "--json")
    assert ran.code == 1
    assert ran.json()["cycle"]["state"] == state
    assert (await ctl("cycle", "watch", "k9")).code == 1


async def test_watch_outlives_a_leader(api: Api, ctl: Ctl) -> None:
    await ctl.good("cycle", "start", "k1", "--selector", "role=web")
    state = api.desk.state
    watch = asyncio.create_task(ctl("--timeout", "0.5", "cycle", "watch", "k1", "--interval", "0.1"))
    await asyncio.sleep(1.0)
    api.office.elect()
    await asyncio.sleep(1.0)
    api.office.elect(FakeDesk(fleet(), cycles=state.cycles))
    finish(api, CycleState.DONE)
    ran = await asyncio.wait_for(watch, 20)
    assert ran.code == 0
    assert "done: 9/9" in ran.out


async def test_watch_draws_bars_on_a_terminal_and_ends_quietly_with_ctrl_c(api: Api, ctl: Ctl) -> None:
    await ctl.good("cycle", "start", "k1", "--selector", "role=web")
    await api.desk.tick()
    words, environment = command(api.url, "cycle", "watch", "k1", "--interval", "0.1")
    mine, theirs = pty.openpty()
    environment = {k: v for k, v in environment.items() if k != "NO_COLOR"} | {"TERM": "xterm", "LINES": "24"}
    process = await asyncio.create_subprocess_exec(*words, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    async with asyncio.timeout(15):
        while not re.search(b"r3.*0/3", seen, re.DOTALL) or "━".encode() not in seen:
            seen += await asyncio.to_thread(os.read, mine, 65536)
        process.send_signal(signal.SIGINT)
        code = await process.wait()
    os.close(mine)
    assert code == 130
    assert b"Traceback" not in seen


async def test_events_are_followed_across_leaders_without_repeating(api: Api, ctl: Ctl) -> None:
    await api.good("PUT", "/v1/halt", {"reason": "one"})
    words, environment = command(api.url, "events", "--follow", "--json")
    process = await asyncio.create_subprocess_exec(*words, env=environment, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    async with asyncio.timeout(20):
        assert b"one" in await process.stdout.readline()
        await api.good("PUT", "/v1/halt", {"reason": "two"})
        assert b"two" in await process.stdout.readline()
        old = api.desk
        new = FakeDesk(fleet())
        new.events = list(old.events)
        await old.end()
        api.office.elect(new)
        await api.good("PUT", "/v1/halt", {"reason": "three"})
        assert b"three" in await process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130


async def test_a_reader_that_stops_early_is_no_error(api: Api) -> None:
    api.office.held = FakeDesk(fleet(60, 20))
    words, environment = command(api.url, "machines")
    process = await asyncio.create_subprocess_exec(
        *words, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    await process.stdout.readline()
    process.stdout._transport.close()  # type: ignore[attr-defined]  # what `head -1` does
    assert process.stderr is not None
    assert await asyncio.wait_for(process.stderr.read(), 20) == b""

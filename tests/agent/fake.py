"""A coordinator for agents' tests: a real HTTP server in this process that walks one machine around a cycle."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from rebootd.core.wire import Answer, Directive, DirectiveKind, PermitAnswer, PermitRequest, Problem, Report

if TYPE_CHECKING:
    from collections.abc import Callable

NEXT = {
    ("draining", "drain", True): "drained",
    ("draining", "drain", False): "enabling",
    ("drained", "reboot", False): "enabling",
    ("rebooting", "reboot", False): "quarantined",
    ("enabling", "enable", True): "in-service",
    ("enabling", "enable", False): "quarantined",
}
DIRECTIVES = {"draining": "drain", "drained": "reboot", "rebooting": "reboot", "enabling": "enable"}


class FakeCoordinator:
    """``state`` and ``version`` are the machine's record; tests read ``reports`` and ``permits`` and set the rest."""

    def __init__(self) -> None:
        self.state, self.version, self.epoch, self.boot_id = "", 0, 1, ""
        self.step = 0
        self.reports: list[Report] = []
        self.permits: list[PermitRequest] = []
        self.granted: dict[str, str] = {}
        self.tokens: list[str] = []
        self.states: list[str] = []
        self.grant: Callable[[PermitRequest], PermitAnswer | None] = lambda _: None
        self.answer: Callable[[Report], web.Response | None] = lambda _: None
        self.directive: Callable[[Directive], Directive] = lambda d: d
        self.valid_for = 30.0
        self.hold_back = False
        self._news = asyncio.Condition()
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def start(self, port: int = 0) -> FakeCoordinator:
        app = web.Application()
        app.router.add_post("/v1/machines/{name}/report", self._report)
        app.router.add_post("/v1/machines/{name}/permit", self._permit)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def move(self, state: str) -> None:
        """One transition; each step's directive has an id of its own, as the real coordinator's have."""
        self.step += 1
        self.state, self.version = state, self.version + 1
        self.states.append(state)

    async def go(self, state: str) -> None:
        async with self._news:
            self.move(state)
            self._news.notify_all()

    async def until(self, condition: Callable[[], bool], timeout: float = 30.0) -> None:
        async with asyncio.timeout(timeout), self._news:
            await self._news.wait_for(condition)

    async def _report(self, request: web.Request) -> web.Response:
        self.tokens.append(request.headers.get("Authorization", ""))
        report = msgspec.json.decode(await request.read(), type=Report)
        async with self._news:
            self.reports.append(report)
            self._take(report)
            self._news.notify_all()
            scripted = self.answer(report)
            if scripted is not None:
                return scripted
            try:
                async with asyncio.timeout(report.wait):
                    await self._news.wait_for(lambda: self.version != report.index)
            except TimeoutError:
                pass
        answer = Answer(
            index=self.version, epoch=self.epoch, state=self.state, directive=self._directive(), waiting_for="the test"
        )
        return web.Response(body=msgspec.json.encode(answer))

    def _directive(self) -> Directive | None:
        kind = DIRECTIVES.get(self.state)
        if kind is None:
            return None
        return self.directive(
            Directive(f"m/{self.step}/{kind}", DirectiveKind(kind), self.epoch, self.version, self.boot_id, "kernel-1")
        )

    def _take(self, report: Report) -> None:
        if not self.boot_id:
            self.boot_id = report.boot_id
            self.move("in-service" if report.in_service else "verifying")
        elif report.boot_id != self.boot_id:
            self.boot_id = report.boot_id
            self.move("verifying")
        elif report.by_hand and not report.in_service:
            raise AssertionError("by hand and not in service")
        elif report.result is not None and report.result.id == f"m/{self.step}/{report.result.kind}":
            after = NEXT.get((self.state, report.result.kind.value, report.result.ok))
            if after:
                self.move(after)
        if self.state == "verifying" and report.boot_check.status == "passed" and not self.hold_back:
            self.move("enabling")

    async def _permit(self, request: web.Request) -> web.Response:
        asked = msgspec.json.decode(await request.read(), type=PermitRequest)
        async with self._news:
            self.permits.append(asked)
            scripted = self.grant(asked)
            self._news.notify_all()
            if scripted is not None:
                return web.Response(body=msgspec.json.encode(scripted))
            nonce = self.granted.setdefault(asked.boot_id, asked.nonce)
            granted = nonce == asked.nonce and self.state in ("drained", "rebooting")
            if granted and self.state == "drained":
                self.move("rebooting")
                self._news.notify_all()
        return web.Response(
            body=msgspec.json.encode(
                PermitAnswer(
                    granted=granted,
                    nonce=asked.nonce,
                    boot_id=asked.boot_id,
                    epoch=self.epoch,
                    valid_for=self.valid_for,
                    reason="" if granted else "another nonce or state",
                )
            )
        )


def problem(status: int, **fields: Any) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(Problem(**{"error": "no", **fields})))


class FakeHost:
    """A host made of files. ``reboots`` are the boot_ids that the reboot command ended, in order."""

    def __init__(self, folder: Path, url: str, **settings: Any) -> None:
        self.folder = folder
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        for name in ("state", "run", "hooks"):
            (folder / name).mkdir(mode=0o755)
        (folder / "machine-id").write_text(uuid.uuid4().hex + "\n")
        self.new_boot_id()
        self.hook_log = folder / "hooks.log"
        script = folder / "reboot.sh"
        script.write_text(
            f"#!/bin/sh\ncat {folder}/boot_id >> {folder}/reboots\n"
            f"cat /proc/sys/kernel/random/uuid > {folder}/boot_id.new\nmv {folder}/boot_id.new {folder}/boot_id\n"
        )
        script.chmod(0o755)
        self.values: dict[str, Any] = {
            "name": "m",
            "rack": "r1",
            "machine_id_file": str(folder / "machine-id"),
            "boot_id_file": str(folder / "boot_id"),
            "state_dir": str(folder / "state"),
            "run_dir": str(folder / "run"),
            "hooks_dir": str(folder / "hooks"),
            "mark": "none",
            "coordinators": [url],
            "fresh_boot": 0,
            "wait_out": 1,
            "wait_idle": 2,
            "hook_timeout": 5,
            "reboot_command": [str(script)],
            "reboot_timeout": 4,
            "recheck": 0.3,
            "detect": ["file"],
            "reboot_required_file": str(folder / "reboot-required"),
            "kernel": "6.12.9",
            **settings,
        }
        self.process: asyncio.subprocess.Process | None = None
        self.environ: dict[str, str] = {}
        self.log = folder / "agent.log"

    @property
    def reboots(self) -> list[str]:
        path = self.folder / "reboots"
        return path.read_text().split() if path.exists() else []

    @property
    def boot_id(self) -> str:
        return (self.folder / "boot_id").read_text().strip()

    def new_boot_id(self) -> None:
        (self.folder / "boot_id").write_text(str(uuid.uuid4()) + "\n")

    def hook(self, folder: str, name: str, text: str, mode: int = 0o755) -> Path:
        path = self.folder / "hooks" / folder / name
        path.parent.mkdir(mode=0o755, exist_ok=True)
        path.write_text("#!/bin/sh\n" + text)
        path.chmod(mode)
        return path

    def tool(self, name: str, text: str) -> Path:
        """A program of the host, found before the real one."""
        folder = self.folder / "bin"
        folder.mkdir(exist_ok=True)
        path = folder / name
        path.write_text("#!/bin/sh\n" + text)
        path.chmod(0o755)
        self.environ["PATH"] = f"{folder}:{os.environ['PATH']}"
        return path

    def config(self) -> Path:
        path = self.folder / "agent.yaml"
        path.write_text(json.dumps(self.values))
        return path

    async def start(self, *, crash: str = "", module: str = "tests.agent.crashing") -> None:
        environ = {**os.environ, "CRASH_AT": crash, "PYTHONPATH": str(Path.cwd()), **self.environ}
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", module, "run", "--config", str(self.config()), stdout=log, stderr=log, env=environ
            )

    async def command(self, *arguments: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.agent.crashing",
            arguments[0],
            "--config",
            str(self.config()),
            *arguments[1:],
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(Path.cwd()), **self.environ},
        )
        output, _ = await process.communicate()
        return process.returncode or 0, output.decode()

    def state(self) -> dict[str, Any]:
        path = self.folder / "run" / "agent.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    async def end(self, number: int = signal.SIGKILL) -> int:
        if self.process is None:
            return 0
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), 10)


async def eventually(condition: Callable[[], object], timeout: float = 15.0) -> None:
    """Waits until the condition holds."""
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.02)

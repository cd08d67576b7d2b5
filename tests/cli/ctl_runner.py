"""Runs rebootctl as a real process against a real server, for tests."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

    from tests.api.server import Api

ROOT = __file__.rpartition("/tests/")[0]


class Ran(NamedTuple):
    """How a run of rebootctl ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return msgspec.json.decode(self.out)


def command(server: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("REBOOTD_", "COLUMNS", "FORCE_COLOR"))}
    environment = {**kept, "REBOOTD_ADDR": server, "PYTHONPATH": ROOT, "TZ": "UTC", "NO_COLOR": "1"}
    return [sys.executable, "-m", "rebootd.cli.ctl", *arguments], environment


class Ctl:
    """``await ctl("status")`` runs ``rebootctl status``."""

    def __init__(self, api: Api, folder: Path) -> None:
        self.api = api
        self.folder = folder

    async def __call__(self, *arguments: str, server: str = "") -> Ran:
        words, environment = command(server or self.api.url, *arguments)
        process = await asyncio.create_subprocess_exec(
            *words, env=environment, cwd=self.folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        try:
            async with asyncio.timeout(30):
                out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        ran = Ran(process.returncode or 0, out.decode(), err.decode())
        assert "Traceback" not in ran.err, ran.err
        return ran

    async def good(self, *arguments: str) -> str:
        ran = await self(*arguments)
        assert (ran.code, ran.err) == (0, "")
        return ran.out

    async def bad(self, code: int, *arguments: str) -> str:
        """A refusal: what it says on standard error. Nothing may have been changed."""
        applied = self.api.desk.applied
        ran = await self(*arguments)
        assert (ran.code, ran.out) == (code, ""), ran
        assert self.api.desk.applied == applied
        return ran.err

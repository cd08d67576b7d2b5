"""Machines without a process: they speak to daemons as agents do, reboot in no time, and wait where a test says so."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import aiohttp

from tests.e2e.at_work import at_work

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence


class Puppet:
    """One machine. Gates that are not set hold it: ``drains``, ``reboots`` (asks for its permit), ``boots`` (comes up
    after its reboot), ``passes`` (its boot check), ``enables``.
    """

    def __init__(self, name: str, urls: Sequence[str]) -> None:
        self.name = name
        self.urls = list(urls)
        self.boot_id = uuid.uuid4().hex
        self.machine_id = uuid.uuid4().hex
        self.boot_ids = [self.boot_id]
        self.permitted: list[str] = []
        self.refused: list[str] = []
        self.gates = {name: asyncio.Event() for name in ("drains", "reboots", "boots", "passes", "enables")}
        for gate in self.gates.values():
            gate.set()
        self._index = 0
        self._result: dict[str, Any] | None = None
        self._in_service = True
        self._news = asyncio.Event()

    def hold(self, gate: str) -> None:
        self.gates[gate].clear()

    def let(self, gate: str) -> None:
        self.gates[gate].set()
        self._index = 0
        self._news.set()

    def crash(self) -> None:
        """Comes up with another boot_id, with nobody's permit."""
        self.boot_id = uuid.uuid4().hex
        self.boot_ids.append(self.boot_id)
        self._index, self._result, self._in_service = 0, None, False
        self._news.set()

    async def run(self) -> None:
        async with aiohttp.ClientSession() as session:
            while True:
                try:
                    await self._round(session)
                except (aiohttp.ClientError, OSError, json.JSONDecodeError):
                    self.urls.append(self.urls.pop(0))
                    await asyncio.sleep(0.1)

    async def _round(self, session: aiohttp.ClientSession) -> None:
        boot = self.boot_id
        report = {
            "name": self.name,
            "machine_id": self.machine_id,
            "boot_id": boot,
            "boot_check": {"status": "passed" if self.gates["passes"].is_set() else "pending"},
            "result": self._result,
            "in_service": self._in_service,
            "clock": time.time(),
            "index": self._index,
            "wait": 5,
        }
        self._news.clear()
        asking = asyncio.create_task(self._post(session, "report", report))
        news = asyncio.create_task(self._news.wait())
        try:
            await asyncio.wait({asking, news}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                return
            answer = asking.result()
        finally:
            for task in (asking, news):
                task.cancel()
                with suppress(asyncio.CancelledError, aiohttp.ClientError, OSError, json.JSONDecodeError):
                    await task
        if boot == self.boot_id:
            self._index = answer["index"]
            await self._obey(session, answer.get("directive"))

    async def _obey(self, session: aiohttp.ClientSession, directive: dict[str, Any] | None) -> None:
        if directive is None or (self._result and self._result["id"] == directive["id"]):
            return
        kind = directive["kind"]
        if kind == "reboot":
            if self.gates["reboots"].is_set():
                await self._reboot(session, directive)
        elif self.gates["drains" if kind == "drain" else "enables"].is_set():
            self._result = {"id": directive["id"], "kind": kind, "ok": True}
            self._in_service = kind == "enable"

    async def _reboot(self, session: aiohttp.ClientSession, directive: dict[str, Any]) -> None:
        asked = {"name": self.name, "machine_id": self.machine_id, "boot_id": self.boot_id, "nonce": "n" + self.boot_id}
        answer = await self._post(
            session, "permit", {**asked, "directive": directive["id"], "epoch": directive["epoch"]}
        )
        if not answer["granted"]:
            self.refused.append(answer["reason"])
            await asyncio.sleep(0.1)
            return
        self.permitted.append(self.boot_id)
        await self.gates["boots"].wait()
        self.crash()

    async def _post(self, session: aiohttp.ClientSession, what: str, body: dict[str, Any]) -> dict[str, Any]:
        async with session.post(f"{self.urls[0]}/v1/machines/{self.name}/{what}", json=body) as response:
            if response.status != 200:
                await asyncio.sleep(0.1)
                raise aiohttp.ClientError(await response.text())
            answer: dict[str, Any] = await response.json()
            return answer


@asynccontextmanager
async def puppets(names: Sequence[str], urls: Sequence[str]) -> AsyncIterator[list[Puppet]]:
    """Puppets by those names, at work."""
    made = [Puppet(name, urls) for name in names]
    async with at_work(puppet.run() for puppet in made):
        yield made

"""FleetLock clients as Zincati is one: steady first, then each reboot asked for until it is granted, then steady again.

They know nothing of rebootd but the protocol, and keep a book of who was out at the same time.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

import aiohttp

from tests.e2e.at_work import at_work

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

POLL = 0.2
"""Seconds between two requests; Zincati's are five minutes."""


class No(NamedTuple):
    """A refusal."""

    path: str
    kind: str
    value: str


class Book:
    """Who was out together: from a granted ``pre-reboot`` until it says that it is back, as the clients saw it."""

    def __init__(self) -> None:
        self.out: set[str] = set()
        self.most = 0
        self.order: list[str] = []

    def leaves(self, name: str) -> None:
        self.out.add(name)
        self.order.append(name)
        self.most = max(self.most, len(self.out))

    def returns(self, name: str) -> None:
        self.out.discard(name)


class LockClient:
    """One machine. ``staged`` says that an update waits for a reboot; ``boots`` holds the reboot back while it is not
    set; ``reboots`` counts them.
    """

    def __init__(self, name: str, urls: Sequence[str], book: Book) -> None:
        self.name = name
        self.book = book
        self.staged = asyncio.Event()
        self.boots = asyncio.Event()
        self.boots.set()
        self.steady = asyncio.Event()
        self.granted = asyncio.Event()
        self.reboots = 0
        self.no: list[No] = []
        self._urls = list(urls)

    async def run(self) -> None:
        async with aiohttp.ClientSession() as session:
            while True:
                # It serves again from here on; a yes whose answer is lost is a yes all the same.
                self.book.returns(self.name)
                await self._until_granted(session, "steady-state")
                self.steady.set()
                await self.staged.wait()
                await self._until_granted(session, "pre-reboot")
                self.book.leaves(self.name)
                self.steady.clear()
                self.granted.set()
                await self.boots.wait()
                self.staged.clear()
                self.granted.clear()
                self.reboots += 1

    async def _until_granted(self, session: aiohttp.ClientSession, path: str) -> None:
        while True:
            try:
                if await self._post(session, path):
                    return
            except (aiohttp.ClientError, OSError):
                self._urls.append(self._urls.pop(0))
            await asyncio.sleep(POLL)

    async def _post(self, session: aiohttp.ClientSession, path: str) -> bool:
        body = {"client_params": {"id": self.name, "group": "default"}}
        url = f"{self._urls[0]}/fleetlock/v1/{path}"
        async with session.post(url, json=body, headers={"fleet-lock-protocol": "true"}) as response:
            if response.status == 200:
                return True
            said = await response.json()
            self.no.append(No(path, said["kind"], said["value"]))
            return False


@asynccontextmanager
async def lock_clients(names: Sequence[str], urls: Sequence[str]) -> AsyncIterator[list[LockClient]]:
    """Clients by those names, at work, with one book."""
    book = Book()
    made = [LockClient(name, urls, book) for name in names]
    async with at_work(client.run() for client in made):
        yield made

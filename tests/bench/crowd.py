"""Many simulated machines in few processes, moved by the bench through pipes."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import time
import traceback
from typing import TYPE_CHECKING, Any

import msgspec

from tests.bench.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from multiprocessing.connection import Connection as Pipe

PATIENCE = 180.0
"""Seconds after which the bench gives a crowd up."""


class Storm(msgspec.Struct, frozen=True):
    """What became of one process's share of a storm. Times are CLOCK_MONOTONIC, which all processes share."""

    began: float
    ended: float
    requests: int
    refused: int
    lost: int
    back: int


class Load(msgspec.Struct, frozen=True):
    """How many check-ins one process had answered in how many seconds."""

    answered: int
    seconds: float


class _Share:
    """One process's machines; each method is one order of the bench."""

    def __init__(self, numbers: range) -> None:
        self._numbers = numbers
        self._machines: list[Machine] = []
        self._idle: list[asyncio.Task[None]] = []

    async def meet(self, host: str, port: int) -> None:
        """From now on the machines, with what they know of themselves, talk to this address."""
        if not self._machines:
            self._machines = [Machine(n, host, port) for n in self._numbers]
        for m in self._machines:
            m.close()
            m.host, m.port = host, port

    async def storm(self, *, reboot: bool, checked: bool) -> Storm:
        """Every machine comes back at once, on a connection of its own."""
        for m in self._machines:
            m.close()
            m.requests = m.refused = m.lost = 0
            if reboot:
                m.reboot()
        began = time.monotonic()
        await asyncio.gather(*(m.come_back(checked) for m in self._machines))
        ended = time.monotonic()
        return Storm(
            began,
            ended,
            sum(m.requests for m in self._machines),
            sum(m.refused for m in self._machines),
            sum(m.lost for m in self._machines),
            sum(m.state == "in-service" and m.in_service for m in self._machines),
        )

    async def check_in(self, connections: int, seconds: float) -> Load:
        """Idle re-reports without a wait, one after the other on each of so many connections."""
        until = time.monotonic() + seconds
        chosen = self._machines[:connections]
        before = sum(m.requests for m in chosen)
        began = time.monotonic()

        async def press(machine: Machine) -> None:
            while time.monotonic() < until:
                await machine.report(0.0)

        await asyncio.gather(*(press(m) for m in chosen))
        return Load(sum(m.requests for m in chosen) - before, time.monotonic() - began)

    async def idle(self) -> None:
        """Every machine waits for news from now on."""
        self._idle = [asyncio.create_task(m.idle()) for m in self._machines]

    async def leave(self) -> None:
        """Every machine hangs up."""
        for task in self._idle:
            task.cancel()
        await asyncio.gather(*self._idle, return_exceptions=True)
        self._idle = []
        for m in self._machines:
            m.close()


def _run(pipe: Pipe, numbers: range, share: Callable[[range], object]) -> None:
    asyncio.run(_serve(pipe, share(numbers)))


async def _serve(pipe: Pipe, share: object) -> None:
    while True:
        try:
            name, values = await asyncio.to_thread(pipe.recv)
        except EOFError:
            return
        act: Callable[..., Awaitable[Any]] = getattr(share, name)
        try:
            pipe.send(await asyncio.wait_for(act(**values), PATIENCE))
        except Exception:  # noqa: BLE001  # told to the bench, which raises it
            pipe.send(RuntimeError(traceback.format_exc()))


class Crowd:
    """``size`` machines in ``processes`` processes. A context manager; leaving it ends the processes.

    ``share`` makes what one process has of them: an object whose methods are the orders that it takes.
    """

    def __init__(self, size: int, processes: int = 2, share: Callable[[range], object] = _Share) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Pipe] = []
        self._processes = []
        for number in range(processes):
            ours, theirs = context.Pipe()
            numbers = range(size * number // processes, size * (number + 1) // processes)
            self._processes.append(context.Process(target=_run, args=(theirs, numbers, share), daemon=True))
            self._processes[-1].start()
            theirs.close()
            self._pipes.append(ours)

    def order(self, name: str, **values: Any) -> list[Any]:
        """Gives every process the same order and returns their answers. Raises what one of them raised."""
        for pipe in self._pipes:
            pipe.send((name, values))
        answers = []
        for pipe in self._pipes:
            if not pipe.poll(PATIENCE + 30):
                raise TimeoutError(f"the crowd did not do {name}")
            answers.append(pipe.recv())
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.close()
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()

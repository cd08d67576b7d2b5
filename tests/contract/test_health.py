"""The health thread: busy is not dead, hung is."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from rebootd.consul.health import HealthThread

if TYPE_CHECKING:
    from collections.abc import Iterator


def ask(port: int, path: str = "/health", timeout: float = 1.0) -> tuple[int, str]:
    """What Consul's HTTP check would see within its timeout."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Iterator[HealthThread]:
    with HealthThread(hung_after=5.0, clock=clock) as thread:
        yield thread


def test_says_hung_only_after_the_limit(health: HealthThread, clock: Clock) -> None:
    clock.now += 4.9
    assert ask(health.port)[0] == 200
    clock.now += 0.2
    status, text = ask(health.port)
    assert (status, text) == (503, "event loop has not ticked for 5.1 s\n")
    health.tick()
    assert ask(health.port)[0] == 200


def test_other_paths_are_not_found(health: HealthThread) -> None:
    assert ask(health.port, "/")[0] == 404
    assert ask(health.port, "/health?x=1")[0] == 200


def test_a_silent_peer_holds_up_nobody(health: HealthThread) -> None:
    with socket.create_connection(("127.0.0.1", health.port)):
        assert ask(health.port)[0] == 200


def test_url_brackets_ipv6(health: HealthThread) -> None:
    assert health.url("::1") == f"http://[::1]:{health.port}/health"


def test_stop_frees_the_port() -> None:
    thread = HealthThread()
    thread.start()
    port = thread.port
    thread.stop()
    with pytest.raises(ConnectionRefusedError):
        ask(port)
    HealthThread().stop()


async def test_answers_within_the_timeout_while_the_loop_is_busy() -> None:
    """Two seconds of pure Python in the loop, another thread that wants the interpreter lock too."""
    with HealthThread(hung_after=5.0) as health:
        ticking = asyncio.create_task(health.run())
        await asyncio.sleep(0)
        seen: list[tuple[int, float]] = []
        over = threading.Event()

        def consul() -> None:
            while not over.is_set():
                begun = time.monotonic()
                status, _ = ask(health.port)
                seen.append((status, time.monotonic() - begun))
                over.wait(0.05)

        def contend() -> None:
            while not over.is_set():
                sum(range(1000))

        threads = [threading.Thread(target=consul), threading.Thread(target=contend)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            sum(range(1000))
        over.set()
        for thread in threads:
            thread.join()
        ticking.cancel()
    assert len(seen) >= 3
    assert {status for status, _ in seen} == {200}
    print(f"\n{len(seen)} answers while busy, slowest {max(took for _, took in seen):.3f} s")


async def test_a_blocked_loop_is_hung_and_comes_back() -> None:
    with HealthThread(hung_after=0.5) as health:
        ticking = asyncio.create_task(health.run())
        await asyncio.sleep(0)
        answers: list[int] = []
        asker = threading.Timer(0.8, lambda: answers.append(ask(health.port)[0]))
        asker.start()
        time.sleep(1.2)
        asker.join()
        assert answers == [503]
        await asyncio.sleep(0.01)
        assert (await asyncio.to_thread(ask, health.port))[0] == 200
        ticking.cancel()

"""A small daemon for the election's tests: the real health thread, registration and election, and a counter.

While it leads it increments ``<prefix>counter`` by fenced transactions, one each 20 ms, and writes what happens as
JSON lines to ``--journal``: ``at`` is when the step began and ``t`` when it was written down (CLOCK_MONOTONIC, which
the processes of one machine share), ``speak`` what ``may_speak()`` said at ``at``. SIGTERM stops it with a hand-over,
SIGUSR1 hangs its event loop for ``--hang`` seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import time
from pathlib import Path
from typing import Any

from rebootd.consul.client import connect
from rebootd.consul.election import Candidate, Election, Leadership, Tuning
from rebootd.consul.health import HealthThread
from rebootd.consul.registry import Registration, Registry
from rebootd.consul.settings import ConsulSettings
from rebootd.core.errors import Conflict, NotLeader, StoreError
from rebootd.store.consul import ConsulStore
from rebootd.store.port import CheckSession, Set

PAUSE = 0.02


class Journal:
    """JSON lines that outlive a SIGKILL of the writer."""

    def __init__(self, path: Path, name: str) -> None:
        self._file = path.open("a", buffering=1, encoding="utf-8")
        self._name = name

    def write(self, event: str, at: float, **more: Any) -> None:
        self._file.write(json.dumps({"event": event, "id": self._name, "at": at, "t": time.monotonic(), **more}) + "\n")


class Counter:
    """The leader's work."""

    def __init__(self, store: ConsulStore, key: str, journal: Journal) -> None:
        self._store = store
        self._key = key
        self._journal = journal

    async def lead(self, leadership: Leadership) -> None:
        self._journal.write("won", time.monotonic(), session=leadership.session)
        try:
            while True:
                await self._count(leadership)
                await asyncio.sleep(PAUSE)
        except asyncio.CancelledError:
            # What a leader that has not noticed would do: the fence is all that stops it.
            with contextlib.suppress(NotLeader):
                await self._count(leadership)
            raise
        finally:
            self._journal.write("ended", time.monotonic(), reason=leadership.reason)

    async def _count(self, leadership: Leadership) -> None:
        at = time.monotonic()
        speak = leadership.may_speak()
        try:
            entry = await self._store.get(self._key)
            value = int(entry.value) + 1 if entry is not None else 1
            write = Set(self._key, str(value).encode(), cas=entry.modify_index if entry is not None else 0)
            sent = asyncio.get_running_loop().time()
            await self._store.commit([CheckSession(leadership.key, leadership.session), write], timeout=2.0)
        except Conflict as error:
            if all(failed.reason == "cas" for failed in error.failed):
                # A commit that was cancelled under way landed after all.
                return
            self._journal.write("refused", at, speak=speak, reasons=[failed.reason for failed in error.failed])
            leadership.step_down("lost the fence", abstain=0.0)
            raise NotLeader("lost the fence") from error
        except StoreError as error:
            self._journal.write("unknown", at, speak=speak, error=str(error))
        else:
            leadership.proved(sent)
            self._journal.write("commit", at, speak=speak, value=value)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--consul", required=True)
    parser.add_argument("--id", required=True)
    parser.add_argument("--prefix", required=True)
    parser.add_argument("--service", required=True)
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--failures", type=int)
    parser.add_argument("--timeout", type=float)
    parser.add_argument("--lock-delay", type=float)
    parser.add_argument("--hung-after", type=float, default=5.0)
    parser.add_argument("--hang", type=float, default=0.0)
    return parser.parse_args()


async def main(options: argparse.Namespace) -> None:
    client = connect(ConsulSettings(address=options.consul))
    store = ConsulStore(client)
    journal = Journal(options.journal, options.id)
    with HealthThread(hung_after=options.hung_after) as health:
        url = f"http://127.0.0.1:{health.port}"
        given = {name: getattr(options, name) for name in ("failures", "timeout") if getattr(options, name) is not None}
        registration = Registration(
            id=options.id,
            name=options.service,
            address="127.0.0.1",
            port=health.port,
            check_url=health.url("127.0.0.1"),
            **given,
        )
        registry = Registry(client, registration, look_every=0.5)
        election = Election(
            store,
            f"{options.prefix}leader",
            Candidate(options.id, url, "dev"),
            Counter(store, f"{options.prefix}counter", journal).lead,
            checks=registration.session_checks,
            tuning=Tuning(**({} if options.lock_delay is None else {"lock_delay": options.lock_delay})),
        )
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        loop.add_signal_handler(signal.SIGUSR1, time.sleep, options.hang)
        tasks = [asyncio.create_task(work) for work in (health.run(), registry.run(), election.run())]
        stopping = asyncio.create_task(stop.wait())
        done, _ = await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        await election.stop()
        journal.write("stopped", time.monotonic())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await registry.deregister()
    await client.close()


if __name__ == "__main__":
    asyncio.run(main(arguments()))

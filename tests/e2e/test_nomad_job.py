"""The shipped job file on a real Nomad: three daemons in three racks, from the one file of ``make dist``.

The three clients share a machine, so the job takes any free port, and the tasks run with ``raw_exec``.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.nomad_job import CLIENTS, JOB, TOKEN, VARS, Job, ended, in_service, machines, scheduled, start, until
from tests.support.cluster import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.cluster import Agent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TICKS = os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="module")
def job(dev_consul: Agent, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """Registered and running."""
    with scheduled(dev_consul, tmp_path_factory, {"token_template": TOKEN}) as made:
        yield made


@pytest.mark.parametrize("path", VARS, ids=lambda path: path.name)
def test_nomad_finds_the_job_valid_for_each_data_center(job: Job, path: Path) -> None:
    assert "validation successful" in job.command("job", "validate", f"-var-file={path}", str(JOB))


def test_one_daemon_in_each_rack_and_both_services_are_healthy(job: Job) -> None:
    assert job.nomad.running("rebootd") == list(CLIENTS)
    wait_for(lambda: job.passing(f"{job.name}-http") == job.passing(), "Nomad's own service", 60)
    assert sorted(job.allocs()) == job.passing()
    # Nothing is to be done for a job that is as it was.
    job.submit("plan")


async def test_cycles_lose_nothing(job: Job, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    async with machines(job, tmp_path, {"token_file": str(token)}) as supervisor:
        await in_service(job)
        await start(job, "update", "settle: 0s\nsoak: 20s\n")
        await rolling_update(job)
        await killed_leader(job)
        await ended(job, supervisor, "update", 1)

        began = time.monotonic()
        await start(job, "drains", "settle: 5s\ndrains: {nomad: {machines: '*', deadline: 2m}}\n")
        await ended(job, supervisor, "drains", 2)
        print(f"three hosts with drains at Nomad in {time.monotonic() - began:.1f} s")
        assert [job.nomad.eligible(name) for name in CLIENTS] == [True] * 3
        events = await asyncio.to_thread(lambda: job.client().ask("GET", "/v1/events?limit=10000"))
        rows = [json.loads(row) for row in events.splitlines()]
        led = epochs(job)
        out = [(e["machine"], led[e["epoch"]]) for e in rows if e["to"] == "draining" and e["cycle"] == "drains"]
        assert sorted(name for name, _ in out) == list(CLIENTS)
        # Nobody's host was taken out while it led, and where it was drained its allocation went elsewhere.
        assert [pair for pair in out if pair[0] == pair[1]] == []
        assert len(job.allocs()) == 3


async def rolling_update(job: Job) -> None:
    before, version = set(job.allocs().values()), job.version()
    await asyncio.to_thread(job.submit, "run", "-var=log_level=debug")

    async def updated() -> bool:
        # A moment after the job, its deployment.
        return await asyncio.to_thread(job.deployed, version + 1)

    await until(updated, "the deployment", 300)
    assert not before & set(job.allocs().values())


async def killed_leader(job: Job) -> None:
    leader = await job.leader()
    victim = job.allocs()[leader]
    client = next(c for c in job.nomad.clients.values() if _runs(c, victim))
    began = time.monotonic()
    # Nomad's own signal API: the task dies as if the kernel had killed it.
    body = {"Signal": "SIGKILL", "Task": "rebootd"}
    await asyncio.to_thread(client.ask, f"/v1/client/allocation/{victim}/signal", "PUT", body)

    async def other() -> bool:
        return await job.leader() != leader

    await until(other, "another leader", 60)
    print(f"another leader answers {time.monotonic() - began:.1f} s after the kill")

    async def started_again() -> bool:
        task = job.nomad.ask(f"/v1/allocation/{victim}")["TaskStates"]["rebootd"]
        return bool(task["Restarts"] == 1 and task["State"] == "running" and len(job.passing()) == len(CLIENTS))

    await until(started_again, "Nomad to start it again", 60)


def epochs(job: Job) -> dict[int, str]:
    """The host of each epoch's leader, as the allocations' logs say."""
    found = {}
    for name, client in job.nomad.clients.items():
        for path in client.folder.glob("data/alloc/*/alloc/logs/rebootd.stderr.*"):
            for line in path.read_text().splitlines():
                said = json.loads(line) if line.startswith("{") else {}
                if said.get("event") == "leading":
                    found[said["epoch"]] = name
    return found


def _runs(client: Any, alloc: str) -> bool:
    try:
        return bool(client.ask(f"/v1/client/allocation/{alloc}/stats"))
    except OSError:
        return False


def test_what_a_daemon_takes_stays_within_what_the_job_asks_for(job: Job) -> None:
    """Idle daemons of a small fleet; what a leader of 10,000 machines takes is in docs/performance.md."""
    pids = {place: _pid(place) for place in job.passing()}
    before = {place: _cpu(pid) for place, pid in pids.items()}
    time.sleep(20)
    asked = {k: int(v) for k, v in re.findall(r'variable "(cpu|memory)" \{[^}]*default\s*=\s*(\d+)', JOB.read_text())}
    for place, pid in pids.items():
        status = Path(f"/proc/{pid}/status").read_text()
        resident = int(status.split("VmHWM:")[1].split()[0]) / 1024
        share = (_cpu(pid) - before[place]) / 20
        print(f"{place}: at most {resident:.0f} MB, {share:.1%} of a core")
        assert resident < asked["memory"] / 2
        assert share < 0.2


def _pid(place: str) -> int:
    """The process that was started for the allocation with that port."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if f"0.0.0.0:{place.rpartition(':')[2]}".encode() in words and b"python" in words[0]:
                return int(path.parent.name)
    raise AssertionError(f"no process listens as {place}")


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS

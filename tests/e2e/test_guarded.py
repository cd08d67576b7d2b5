"""The whole loop under the shipped ACL policies: a cycle, a killed leader, rotated tokens, and no secret told."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from rebootd.cli.ctl_client import Trouble
from rebootd.core.audit import Kind, Line
from rebootd.core.audit_verify import verify
from tests.e2e.guarded import MACHINES, Guarded, certificates, guarded_cluster, https

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

POLICY = "gates:\n  - name: consul-servers\n    kind: consul-quorum\n"


async def ask(fleet: Guarded, method: str, path: str, body: bytes | None = None) -> Any:
    return json.loads(await asyncio.to_thread(fleet.client.ask, method, path, body))


async def until(fleet: Guarded, question: Callable[[], Awaitable[Any]], what: str, timeout: float = 60.0) -> Any:
    deadline = time.monotonic() + timeout
    while True:
        with suppress(Trouble):
            if found := await question():
                return found
        assert time.monotonic() < deadline, f"{what}\n{fleet.said()[-6000:]}"
        tell_no_secret(fleet)
        await asyncio.sleep(0.1)


def tell_no_secret(fleet: Guarded) -> None:
    """No argument of any process of ours holds a token (everyone on a host can read those)."""
    for pid in fleet.processes():
        with suppress(OSError):
            shown = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            # One that has just ended has no arguments any more.
            assert not shown or "rebootd" in shown or "sh" in shown
            assert not [secret for secret in fleet.secrets if secret in shown]


@pytest.mark.slow
async def test_the_whole_loop_under_the_least_policies(tmp_path: Path) -> None:
    shown = certificates(tmp_path / "tls")
    with guarded_cluster(tmp_path, shown) as cluster:
        plain = https(cluster.servers[1]).replace("https:", "http:")
        async with Guarded(cluster, tmp_path, shown) as fleet:

            async def leader() -> Any:
                return await ask(fleet, "GET", "/v1/status")

            first = await until(fleet, leader, "nobody leads")

            async def in_service() -> bool:
                rows = (await ask(fleet, "GET", "/v1/machines"))["machines"]
                return {row["name"]: row["state"] for row in rows} == {name: "in-service" for name, _ in MACHINES}

            await until(fleet, in_service, "not all machines came into service")
            await ask(fleet, "PUT", "/v1/policy?by=test&reason=quorum", POLICY.encode())
            await ask(fleet, "POST", "/v1/cycles", b'{"id": "k", "selector": "*", "by": "test"}')

            async def boots() -> int:
                return sum(machine.boots for machine in fleet.hosts.machines.values())

            await until(fleet, boots, "nobody reboots")
            # All tokens change while the cycle runs, and the old ones are worth nothing any more.
            old = list(fleet.secrets)
            for server in cluster.servers:
                fleet.give(f"daemon-{server.name}", "daemon", "daemon-gates")
            for name, _ in MACHINES:
                fleet.give(f"agent-{name}", "agent", node=name)
            for secret in old[1:]:
                fleet.revoke(secret)
            led = await until(fleet, leader, "nobody leads after the rotation")
            assert led["epoch"] == first["epoch"], "the rotation cost a leadership"
            number = next(n for n, port in enumerate(fleet.ports) if str(port) in led["daemon"]["url"])
            await fleet.kill(number)

            async def done() -> bool:
                return bool((await ask(fleet, "GET", "/v1/cycles/k"))["cycle"]["state"] == "done")

            await until(fleet, done, "the cycle does not end", 90)
            await until(fleet, in_service, "not all machines came back")
            assert {m.name: m.boots for m in fleet.hosts.machines.values()} == {name: 1 for name, _ in MACHINES}
            last = await until(fleet, leader, "nobody leads at the end")
            assert last["epoch"] == first["epoch"] + 1
            said = fleet.said()
            assert [secret for secret in fleet.secrets if secret in said] == []
            assert plain not in said
            one_chain_over_both_leaders(fleet)


def one_chain_over_both_leaders(fleet: Guarded) -> None:
    files, head = fleet.audit()
    verdict = verify(files, head)
    assert verdict.whole, verdict.findings
    lines = [msgspec.json.decode(raw, type=Line) for raws in files.values() for raw in raws]
    entries = [line for line in lines if line.kind is Kind.ENTRY]
    assert len({line.epoch for line in entries}) == 2
    assert sorted(line.machine for line in entries if line.what == "permit") == sorted(name for name, _ in MACHINES)
    assert {line.what for line in entries if line.who is not None} == {"policy-apply", "cycle-start"}
    for name, raws in files.items():
        for number in range(len(raws) - 1):
            damaged = [*raws[:number], raws[number].replace(b'"time":', b'"time":1'), *raws[number + 1 :]]
            assert not verify({**files, name: damaged}, head).whole

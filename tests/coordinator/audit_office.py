"""Daemons with audit files in one folder, one of which leads at a time."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from rebootd.coordinator.audit_file import AuditFile
from rebootd.core import operations
from rebootd.core.audit import Asked, Head, Line
from rebootd.core.audit_verify import verify
from rebootd.core.caller import Caller
from rebootd.core.operations_inputs import Because
from tests.coordinator.lab import Host, Lab

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from rebootd.coordinator.leader import Leader
    from rebootd.core.audit_verify import Verdict

ANN = Caller(identity="ann", kind="person", role="operator", address="10.0.0.7")
WHY = Because(by="ann", reason="smoke in r7")
ASKED = Asked(caller=ANN, what="PUT /v1/halt", by="ann@desk", reason="smoke in r7", request="r-1")
HEAD = "rebootd/audit"


class Office:
    """Daemons with files in one folder."""

    def __init__(self, folder: Path, racks: dict[str, list[str]] | None = None) -> None:
        self.folder = folder
        self.lab = Lab(racks or {"r1": ["m1"], "r2": ["m2"]})

    @asynccontextmanager
    async def leads(self, name: str, *, file: bool = True) -> AsyncIterator[Leader]:
        kept = AuditFile(self.folder / f"{name}.log", name, time.time) if file else None
        async with self.lab.leader(daemon=name, audit=kept) as leader:
            yield leader
        if kept is not None:
            await kept.close()

    def head(self) -> Head | None:
        entry = self.lab.consul.entries.get(HEAD)
        return msgspec.json.decode(entry.value, type=Head) if entry else None

    def files(self) -> dict[str, list[bytes]]:
        return {f.name: f.read_bytes().splitlines(keepends=True) for f in sorted(self.folder.glob("*.log*"))}

    def verdict(self, **facts: Any) -> Verdict:
        return verify(self.files(), self.head(), **facts)

    def lines(self, name: str = "d1.log") -> list[Line]:
        return [msgspec.json.decode(raw, type=Line) for raw in self.files()[name]]

    def metric(self, name: str) -> float | None:
        return self.lab.metrics.registry.get_sample_value(name)


async def halt(leader: Leader, asked: Asked | None = ASKED) -> None:
    await leader.apply(partial(operations.halt, because=WHY), asked)


async def unhalt(leader: Leader) -> None:
    await leader.apply(partial(operations.unhalt, because=WHY), ASKED)


async def cycle_through(leader: Leader, host: Host) -> None:
    await host.until(leader, "drained")
    assert (await host.ask(leader)).granted
    host.reboot()
    await host.join(leader)

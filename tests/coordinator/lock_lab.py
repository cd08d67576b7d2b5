"""FleetLock clients that talk to a leader of the lab."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from rebootd.core.fleetlock_record import Call, Word
from rebootd.core.model import Permit, State
from rebootd.core.operations_inputs import Because
from rebootd.core.operations_policy import apply_policy
from tests.coordinator.lab import Lab, eventually, record

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rebootd.coordinator.leader import Leader


RACKS = {"r1": ["a1", "a2"], "r2": ["b1", "b2"]}
ON = "fleetlock: {enabled: true}\nsettle: 0s\n"
BECAUSE = Because(by="test", reason="a test")


async def policy(leader: Leader, text: str) -> None:
    await leader.apply(lambda s: apply_policy(s, text, BECAUSE))


@asynccontextmanager
async def leading(lab: Lab, text: str = ON) -> AsyncIterator[Leader]:
    async with lab.leader() as leader:
        await policy(leader, text)
        yield leader


async def ask(leader: Leader, client: str, *, steady: bool = False, group: str = "default") -> Word:
    name = await leader.clients.machine(client)
    return await leader.clients.ask(name, Call(client, group, steady))


async def pre(leader: Leader, client: str) -> Word:
    return await ask(leader, client)


async def back(leader: Leader, client: str) -> Word:
    return await ask(leader, client, steady=True)


def permit(leader: Leader, name: str) -> Permit:
    found = record(leader, name).permit
    assert found is not None
    return found


async def served(leader: Leader, *clients: str) -> None:
    for client in clients:
        assert (await back(leader, client)).granted
        await eventually(lambda c=client: record(leader, c).state is State.IN_SERVICE)  # type: ignore[misc]

"""Where FleetLock clients ask: the leader acts as the agent of machines that have none.

It decides nothing: a call becomes part of the snapshot, the core says what follows (:mod:`rebootd.core.fleetlock`), and
this waits until that is in the store, or until it is clear that the client has to ask again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from rebootd.core.errors import InvalidInput, Refused
from rebootd.core.fleetlock import META, clients, machine_id, nonce, spent
from rebootd.core.fleetlock_record import Word
from rebootd.core.inputs import parse_name
from rebootd.core.model import State
from rebootd.core.wire import PermitRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rebootd.consul.leadership import Leadership
    from rebootd.coordinator.fleet import Fleet
    from rebootd.coordinator.reception import Reception
    from rebootd.coordinator.waiting import Waiting
    from rebootd.core.decision import Decision
    from rebootd.core.model import Blocker, Call, Machine

PATIENCE = 8.0
"""Seconds that a machine which is on its way is waited for before its client is told to ask again."""
SOON = frozenset({"next", "gate"})
"""Blockers that may be over in a moment: a gate that nobody waited for is read now."""


class Clients:
    """Belongs to one leadership."""

    def __init__(
        self,
        fleet: Fleet,
        waiting: Waiting,
        dirty: asyncio.Event,
        reception: Reception,
        decision: Callable[[], Decision],
        leadership: Leadership,
    ) -> None:
        self._fleet = fleet
        self._waiting = waiting
        self._dirty = dirty
        self._reception = reception
        self._decision = decision
        self._leadership = leadership
        self._nodes: Mapping[str, Mapping[str, str]] = {}
        self._names: dict[str, tuple[str, ...]] = {}

    async def machine(self, client: str) -> str:
        """The machine that the client's id stands for. Raises Refused for none, two, or one with no usable name."""
        self._reception.require(self._leadership)
        await self._reception.look_for(lambda: client in self._known())
        found = self._known().get(client, ())
        if not found:
            hint = f"no node has that name, or {META} = {client} in its meta"
            raise Refused(f"client {client} is not known to the Consul catalog: {hint}")
        if len(found) > 1:
            raise Refused(f"client {client} is several nodes of the Consul catalog: {', '.join(found[:5])}")
        try:
            return parse_name(found[0], "node")
        except InvalidInput as error:
            raise Refused(f"client {client}: {error}") from None

    def _known(self) -> dict[str, tuple[str, ...]]:
        if self._nodes is not self._fleet.node_meta:
            self._nodes = self._fleet.node_meta
            self._names = clients(self._nodes)
        return self._names

    async def ask(self, name: str, call: Call) -> Word:
        """What the machine's client is answered: at once if it has to wait, else when its step is in the store."""
        self._reception.require(self._leadership)
        machine = self._fleet.machines.get(name)
        if machine is not None and machine.machine_id == machine_id(name):
            # An agent that claimed its name a while ago is forgiven when the machine itself calls.
            self._reception.accept(name, machine.machine_id, machine.boot_id)
        barred = self._barred(name, call)
        if barred is not None:
            return barred
        self._fleet.calls[name] = call
        try:
            return await self._follow(name, call)
        finally:
            if self._fleet.calls.get(name) is call:
                del self._fleet.calls[name]

    def _barred(self, name: str, call: Call) -> Word | None:
        fleet = self._fleet
        machine = fleet.machines.get(name)
        if name in fleet.asides:
            return _no("aside", f"the record of {name} cannot be read: {fleet.asides[name].error}")
        if name in fleet.conflicts:
            return _no("conflict", fleet.conflicts[name])
        if machine.machine_id != machine_id(name) if machine is not None else name in fleet.observed:
            return _no("has-agent", f"{name} has an agent of rebootd, and that asks for its reboots")
        if not fleet.policy.fleetlock.enabled and (machine is None or not call.steady):
            return _no("disabled", "the policy does not let FleetLock clients ask for reboots (fleetlock.enabled)")
        return None

    async def _follow(self, name: str, call: Call) -> Word:
        clock = asyncio.get_running_loop().time
        until = clock() + PATIENCE
        self._dirty.set()
        while True:
            left = until - clock()
            if left > 0:
                await self._waiting.next_tick(name, left)
            self._reception.require(self._leadership)
            if self._fleet.calls.get(name) is not call:
                return _no("asked-again", f"the client of {name} asked again meanwhile")
            barred = self._barred(name, call)
            machine = self._fleet.machines.get(name)
            if barred is not None:
                return barred
            if machine is not None:
                word = self._back(machine) if call.steady else await self._out(machine)
                if word is not None:
                    self._reception.require(self._leadership)
                    return word
            if clock() >= until:
                return self._later(name)

    async def _out(self, machine: Machine) -> Word | None:
        """The answer to ``pre-reboot``, or None while the machine is on its way."""
        name, blockers = machine.name, self._decision().reasons.get(machine.name, ())
        if machine.state is State.IN_SERVICE:
            # While its wish is not in the store yet, it has a step, and nothing blocks it.
            return self._later(name) if any(b.kind not in SOON for b in blockers) else None
        held = name in self._fleet.machine_holds or machine.rack in self._fleet.rack_holds
        soaks = any(b.kind == "soak" for b in blockers)
        if soaks or machine.state is State.QUARANTINED or (machine.state is State.HELD and held):
            return self._later(name)
        if machine.state not in {State.DRAINED, State.REBOOTING, State.HELD}:
            return None
        await self._reception.before_drain(name)
        request = PermitRequest(
            name=name, machine_id=machine.machine_id, boot_id=machine.boot_id, nonce=nonce(machine), epoch=0
        )
        answer = await self._reception.permit(request, self._leadership)
        if answer.granted:
            return Word(granted=True, state=State.REBOOTING.value, valid_for=answer.valid_for)
        return _no(_kind(self._decision().reasons.get(name, ())) or "permit", answer.reason)

    def _back(self, machine: Machine) -> Word | None:
        """The answer to ``steady-state``, or None while the machine is on its way."""
        if spent(machine) or machine.fleetlock is None or machine.fleetlock.asked:
            return None
        if machine.state in {State.IN_SERVICE, State.ENABLING}:
            return Word(granted=True, state=machine.state.value)
        return self._later(machine.name) if machine.state in {State.HELD, State.QUARANTINED} else None

    def _later(self, name: str) -> Word:
        blockers = self._decision().reasons.get(name, ())
        if blockers:
            return _no(_kind(blockers), f"{name} waits: {'; '.join(b.what for b in blockers)}")
        machine = self._fleet.machines.get(name)
        state = machine.state.value if machine is not None else "without a record yet"
        return _no("on-its-way", f"{name} is {state} and goes on; ask again")


def _kind(blockers: tuple[Blocker, ...]) -> str:
    return blockers[0].kind if blockers else ""


def _no(kind: str, why: str) -> Word:
    return Word(granted=False, kind=kind, why=why)

"""Which rules of the state table landed in a run: no transition may be in none of the interrupted plans."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import msgspec

from rebootd.core import admit, operations, walk
from rebootd.core.advance import advance
from rebootd.core.model import Event, Machine
from rebootd.core.states import TABLE, Happening, Rule
from rebootd.store.port import Op, Set

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rebootd.core.model import State
    from tests.sim.world import World

PREFIX = "rebootd/machines/"
MAKERS = (walk, admit, operations)
"""The modules that move machines: by :func:`rebootd.core.advance.advance`, which knows nothing but the table."""


class Watch:
    """``landed`` has what each rule of the table brought into the store, as (from, happening)."""

    def __init__(self, world: World) -> None:
        self.landed: set[tuple[State, Happening]] = set()
        self._made: dict[tuple[str, int, int], tuple[Machine, Happening, Machine]] = {}
        self._versions: dict[str, int] = {}
        world.consul.observers.append(self._committed)

    def advance(self, machine: Machine, happening: Happening, **facts: Any) -> tuple[Machine, Event]:
        """As the real one. What is decided need not land, so it is only noted."""
        after, event = advance(machine, happening, **facts)
        self._made[after.name, after.epoch, after.version] = (machine, happening, after)
        return after, event

    def _committed(self, _index: int, ops: Sequence[Op]) -> None:
        for op in ops:
            if isinstance(op, Set) and op.key.startswith(PREFIX):
                self._record(msgspec.json.decode(op.value, type=Machine))

    def _record(self, record: Machine) -> None:
        """A transaction may carry a machine several steps along the table; the last one is what the record shows."""
        before = self._versions.get(record.name, 0)
        self._versions[record.name] = record.version
        steps = [
            step
            for version in range(before + 1, record.version + 1)
            if (step := self._made.get((record.name, record.epoch, version))) is not None
        ]
        if steps and (steps[-1][2].state, steps[-1][2].cause) == (record.state, record.cause):
            self.landed |= {(machine.state, happening) for machine, happening, _ in steps}


@contextmanager
def watching(world: World) -> Iterator[Watch]:
    """Watches while the world runs."""
    watch = Watch(world)
    with ExitStack() as stack:
        for module in MAKERS:
            stack.enter_context(mock.patch.object(module, "advance", watch.advance))
        yield watch


def missing(landed: Iterable[tuple[State, Happening]], table: Iterable[Rule] = TABLE) -> list[str]:
    """The rules of the table that did not land, as a person would write them."""
    there = set(landed)
    return [
        f"{rule.frm.value} + {rule.happening.value} -> {rule.to.value}"
        for rule in table
        if (rule.frm, rule.happening) not in there
    ]

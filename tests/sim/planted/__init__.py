"""Planted bugs: each one a mistake that somebody could make, to show that the simulation finds it."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from tests.sim.planted import agents, clients, coordinators, cores, gates, pace, power, records

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.sim.planted.kind import Planted

WHERE = (cores, gates, power, pace, records, coordinators, agents, clients)
PLANTED: dict[str, Planted] = {planted.name: planted for where in WHERE for planted in where.ALL}


@contextmanager
def plant(name: str) -> Iterator[None]:
    """The product with the planted bug ``name`` (``""``: as it is)."""
    with ExitStack() as stack:
        if name:
            for patch in PLANTED[name].patches():
                stack.enter_context(patch)
        yield

"""Planted bugs: each one a mistake that somebody could make, to show that the simulation finds it."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from tests.sim.planted import agents, beside, coordinators, cores

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.sim.planted.kind import Planted

PLANTED: dict[str, Planted] = {p.name: p for p in (*cores.ALL, *beside.ALL, *coordinators.ALL, *agents.ALL)}


@contextmanager
def plant(name: str) -> Iterator[None]:
    """The product with the planted bug ``name`` (``""``: as it is)."""
    with ExitStack() as stack:
        if name:
            for patch in PLANTED[name].patches():
                stack.enter_context(patch)
        yield

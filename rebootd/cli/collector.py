"""Python's cyclic garbage collector in a process that holds ten thousand connections."""

from __future__ import annotations

import asyncio
import gc

EVERY = 600.0
"""Seconds between two full collections: 0.3 s of standstill with ten thousand waiting agents [measured]."""


def spare() -> None:
    """Lets the collector run seldom, and not on what was imported.

    Records and requests die by reference count. With Python's own thresholds the collector looks at every object of
    ten thousand connections again and again while they call in: 100 s of a boot storm, in pauses of up to 2 s
    each [measured].
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 1000)


async def now_and_then() -> None:
    """Collects what is left: each closed connection leaves asyncio's transport, which refers to itself (1 kB)."""
    while True:
        await asyncio.sleep(EVERY)
        gc.collect()

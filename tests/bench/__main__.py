"""``python -m tests.bench [names…]``: takes figures, prints them, and writes the page when all were taken in full."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

from tests.bench import audit, checkins, decide, failover, forecast, handoff, simulation, storm, tls
from tests.bench.figures import Figure, show, write

if TYPE_CHECKING:
    from collections.abc import Callable

BENCHES: dict[str, Callable[[], list[Figure]]] = {
    "checkins": checkins.run,
    "storm": storm.run,
    "handoff": handoff.run,
    "failover": failover.run,
    "decide": decide.run,
    "forecast": forecast.run,
    "simulation": simulation.run,
    "audit": audit.run,
    "tls": tls.run,
}
SMALL: dict[str, Callable[[], list[Figure]]] = {
    "checkins": lambda: checkins.run(machines=64, rounds=2, seconds=0.5),
    "storm": lambda: storm.run(machines=400, idle=5.0),
    "handoff": lambda: handoff.run(machines=16),
    "failover": lambda: failover.run(rounds=2, agents=40),
    "simulation": lambda: simulation.run(seeds=2, times=1),
    "audit": lambda: audit.run(entries=2000),
    "tls": lambda: tls.run(machines=60, requests=1000),
}
CORES = 2
BUSY = 0.5
"""Load average per core above which somebody else's work spoils the figures."""


def main() -> None:
    """Takes the figures that were named, or all."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description="Takes the figures of docs/performance.md."
    )
    parser.add_argument("names", nargs="*", metavar="name", help=f"one or more of {', '.join(BENCHES)}; all by default")
    parser.add_argument("--small", action="store_true", help="smaller sizes, to see whether everything works")
    parser.add_argument("--cores", type=int, default=CORES, help="cores for everything together (default: %(default)s)")
    chosen = parser.parse_args()
    unknown = [name for name in chosen.names if name not in BENCHES]
    if unknown:
        parser.error(f"no such figure: {unknown[0]!r} (choose from {', '.join(BENCHES)})")
    # A bench that is told to stop leaves through its context managers, which end what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    cores = sorted(os.sched_getaffinity(0))[: chosen.cores]
    os.sched_setaffinity(0, cores)
    load = os.getloadavg()[0]
    if load > BUSY * len(cores):
        print(f"this machine is busy (load average {load:.1f}): figures will be worse than they are", file=sys.stderr)
    benches = BENCHES | SMALL if chosen.small else BENCHES
    figures: list[Figure] = []
    for name in chosen.names or BENCHES:
        began = time.monotonic()
        print(f"{name} ...", file=sys.stderr, flush=True)
        figures += benches[name]()
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    show(figures)
    if not chosen.names and not chosen.small:
        write(figures, load)


if __name__ == "__main__":
    main()

"""``python -m tests.sim``: many seeds on all cores, or one seed told in full. See docs/safety.md."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.sim.enough import too_few
from tests.sim.fleets import FLEET
from tests.sim.lock_plan import FLEETLOCK
from tests.sim.month import MONTH, plan_of
from tests.sim.plan import PROFILES
from tests.sim.planted import PLANTED, plant
from tests.sim.run import Outcome, prepare, quiet_logs, run_seed
from tests.sim.shrink import shrink

CHUNK = 10
"""Seeds that a process takes at a time; of the long ones, one."""


def run_seeds(first: int, count: int, profile: str = "", planted: str = "") -> list[Outcome]:
    """Several seeds in one process; the story is kept only of those that fail."""
    prepare()
    outcomes = []
    with plant(planted):
        for seed in range(first, first + count):
            outcome = run_seed(seed, profile=profile)
            if outcome.ok:
                outcome.log = []
            outcomes.append(outcome)
    gc.collect()
    return outcomes


def main() -> int:
    """Exit code 0 if every seed held and enough happened, 1 if not."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many seeds (default 1000)")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="one seed, with its story")
    parser.add_argument("--faults", help="indexes of faults to keep, such as 3,7 (or none); with --seed")
    parser.add_argument(
        "--profile", choices=(*PROFILES, FLEETLOCK, MONTH, FLEET), default="", help="draw faults of this kind only"
    )
    parser.add_argument("--planted", choices=sorted(PLANTED), default="", help="run with a planted bug")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("-v", "--verbose", action="store_true", help="print the story while it happens")
    options = parser.parse_args()
    quiet_logs()
    if options.seed is not None:
        return _one(options)
    return _many(options)


def _one(options: argparse.Namespace) -> int:
    only = None
    if options.faults is not None:
        only = set() if options.faults == "none" else {int(i) for i in options.faults.split(",")}
    with plant(options.planted):
        outcome = run_seed(options.seed, profile=options.profile, only=only, verbose=options.verbose)
    if not options.verbose:
        print("\n".join(outcome.log))
    print(outcome.violation or f"seed {options.seed}: everything held ({outcome.hours:.1f} simulated hours)")
    return 0 if outcome.ok else 1


def _many(options: argparse.Namespace) -> int:
    began = time.monotonic()
    failed: list[Outcome] = []
    counts: Counter[str] = Counter()
    hours = 0.0
    chunk = 1 if options.profile in {MONTH, FLEET} else CHUNK
    starts = range(options.first, options.first + options.seeds, chunk)
    end = options.first + options.seeds
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with ProcessPoolExecutor(options.jobs) as pool, Progress(*columns, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("seeds", total=options.seeds)
        runs = [pool.submit(run_seeds, s, min(chunk, end - s), options.profile, options.planted) for s in starts]
        for run in as_completed(runs):
            for outcome in run.result():
                counts.update(outcome.counts)
                hours += outcome.hours
                if not outcome.ok:
                    failed.append(outcome)
                    bar.print(f"seed {outcome.seed}: {outcome.violation}")
                bar.update(task, advance=1, description=f"seeds, {len(failed)} failed")
    took = time.monotonic() - began
    print(
        f"{options.seeds} seeds, {len(failed)} failed, in {took:.0f} s: {hours:.0f} simulated hours, "
        f"{counts['reboots']} simulated reboots, {counts['leaderships']} leaderships, {counts['commits']} commits"
    )
    for outcome in sorted(failed, key=lambda o: o.seed)[:3]:
        _explain(outcome, options)
    if failed:
        return 1
    return enough(counts, options.seeds, options.profile)


def _explain(outcome: Outcome, options: argparse.Namespace) -> None:
    plan = plan_of(outcome.seed, options.profile)
    with plant(options.planted):
        needed = shrink(plan, outcome)
    print(f"\nseed {outcome.seed}: {outcome.violation}")
    for index in needed:
        print(f"  {index:3d}  {plan.faults[index]}")
    kept = ",".join(str(i) for i in needed) or "none"
    more = f" --profile {options.profile}" if options.profile else ""
    more += f" --planted {options.planted}" if options.planted else ""
    print(f"  replay: python -m tests.sim --seed {outcome.seed} --faults {kept}{more}")


def enough(counts: Counter[str], seeds: int, profile: str = "") -> int:
    """Exit code 1 for a run in which too little happened."""
    few = too_few(counts, seeds, profile)
    if few:
        print(f"too little happened, this run proves nothing: {', '.join(f'{counts[w]} {w}' for w in few)}")
    return int(bool(few))


if __name__ == "__main__":
    sys.exit(main())

"""What the simulation does in a second of one core: for docs/performance.md."""

from __future__ import annotations

import time
from dataclasses import dataclass

from rebootd.consul.leadership import Tuning
from tests.sim.month import month_plan
from tests.sim.plan import Fault, Plan
from tests.sim.run import Outcome, prepare, run_seed


@dataclass(frozen=True)
class Figures:
    """``reboots`` and ``seeds`` are per second and per minute of one core; messages are between agents and daemons.

    ``idle_hours_per_minute`` are those of a fleet that is left alone, with its chores as they are and 30 times slower.
    """

    reboots_per_second: float
    messages_per_reboot: float
    commits_per_reboot: float
    hours_per_minute: float
    seeds_per_minute: float
    idle_hours_per_minute: tuple[float, float]


def fleet_plan(machines: int = 40, cycles: int = 12) -> Plan:
    """A fleet in four racks, half a rack at once, cycle after cycle, with faults of every kind that lets it go on."""
    racks = {f"r{r}": [f"m{r}x{i}" for i in range(machines // 4)] for r in range(1, 5)}
    faults = [Fault(60.0 + 40.0 * i, *TROUBLE[i % len(TROUBLE)], 10.0, 0.05) for i in range(2 * cycles)]
    faults += [Fault(50.0 + 80.0 * i, "start") for i in range(cycles)]
    return Plan(
        seed=1,
        profile="everything",
        racks=racks,
        labels={name: {"role": "web"} for names in racks.values() for name in names},
        daemons=["ctl1", "ctl2", "ctl3"],
        policy="racks:\n  open: 1\n  unavailable: 50%\nsettle: 20s\nfailure_budget: 100\n",
        faults_for=80.0 * cycles,
        faults=sorted(faults, key=lambda f: f.at),
        boot_seconds=(2.0, 5.0),
        hook_seconds=0.5,
        tick=10.0,
        tuning=Tuning(proof_every=2.0, proof_timeout=1.4, deadline=8.0, renew_every=5.0),
    )


TROUBLE = (
    ("kill-leader", ""),
    ("lossy", ""),
    ("power-cut", "out"),
    ("store-late", ""),
    ("stop-leader", ""),
    ("kill-agent", "out"),
    ("session-ended", ""),
    ("store-away", ""),
    ("repeats", ""),
)


def measure(seeds: int = 30, times: int = 3) -> Figures:
    """Takes about a minute. Times are CPU seconds of this process; for the fleet the least of several is taken."""
    prepare()
    fleet, took = _fleet()
    took = min([took, *(_fleet()[1] for _ in range(times - 1))])
    reboots = fleet.counts["reboots"]
    began = time.process_time()
    hours = sum(run_seed(seed).hours for seed in range(seeds))
    each = time.process_time() - began
    return Figures(
        reboots_per_second=reboots / took,
        messages_per_reboot=fleet.messages / reboots,
        commits_per_reboot=fleet.counts["commits"] / reboots,
        hours_per_minute=60 * hours / each,
        seeds_per_minute=60 * seeds / each,
        idle_hours_per_minute=(_idle(days=1.0, tempo=1.0), _idle(days=10.0, tempo=30.0)),
    )


def _idle(days: float, tempo: float) -> float:
    """Simulated hours per minute of one core of a fleet that is left alone."""
    began = time.process_time()
    outcome = run_seed(3, plan=month_plan(3, days=days, tempo=tempo))
    if not outcome.ok:
        raise RuntimeError(outcome.violation)
    return 60 * outcome.hours / (time.process_time() - began)


def _fleet() -> tuple[Outcome, float]:
    """The fleet's run, and what it took."""
    began = time.process_time()
    outcome = run_seed(1, plan=fleet_plan())
    if not outcome.ok:
        raise RuntimeError(outcome.violation)
    return outcome, time.process_time() - began


if __name__ == "__main__":
    print(measure())

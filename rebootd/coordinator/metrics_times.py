"""Gauges of the snapshot that alerts compare with time: how long, until when, and what the policy tolerates.

They are computed from the records' own times, so that they go on over a change of leader.
"""

from __future__ import annotations

from collections import Counter as Count
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily

from rebootd.core.limits import unheard
from rebootd.core.model import CycleState, State
from rebootd.core.policy import DEADLINE_FIELDS
from rebootd.core.windows import judge_windows

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.metrics_core import Metric

    from rebootd.core.model import Machine, Snapshot

_ENDED = frozenset({CycleState.CANCELLED, CycleState.DONE})


def times(snapshot: Snapshot) -> Iterable[Metric]:
    """All of them. Times are seconds since the Unix epoch, durations seconds."""
    yield from _states(snapshot)
    yield from _racks(snapshot)
    yield from _cycles(snapshot)
    policy = snapshot.policy
    opened = judge_windows(policy, snapshot.windows, snapshot.now).open
    yield _one("rebootd_window_open", "1 while machines may go out by the windows (1 where none is needed)", opened)
    yield _one("rebootd_clock_tolerance_seconds", "How far off the leader's clock may be", policy.clock_tolerance)
    if policy.failures.power.address:
        cap = policy.failures.power.per_hour
        yield _one("rebootd_power_cycles_per_hour_max", "How many out-of-band power cycles an hour may have", cap)


def _states(snapshot: Snapshot) -> Iterable[Metric]:
    oldest = GaugeMetricFamily(
        "rebootd_oldest_in_state_seconds", "For how long the one that is there longest is in a state", labels=["state"]
    )
    missing = GaugeMetricFamily(
        "rebootd_unheard_machines", "Machines whose agents have not called lately, by state", labels=["state"]
    )
    silent: Count[State] = Count()
    first: dict[State, float] = {}
    for name, m in snapshot.machines.items():
        if unheard(snapshot, name):
            silent[m.state] += 1
        if m.state is not State.IN_SERVICE and m.since < first.get(m.state, float("inf")):
            first[m.state] = m.since
    for state in State:
        missing.add_metric([state.value], silent[state])
        if state is not State.IN_SERVICE:
            oldest.add_metric([state.value], max(0.0, snapshot.now - first.get(state, snapshot.now)))
    yield oldest
    yield missing
    deadline = GaugeMetricFamily(
        "rebootd_deadline_seconds", "How long a machine may stay in a state, by the policy", labels=["state"]
    )
    for name in DEADLINE_FIELDS:
        state = State(name)
        soak = snapshot.policy.soak if state is State.ENABLING else 0.0
        deadline.add_metric([name], (snapshot.policy.deadlines.of(state) or 0.0) + soak)
    yield deadline


def _racks(snapshot: Snapshot) -> Iterable[Metric]:
    quiet = GaugeMetricFamily(
        "rebootd_rack_quiet_seconds", "Since no machine of a rack that we hold has changed its state", labels=["rack"]
    )
    last: dict[str, Machine] = {}
    for m in snapshot.machines.values():
        if m.rack not in last or m.since > last[m.rack].since:
            last[m.rack] = m
    for rack, lock in snapshot.racks.items():
        if lock.holder == "ours" and rack in last:
            quiet.add_metric([rack], max(0.0, snapshot.now - last[rack].since))
    yield quiet


def _cycles(snapshot: Snapshot) -> Iterable[Metric]:
    started = GaugeMetricFamily(
        "rebootd_cycle_started_timestamp_seconds", "When a cycle that has not ended was started", labels=["cycle"]
    )
    ends = GaugeMetricFamily(
        "rebootd_cycle_estimated_end_timestamp_seconds",
        "The end that was forecast for a cycle soon after its start",
        labels=["cycle"],
    )
    for cycle in snapshot.cycles.values():
        if cycle.state in _ENDED:
            continue
        started.add_metric([cycle.id], cycle.created)
        if cycle.estimated:
            ends.add_metric([cycle.id], cycle.estimated)
    yield started
    yield ends


def _one(name: str, text: str, value: float) -> Metric:
    family = GaugeMetricFamily(name, text)
    family.add_metric([], float(value))
    return family

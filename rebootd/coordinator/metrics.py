"""What the leader and its daemon count, in prometheus-client instruments on a given registry.

What can be read from the snapshot (machines by state, open racks, blocked reasons) is collected at
scrape time; only what happens in between is counted as it happens.
"""

from __future__ import annotations

from collections import Counter as Count
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry

from rebootd.coordinator.metrics_times import times
from rebootd.core.breakers import Breakers
from rebootd.core.gates import overdue
from rebootd.core.power import spent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client.metrics_core import Metric

    from rebootd.core.decision import Decision
    from rebootd.core.model import Event, Snapshot

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 15.0)
_STATE_SECONDS = (1, 5, 15, 30, 60, 120, 300, 600, 1200, 3600, 14400, 86400)


class Metrics:
    """The instruments of one daemon. ``registry`` is passed in: there is no global one."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.transitions = Counter(
            "rebootd_transitions", "Transitions committed", ["from_state", "to_state", "cause"], registry=registry
        )
        self.in_state = Histogram(
            "rebootd_state_seconds",
            "Time a machine spent in a state before it left it",
            ["state"],
            buckets=_STATE_SECONDS,
            registry=registry,
        )
        self.commit = Histogram(
            "rebootd_commit_seconds", "Time of one store transaction", ["outcome"], buckets=_SECONDS, registry=registry
        )
        self.batch = Histogram(
            "rebootd_commit_operations",
            "Operations in one store transaction",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=registry,
        )
        self.decide = Histogram(
            "rebootd_decide_seconds", "Time of one decision", buckets=(0.001, *_SECONDS), registry=registry
        )
        self.permits = Counter("rebootd_permits", "Permit requests answered", ["granted"], registry=registry)
        self.refused = Counter("rebootd_reports_refused", "Reports refused", ["why"], registry=registry)
        self.elections = Counter("rebootd_elections_won", "Elections won by this daemon", registry=registry)
        self.audit_entries = Counter(
            "rebootd_audit_entries", "Audit entries, by what became of the change", ["result"], registry=registry
        )
        self.notifications = Counter(
            "rebootd_notifications", "Notices to receivers, by what became of them", ["result"], registry=registry
        )
        self.audit_broken = Gauge(
            "rebootd_audit_chain_broken", "1 once this leader found the audit chain broken", registry=registry
        )
        self.audit_unwritable = Gauge(
            "rebootd_audit_unwritable", "1 while this daemon cannot write its audit log", registry=registry
        )

    def committed(self, seconds: float, operations: int, outcome: str) -> None:
        """One transaction ended."""
        self.commit.labels(outcome).observe(seconds)
        self.batch.observe(operations)

    def happened(self, event: Event, since: float | None) -> None:
        """One transition landed; ``since`` is when the machine came into the state it left."""
        if event.kind != "transition":
            return
        cause = event.cause.partition(":")[0].partition(" ")[0]
        self.transitions.labels(event.frm or "new", event.to, cause).inc()
        if since is not None and event.frm:
            self.in_state.labels(event.frm).observe(max(0.0, event.time - since))


class FleetCollector(Collector):
    """Gauges read from the leader's present snapshot; a daemon that does not lead shows only that."""

    def __init__(self, look: Callable[[], tuple[Snapshot, Decision, int] | None]) -> None:
        self._look = look

    def collect(self) -> Iterable[Metric]:
        """Called by the registry at each scrape."""
        seen = self._look()
        leader = GaugeMetricFamily("rebootd_leader", "1 while this daemon leads")
        leader.add_metric([], 1.0 if seen else 0.0)
        yield leader
        if seen is None:
            return
        snapshot, decision, waiting = seen
        yield _single("rebootd_epoch", "Epoch of this leadership", snapshot.epoch)
        yield _single("rebootd_waiting_agents", "Agents whose requests are open", waiting)
        yield _single("rebootd_halted", "1 while everything is halted", 1.0 if snapshot.halt else 0.0)
        yield _single("rebootd_clock_skew_seconds", "Leader's clock minus its agents' median", snapshot.clock_skew)
        yield _single("rebootd_records_aside", "Machine records that cannot be read", len(snapshot.asides))
        yield _single("rebootd_identity_conflicts", "Names that two machines report", len(snapshot.conflicts))
        yield _single("rebootd_faults", "Faults that keep machines from going out", len(snapshot.faults))
        yield _single(
            "rebootd_breakers_open", "Label values whose machines are held back", len(Breakers(snapshot).open)
        )
        yield _single("rebootd_power_cycles_last_hour", "Out-of-band power cycles in the last hour", spent(snapshot))
        flagged = sum(1 for m in snapshot.machines.values() if m.flag)
        yield _single("rebootd_flagged_machines", "Machines that a reboot did not bring what was required", flagged)
        machines = GaugeMetricFamily(
            "rebootd_machines", "Machines by state, rack and cycle", labels=["state", "rack", "cycle"]
        )
        counts = Count((m.state.value, m.rack, m.cycle) for m in snapshot.machines.values())
        for (state, rack, cycle), n in counts.items():
            machines.add_metric([state, rack, cycle], n)
        yield machines
        racks = GaugeMetricFamily("rebootd_rack_locked", "1 for each locked rack", labels=["rack", "holder"])
        for rack, lock in snapshot.racks.items():
            if lock.holder != "free":
                racks.add_metric([rack, lock.holder], 1.0)
        yield racks
        blocked = GaugeMetricFamily("rebootd_blocked_machines", "Waiting machines by kind of blocker", labels=["kind"])
        kinds = Count(kind for blockers in decision.reasons.values() for kind in {b.kind for b in blockers})
        for kind, n in kinds.items():
            blocked.add_metric([kind], n)
        yield blocked
        yield from _gates(snapshot, decision)
        yield _single("rebootd_machines_failing", "Machines that Consul says have failed", len(snapshot.failing))
        cycles = GaugeMetricFamily("rebootd_cycle", "1 for each cycle, by state", labels=["cycle", "state"])
        for cycle_ in snapshot.cycles.values():
            cycles.add_metric([cycle_.id, cycle_.state.value], 1.0)
        yield cycles
        yield from times(snapshot)


def _gates(snapshot: Snapshot, decision: Decision) -> Iterable[Metric]:
    """What each gate says while somebody waits, and which have said no for too long."""
    said = GaugeMetricFamily(
        "rebootd_gate", "1 for what each gate says (idle: nobody waits)", labels=["gate", "verdict"]
    )
    late_family = GaugeMetricFamily(
        "rebootd_gate_overdue", "1 for a gate that keeps machines in for longer than its max_block", labels=["gate"]
    )
    late = overdue(snapshot)
    for name, verdict in decision.gates.items():
        said.add_metric([name, verdict.word.value if name in snapshot.gate_since else "idle"], 1.0)
        late_family.add_metric([name], 1.0 if name in late else 0.0)
    yield said
    yield late_family


def _single(name: str, text: str, value: float) -> Metric:
    family = GaugeMetricFamily(name, text)
    family.add_metric([], value)
    return family

"""What the code really shows on ``/metrics`` and writes for node_exporter: every metric, with its labels and values."""

from __future__ import annotations

from ssl import PROTOCOL_TLS_SERVER, SSLContext
from typing import TYPE_CHECKING

from msgspec.structs import replace
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from rebootd.agent.statefile import AgentState
from rebootd.agent.textfile import render
from rebootd.cli.server_tls import TlsCollector, failed_handshakes, waiting_handshakes
from rebootd.coordinator.metrics import FleetCollector, Metrics
from rebootd.core.decide import decide
from rebootd.core.gates import Held, Reading, Samples
from rebootd.core.model import Aside, CycleState, Event, PowerCycle, RackLock, State
from rebootd.core.policy import parse_policy
from rebootd.tls.follow import ServerState
from rebootd.tls.listener import LEFT
from tests.core.worlds import HALT, NOW, OTHER, OURS, cycle, machine, out, snapshot

if TYPE_CHECKING:
    from rebootd.core.model import Snapshot

Shown = dict[str, dict[str, set[str]]]
"""Sample name -> label -> the values that it had."""

OUTCOMES = ("committed", "refused", "denied", "too-large", "unknown", "unsent")
"""Those of the store's writer (a test compares)."""
POLICY = parse_policy("""
racks: {open: 2}
windows: {required: true}
failures:
  power: {address: "https://{name}-bmc"}
  breaker: {failures: 2}
gates:
  - name: load
    kind: prometheus
    address: http://prometheus.service.consul:9090
    query: load
    holds_when: "< 1"
    max_block: 10m
""")


def busy() -> Snapshot:
    """A fleet in which everything that has a metric is the case at once."""
    (gate,) = POLICY.gates
    on_the_way = [
        State.DRAINING, State.DRAINED, State.REBOOTING, State.VERIFYING, State.ENABLING, State.HELD, State.QUARANTINED,
    ]  # fmt: skip
    return snapshot(
        *(out(state, f"m-{state}", "r1") for state in on_the_way),
        out(State.QUARANTINED, "m-too", "r1"),
        machine("m-waits", "r2"),
        machine("m-silent", "r3"),
        machine("m-odd", "r3", flag="a reboot changed nothing"),
        silent=["m-silent"],
        policy=POLICY,
        halt=HALT,
        cycles=[cycle(f"k-{state}", state=state, estimated=NOW + 60) for state in CycleState] + [cycle("k1")],
        racks={"r1": OURS, "r2": RackLock(), "r3": OTHER},
        asides={"m-torn": Aside("m-torn", "r1", "no JSON", NOW)},
        conflicts={"m-two": "two machines"},
        faults=("denied",),
        failing={"m-odd": "disk"},
        power={"m-x": PowerCycle(machine="m-x", boot_id="b", address="https://m-x-bmc", since=NOW, changed=NOW)},
        readings={gate.name: Reading(gate=gate, at=NOW - 1, value=Samples((("", 9.0),)))},
        gate_since={gate.name: Held("block", NOW - 900, NOW - 900)},
    )


def healthy() -> Snapshot:
    """A fleet in which nothing is wrong and a cycle runs."""
    machines = (machine("m1", "r1"), out(State.REBOOTING, "m2", "r1"), machine("m3", "r2"))
    return snapshot(*machines, cycles=[cycle("k1", estimated=NOW + 3600)], racks={"r1": OURS})


class Certificates:
    """A daemon's, the same whether it leads or not."""

    state = ServerState(SSLContext(PROTOCOL_TLS_SERVER), NOW + 90 * 86400, crl_expires=NOW + 90 * 86400)
    problem = ""


def daemon(world: Snapshot | None) -> str:
    """What ``GET /metrics`` answers, as ``rebootd server`` makes it: a leader's with this snapshot, or a follower's."""
    registry = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    metrics = Metrics(registry)
    if world is not None:
        metrics.elections.inc()
        metrics.decide.observe(0.01)
        for outcome in OUTCOMES:
            metrics.committed(0.1, 3, outcome)
        for granted in ("yes", "no"):
            metrics.permits.labels(granted).inc()
        metrics.refused.labels("stale").inc()
        for result in ("committed", "not committed"):
            metrics.audit_entries.labels(result).inc()
        for result in ("sent", "failed", "dropped"):
            metrics.notifications.labels(result).inc()
        metrics.audit_broken.set(bool(world.faults))
        metrics.audit_unwritable.set(bool(world.faults))
        for state in State:
            left = State.IN_SERVICE if state is not State.IN_SERVICE else State.ENABLING
            metrics.happened(Event(time=NOW, machine="m1", frm=left.value, to=state.value, cause="cycle k1"), NOW - 9)
            metrics.happened(Event(time=NOW, machine="m1", frm=state.value, to="in-service", cause="enabled"), NOW - 9)
    failed = failed_handshakes(registry)
    for why in ("no certificate was shown", LEFT):
        failed.labels(why).inc()
    waiting_handshakes(registry).set(3)
    registry.register(TlsCollector(Certificates()))
    decision = decide(world) if world is not None else None
    registry.register(FleetCollector(lambda: (world, decision, 7) if world is not None and decision else None))
    return generate_latest(registry).decode()


def agent() -> str:
    """What an agent writes for node_exporter's textfile collector."""
    return render(replace(AgentState(), machine="m1", since=NOW, updated=NOW), "1.0")


def shown(*texts: str) -> Shown:
    """All samples in some expositions."""
    found: Shown = {}
    for text in texts:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = found.setdefault(sample.name, {})
                for label, value in sample.labels.items():
                    labels.setdefault(label, set()).add(value)
    return found

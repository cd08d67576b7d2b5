"""Whatever differs between two policies, a diff tells it: every section, on a fleet with something of everything."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from rebootd.core.fleetlock_record import FleetLock
from rebootd.core.model import State
from rebootd.core.operations_inputs import Because
from rebootd.core.operations_policy import apply_policy, diff_policy
from rebootd.core.policy import SECTIONS, parse_policy, render_policy
from rebootd.core.policy_at_once import PREFIX
from rebootd.core.wire import Tri
from tests.core.worlds import NOW, OURS, cycle, hold, machine, out, snapshot

TEXTS = {
    "racks": ["{open: 3}", "{unavailable: 50%}", "{unavailable: 0, order: [r3, r1]}", "{order: smallest-first}"],
    "limits": ["[{name: web, selector: role=web, max: 1}]", "[{name: web, selector: '*', max: 0}]"],
    "windows": ["{required: true}", "{calendar: [{name: n, start: 0 22 * * *, duration: 5m}]}",
                "{calendar: [{name: n, start: 0 7 * * *, duration: 3h}]}"],
    "deadlines": ["{rebooting: 10s}", "{draining: 40m, verifying: 1s}"],
    "soak": ["1h"],
    "permit": ["{valid: 1s}"],
    "settle": ["1d"],
    "unreachable_after": ["1s", "1d"],
    "clock": ["{tolerance: 1s}"],
    "failure_budget": ["7"],
    "power_loss_share": ["1%"],
    "failures": ["{breaker: {failures: 2}}", "{flapping: {boots: 1}, repeat: true}", "{power: {address: 'https://{name}'}}"],
    "waves": ["[{machines: role=db, soak: 1h}, {size: 2}, {size: 100%}]", "[{racks: [r2]}, {size: 100%}]"],
    "standing": ["{enabled: true, selector: role=web}", "{enabled: true, every: 1h}"],
    "forecast": ["{reboot: 2h}"],
    "gates": ["[{name: g, kind: consul-quorum}]",
              "[{name: g, kind: consul-service, service: x, minimum: 1, covers: rack=r1}]"],
    "quorums": ["[{name: q, selector: rack=r1}]", "[{name: q, selector: role=db, allow_outage: true}]"],
    "forget_after": ["1h"],
    "drains": ["{nomad: {machines: role=web, deadline: 5m}}", "{nomad: {machines: '*', system: keep}}"],
    "reboot": ["{methods: [{machines: role=web, method: kexec}]}",
               "{methods: [{machines: rack=r1, method: custom}, {machines: role=web, method: reboot}]}"],
    "silences": ["{alertmanager: 'http://a:9093'}"],
    "fleetlock": ["{enabled: true}", "{wish: 1h}"],
}  # fmt: skip
POLICIES = st.fixed_dictionaries(
    {}, optional={section: st.sampled_from(texts) for section, texts in TEXTS.items()}
).map(lambda chosen: "\n".join(f"{section}: {text}" for section, text in chosen.items()) or "{}")

WEB = {"role": "web"}
MACHINES = (
    *(machine(f"w{n}", f"r{n % 3 + 1}", labels=WEB) for n in range(8)),
    machine("d1", "r1", labels={"role": "db"}, reboot_required=Tri.YES, required_since=NOW - 9),
    machine("f1", "r3", fleetlock=FleetLock(id="f"), reboot_required=Tri.YES),
    machine("n1", ""),
    machine("q1", "r2", State.QUARANTINED, outcomes={"k1": "failed: deadline"}),
    out(State.REBOOTING, "o1", "r1", since=NOW - 100),
    out(State.VERIFYING, "o2", "r2", since=NOW - 100, labels=WEB),
    out(State.HELD, "h1", "r3"),
)


def test_every_section_is_among_them() -> None:
    assert set(TEXTS) == set(SECTIONS)


@settings(deadline=None, max_examples=60)
@given(POLICIES, POLICIES)
def test_whatever_differs_is_told_for_machines_that_there_are(one: str, other: str) -> None:
    old, new = parse_policy(one), parse_policy(other)
    world = snapshot(
        *MACHINES, policy=old, cycles=[cycle(), cycle("k2", selector="role=web")], holds=[hold("machine", "h1")],
        racks={"r1": OURS, "r2": OURS}, silent=["w3", "o1"],
    )  # fmt: skip
    diff = diff_policy(world, other)
    assert bool(diff.fields) is (render_policy(old) != render_policy(new))
    assert apply_policy(world, other, Because()).writes
    assert diff.fields or not (diff.limits or diff.concerns or diff.fleet_wide)
    whats = [c.what for c in diff.concerns]
    assert len(whats) == len(set(whats))
    assert whats == [w for w in whats if not w.startswith(PREFIX)] + [w for w in whats if w.startswith(PREFIX)]
    told = [(x.machines, x.names) for x in diff.limits] + [(x.machines, x.names) for x in diff.concerns]
    for machines, names in told:
        assert len(names) == machines
        assert list(names) == sorted(set(names))
        assert set(names) <= world.machines.keys()

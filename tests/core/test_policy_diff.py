"""Which fields and which machines a new policy concerns, and what it changes at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from rebootd.core.decide import decide
from rebootd.core.fleetlock_record import FleetLock
from rebootd.core.gates import Reading, Samples
from rebootd.core.model import Observation, State
from rebootd.core.operations_inputs import Because
from rebootd.core.operations_policy import apply_policy, diff_policy, without_names
from rebootd.core.policy import DEFAULT_POLICY, PolicyChange, diff_policies, parse_policy
from rebootd.core.policy_concerns import EXAMPLES
from rebootd.core.wire import Tri
from tests.core.worlds import NOW, OURS, cycle, kinds, machine, out, report, snapshot

if TYPE_CHECKING:
    from rebootd.core.model import Snapshot
    from rebootd.core.policy_told import PolicyDiff

DOC = Path(__file__).parents[2] / "docs" / "policy.md"
WEB = {"role": "web"}


def fleet(*more: Any, policy: str = "{}", **facts: Any) -> Snapshot:
    """Four web machines in r1, two in r2, one database in r3."""
    machines = [machine(f"w{n}", "r1" if n < 5 else "r2", labels=WEB) for n in range(1, 7)]
    machines.append(machine("d1", "r3", labels={"role": "database"}))
    known = {m.name: m for m in (*machines, *more)}
    return snapshot(*known.values(), policy=parse_policy(policy), **facts)


def told(diff: PolicyDiff, what: str) -> tuple[str, ...]:
    """The names beside the one sentence that begins so."""
    [found] = [c for c in diff.concerns if c.what.startswith(what)]
    assert found.machines == len(found.names)
    assert found.examples == found.names[:EXAMPLES]
    return found.names


def whats(diff: PolicyDiff) -> list[str]:
    return [c.what for c in diff.concerns]


# --- fields ------------------------------------------------------------------------------------------


def test_the_full_example_of_the_doc_can_be_compared_and_applied() -> None:
    text = DOC.read_text().partition("```yaml\n")[2].partition("```")[0]
    every = diff_policies(DEFAULT_POLICY, parse_policy(text))
    assert {c.field.partition(".")[0].partition("[")[0] for c in every} >= {
        "racks",
        "limits",
        "waves",
        "reboot",
        "drains",
    }
    assert apply_policy(snapshot(), text, Because()).writes[0].value == text.encode()


def test_rules_without_a_name_are_addressed_by_their_place() -> None:
    old = parse_policy("reboot: {methods: [{machines: role=web, method: kexec}]}")
    new = parse_policy("reboot: {methods: [{machines: role=db, method: reboot}, {machines: role=web, method: kexec}]}")
    assert diff_policies(old, new) == [
        PolicyChange("reboot.methods[0].machines", "role=web", "role=db"),
        PolicyChange("reboot.methods[0].method", "kexec", "reboot"),
        PolicyChange("reboot.methods[1].machines", "", "role=web"),
        PolicyChange("reboot.methods[1].method", "", "kexec"),
    ]


# --- machines, section by section --------------------------------------------------------------------


def test_a_limit_says_how_many_it_has_and_how_many_are_out() -> None:
    diff = diff_policy(
        fleet(machine("w1", state=State.HELD, labels=WEB)), "limits: [{name: l, selector: role=web, max: 50%}]"
    )
    [limit] = diff.limits
    assert limit.new == "at most 50% (3) of the 6 with role=web, 1 unavailable now"
    assert limit.names == ("w1", "w2", "w3", "w4", "w5", "w6")
    assert limit.examples == limit.names[:5]
    assert not diff.fleet_wide


def test_the_maximum_of_racks_concerns_those_where_it_differs() -> None:
    diff = diff_policy(fleet(), "racks: {unavailable: 50%}")
    assert told(diff, "racks.unavailable: at most 2 of a rack at once instead of 1") == ("w1", "w2", "w3", "w4")
    assert whats(diff)[1:] == []
    assert not diff.fleet_wide


def test_the_order_of_racks_concerns_those_that_get_another_place() -> None:
    diff = diff_policy(fleet(), "racks: {order: [r1, r3]}")
    assert told(diff, "racks.order: another place for 2 of 3 racks; first r1, r3, r2") == ("d1", "w5", "w6")
    assert whats(diff_policy(fleet(), "racks: {order: [r1, r2]}")) == []


WAVES = "waves: [{name: canary, machines: name=w6}, {size: 2}, {name: rest, size: 100%}]"


def test_waves_name_who_is_in_each_one_that_differs() -> None:
    diff = diff_policy(fleet(), WAVES)
    over = "of a cycle over all machines"
    assert told(diff, f"waves: wave 1 of 3 (canary) {over}") == ("w6",)
    assert told(diff, f"waves: wave 2 of 3 (wave-2) {over}") == ("w1", "w2")
    assert told(diff, f"waves: wave 3 of 3 (rest) {over}") == ("d1", "w3", "w4", "w5")
    soaks = diff_policy(fleet(policy=WAVES), WAVES.replace("size: 2", "size: 2, soak: 1h"))
    assert whats(soaks) == [f"waves: wave 2 of 3 (wave-2) {over}"]
    assert len(told(diff_policy(fleet(policy=WAVES), "{}"), f"waves: none any more {over}")) == 7


def test_waves_of_cycles_that_run_tell_of_those_who_are_still_to_go() -> None:
    gone = machine("w1", labels=WEB, outcomes={"k1": "rebooted"})
    diff = diff_policy(fleet(gone, cycles=[cycle(selector="role=web")]), WAVES)
    assert told(diff, "waves: wave 2 of 3 (wave-2) of cycle k1") == ("w2",)
    assert told(diff, "waves: wave 3 of 3 (rest) of cycle k1") == ("w3", "w4", "w5")
    calm = diff_policy(fleet(cycles=[cycle(waves=False)]), WAVES)
    assert all("of a cycle over all machines" in what for what in whats(calm))


NIGHT = "windows: {required: true, calendar: [{name: n, start: 0 22 * * *, duration: %s}]}"


def test_windows_that_are_too_short_name_who_would_never_go() -> None:
    short, long = NIGHT % "5m", NIGHT % "2h"
    assert len(told(diff_policy(fleet(), short), "windows: none is long enough for its reboot")) == 7
    assert len(told(diff_policy(fleet(policy=short), long), "windows: one is long enough")) == 7
    assert len(told(diff_policy(fleet(), long), "windows: closed, the next opens at 2027-01-15T22:00:00Z")) == 7
    assert diff_policy(fleet(), long).fleet_wide


def test_windows_say_when_the_next_opens_now_and_then() -> None:
    [said] = whats(diff_policy(fleet(policy=NIGHT % "1h"), "windows: {required: true}"))
    assert said.startswith("windows: closed, and none is planned: only while an operator opens one")
    assert said.endswith("(until now closed, the next opens at 2027-01-15T22:00:00Z)")
    [said] = whats(
        diff_policy(fleet(policy=NIGHT % "1h"), "windows: {calendar: [{name: n, start: 0 7 * * *, duration: 2h}]}")
    )
    assert said.startswith("windows: open until 2027-01-15T09:00:00Z (until now closed")


IN_STATES = {
    "deadlines.rebooting: rebooting now": ("deadlines: {rebooting: 20m}", State.REBOOTING),
    "deadlines.verifying: verifying now": ("deadlines: {verifying: 20m}", State.VERIFYING),
    "soak: enabling now": ("soak: 10m", State.ENABLING),
    "silences: out of service now": ("silences: {alertmanager: 'http://a:9093'}", State.DRAINING),
}


@pytest.mark.parametrize("what", IN_STATES)
def test_who_is_in_a_state_whose_rule_differs(what: str) -> None:
    text, state = IN_STATES[what]
    world = fleet(out(state, "w1", labels=WEB), machine("w2", state=State.HELD, labels=WEB), racks={"r1": OURS})
    assert told(diff_policy(world, text), what) == ("w1",)
    assert what not in whats(diff_policy(fleet(), text))


def test_silence_that_counts_otherwise() -> None:
    silent = machine("w1", labels=WEB)
    world = fleet(observed={"w1": Observation(report(silent), NOW - 60)})
    assert told(diff_policy(world, "unreachable_after: 30s"), "unreachable_after: unavailable, silent") == ("w1",)
    back = replace(world, policy=parse_policy("unreachable_after: 30s"))
    assert told(diff_policy(back, "{}"), "unreachable_after: available again") == ("w1",)


def test_who_is_drained_at_nomad_and_who_no_longer() -> None:
    world = fleet(policy="drains: {nomad: {machines: rack=r1}}")
    diff = diff_policy(world, "drains: {nomad: {machines: 'rack in (r2,r1), name!=w1', deadline: 5m}}")
    assert told(diff, "drains.nomad: drained at Nomad from now on") == ("w5", "w6")
    assert told(diff, "drains.nomad: no longer drained") == ("w1",)
    assert told(diff, "drains.nomad: drained at Nomad in another way") == ("w2", "w3", "w4")
    assert not diff.fleet_wide


def test_who_reboots_by_another_method() -> None:
    world = fleet(policy="reboot: {methods: [{machines: rack=r1, method: kexec}]}")
    diff = diff_policy(world, "reboot: {methods: [{machines: role=web, method: soft-reboot}]}")
    assert told(diff, "reboot.methods: soft-reboot instead of as the host says") == ("w5", "w6")
    assert told(diff, "reboot.methods: soft-reboot instead of kexec") == ("w1", "w2", "w3", "w4")


def test_who_has_no_agent() -> None:
    client = machine("w1", labels=WEB, fleetlock=FleetLock(id="f1"))
    diff = diff_policy(fleet(client), "fleetlock: {wish: 1h}")
    assert told(diff, "fleetlock: it has a FleetLock client") == ("w1",)
    assert not diff.fleet_wide


def test_whom_a_standing_cycle_wants_now() -> None:
    wants = machine("w1", labels=WEB, reboot_required=Tri.YES)
    diff = diff_policy(fleet(wants), "standing: {enabled: true, selector: role=web}")
    assert told(diff, "standing cycle standing: it wants these now") == ("w1",)
    assert diff.concerns[0].what == "standing cycle standing"
    assert diff.concerns[0].machines == 6


# --- at once -----------------------------------------------------------------------------------------


def test_a_deadline_that_has_passed_quarantines_at_once() -> None:
    world = fleet(out(State.REBOOTING, "w1", labels=WEB, since=NOW - 600), racks={"r1": OURS}, silent=["w1"])
    assert told(diff_policy(world, "deadlines: {rebooting: 5m}"), "at once: rebooting -> quarantined") == ("w1",)
    assert not any(w.startswith("at once") for w in whats(diff_policy(world, "deadlines: {rebooting: 20m}")))


def test_who_goes_out_at_once() -> None:
    world = fleet(cycles=[cycle()], policy="windows: {required: true}")
    diff = diff_policy(world, "{}")
    assert told(diff, "at once: in-service -> draining (cycle k1)") == ("w1",)
    assert len(told(diff, "at once: no longer kept in by window")) == 7


def test_who_is_kept_in_at_once_and_by_what() -> None:
    diff = diff_policy(fleet(cycles=[cycle()]), "windows: {required: true}")
    assert len(told(diff, "at once: kept in by window: no maintenance window is open; none is planned")) == 7
    limits = diff_policy(fleet(cycles=[cycle()]), "limits: [{name: l, selector: role=web, max: 0}]")
    assert len(told(limits, "at once: kept in by limit l: 0 unavailable, at most 0 of 6 allowed")) == 6


def test_limits_of_racks_are_told_as_one() -> None:
    away = [machine(f"h{n}", f"r{n}", State.HELD) for n in (1, 2)]
    world = fleet(*away, cycles=[cycle()], policy="racks: {unavailable: 2}")
    assert told(diff_policy(world, "{}"), "at once: kept in by the limit of its rack") == tuple(
        f"w{n}" for n in range(1, 7)
    )


def test_a_gate_that_has_not_been_read_yet_keeps_nobody_in_at_once() -> None:
    gate = "gates: [{name: e, kind: prometheus, address: 'http://p:9', query: up, holds_when: '< 5'}]"
    assert not any("gate" in w for w in whats(diff_policy(fleet(cycles=[cycle()]), gate)) if w.startswith("at once"))
    policy = parse_policy(gate)
    read = {"e": Reading(gate=policy.gates[0], at=NOW - 1, value=Samples((("", 9.0),)))}
    world = replace(fleet(cycles=[cycle()]), policy=policy, readings=read)
    assert kinds(decide(world), "w2") == ["gate"]
    assert len(told(diff_policy(world, "{}"), "at once: no longer kept in by gate")) == 7


def test_the_same_policy_changes_nothing() -> None:
    world = fleet(out(State.REBOOTING, "w1", labels=WEB), cycles=[cycle()], racks={"r1": OURS}, policy=WAVES)
    assert diff_policy(world, WAVES).concerns == ()


def test_what_has_been_applied_names_some() -> None:
    diff = diff_policy(fleet(), "limits: [{name: l, selector: role=web, max: 1}]\n" + WAVES)
    short = without_names(diff)
    assert [len(x.names) for x in short.limits] == [0]
    assert [len(x.names) for x in short.concerns] == [0, 0, 0]
    assert short.limits[0].examples == ("w1", "w2", "w3", "w4", "w5")
    assert short.limits[0].machines == 6

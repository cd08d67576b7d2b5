from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from rebootd.core.decide import decide
from rebootd.core.errors import InvalidInput, Refused
from rebootd.core.fleetlock import CLIENT, REASON, Memo, clients, machine_id, nonce, voices, wished
from rebootd.core.fleetlock_record import CYCLE
from rebootd.core.forecast import run
from rebootd.core.model import Call, Cycle, FleetLock, Machine, Permit, Snapshot, State
from rebootd.core.operations_cycles import move_cycle, start_cycle
from rebootd.core.operations_inputs import Because
from rebootd.core.policy import Policy, parse_policy, render_policy
from rebootd.core.policy_fleetlock import FleetLocks
from rebootd.core.wake import next_wake
from rebootd.core.wire import PermitRequest, Tri
from tests.core.worlds import NOW, OURS, cycle, kinds, machine, out, snapshot, step_of

if TYPE_CHECKING:
    from collections.abc import Mapping

ON = parse_policy("fleetlock: {enabled: true}")
WISH = ON.fleetlock.wish
BECAUSE = Because(by="alice", reason="test")
PRE, STEADY = Call("m1", "default"), Call("m1", "default", steady=True)


def client(made: Machine, asked: float = 0.0, **facts: Any) -> Machine:
    """The machine as one without an agent."""
    given: dict[str, Any] = {
        "machine_id": machine_id(made.name),
        "labels": {"fleetlock": "default"},
        "fleetlock": FleetLock(made.name, asked, NOW - 1),
        "reboot_required": Tri.YES if asked else Tri.NO,
        "reboot_reasons": (REASON,) if asked else (),
        "required_since": asked,
    }
    return replace(made, **(given | facts))


def ours(**facts: Any) -> Cycle:
    given: dict[str, Any] = {"selector": "fleetlock", "standing": True, "waves": False}
    return cycle(CYCLE, **(given | facts))


def world(
    *machines: Machine,
    calls: Mapping[str, Call] | None = None,
    gone: Mapping[str, float] | None = None,
    policy: Policy = ON,
    now: float = NOW,
    **facts: Any,
) -> Snapshot:
    """A snapshot as the leader makes it of these machines and what their clients ask."""
    plain = snapshot(*machines, policy=policy, cycles=facts.pop("cycles", [ours()]), now=now, **facts)
    nodes = {m.name: {"rack": m.rack} for m in machines if m.name not in (gone or {})} | {"new": {"rack": "r1"}}
    heard = dict(voices(plain.machines, calls or {}, nodes, gone or {}, policy, now))
    return replace(plain, observed={**plain.observed, **heard}, calls=dict(calls or {}), gone=dict(gone or {}))


# --- who is who --------------------------------------------------------------------------


def test_a_node_is_known_by_its_name_or_by_what_its_meta_says() -> None:
    nodes = {"a": {}, "b": {"fleetlock-id": "0f"}, "c": {"fleetlock-id": "0f"}, "d": {"fleetlock-id": "a"}}
    assert clients(nodes) == {"a": ("a", "d"), "0f": ("b", "c")}
    assert clients({"b": {"fleetlock-id": "x"}}) == {"x": ("b",)}


def test_labels_are_of_the_catalog_and_the_group() -> None:
    meta = {"new": {"rack": "r7", "chassis": "c1", "role": "web", "fleetlock-id": "x", "consul-network-segment": ""}}
    [(name, seen)] = voices({}, {"new": Call("x", "workers")}, meta, {}, ON, NOW)
    said = seen.report
    assert (name, said.rack, said.chassis, said.labels) == ("new", "r7", "c1", {"role": "web", "fleetlock": "workers"})
    assert dict(voices({}, {"new": Call("x", "workers")}, meta, {}, Policy(), NOW)) == {}


def test_what_is_remembered_is_what_would_be_said_anew() -> None:
    memo: Memo = {}
    meta = {"m1": {"rack": "r1"}, "m2": {"rack": "r2"}}

    def both(machines: dict[str, Machine], now: float = NOW, policy: Policy = ON) -> None:
        fresh = dict(voices(machines, {}, meta, {}, policy, now))
        assert dict(voices(machines, {}, meta, {}, policy, now, memo)) == fresh

    m1, m2 = client(machine("m1"), NOW - 5), client(out(State.DRAINING, "m2", "r2", cycle=CYCLE), NOW - 5)
    both({"m1": m1, "m2": m2})
    assert memo.keys() == {"m1", "m2"}
    both({"m1": m1, "m2": m2}, NOW + WISH)
    both({"m1": m1, "m2": m2}, policy=Policy())
    both({"m1": m1, "m2": replace(m2, state=State.ENABLING, version=9)})
    meta["m1"] = {"rack": "r7", "role": "db"}
    both({"m1": m1, "m2": m2})


def test_who_is_gone_from_the_catalog_keeps_what_it_was_and_falls_silent() -> None:
    m = client(machine(labels={"role": "web", "fleetlock": "g"}), labels={"role": "web", "fleetlock": "g"})
    [(_, seen)] = voices({"m1": m}, {}, {}, {"m1": NOW - 500}, ON, NOW)
    assert (seen.at, seen.report.labels, seen.report.rack) == (NOW - 500, m.labels, "")
    assert step_of(decide(world(m, gone={"m1": NOW - 500}))) is None
    dropped = step_of(decide(world(m, gone={"m1": NOW - 2 * 86400.0})))
    assert dropped is not None
    assert dropped.after is None


# --- a wish ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ago", "stands"), [(0.0, True), (WISH - 1, True), (WISH + 1, False), (-WISH + 1, True), (-WISH - 1, False)]
)
def test_how_long_a_wish_stands(ago: float, stands: bool) -> None:
    m = client(machine(), asked=NOW - ago)
    assert wished(m, ON, NOW) is stands
    assert not wished(m, Policy(), NOW)
    assert not wished(client(machine()), ON, NOW)
    step = step_of(decide(world(m)))
    assert step is not None
    assert step.after is not None
    assert step.after.state is (State.DRAINING if stands else State.IN_SERVICE)
    assert step.after.reboot_required is (Tri.YES if stands else Tri.NO)


def test_its_end_is_looked_for_in_time() -> None:
    m = client(machine(), asked=NOW - WISH + 10)
    assert NOW + 10 <= next_wake(world(m), NOW) < NOW + 10.1


def test_that_a_call_which_waits_is_to_be_written_is_looked_for_in_time() -> None:
    m = client(machine(), asked=NOW - 5, fleetlock=FleetLock("m1", NOW - 5, NOW - WISH / 4 + 7))
    assert NOW + 7 <= next_wake(world(m, calls={"m1": PRE}), NOW) < NOW + 7.1
    assert next_wake(world(m), NOW) > NOW + 7.1


def test_it_is_written_once_in_a_while_and_not_at_each_call() -> None:
    asked = client(machine(), asked=NOW - 5, fleetlock=FleetLock("m1", NOW - 5, NOW - 5))
    quiet = world(asked, calls={"m1": PRE}, holds=(), cycles=[])
    assert step_of(decide(quiet)) is None
    old = client(machine(), asked=NOW - WISH / 2, fleetlock=FleetLock("m1", NOW - WISH / 2, NOW - WISH / 2))
    step = step_of(decide(world(old, calls={"m1": PRE}, cycles=[])))
    assert step is not None
    assert step.after is not None
    assert step.after.fleetlock == FleetLock("m1", NOW, NOW)


def test_the_cycle_takes_who_asks_and_nobody_else() -> None:
    asks, silent = client(machine("m1"), NOW - 9), client(machine("m2", "r2"))
    agent = machine("m3", "r3", reboot_required=Tri.YES)
    decision = decide(world(asks, silent, agent))
    assert [s.name for s in decision.steps] == ["m1"]
    step = step_of(decision)
    assert step is not None
    assert step.after is not None
    assert (step.after.cycle, step.after.state) == (CYCLE, State.DRAINING)
    # And soon again, if it asks soon again: only the standing cycle of agents rests between two.
    assert step_of(decide(world(replace(asks, ended=NOW - 10, outcomes={CYCLE: "rebooted"})))) is not None


def test_other_cycles_wait_for_its_client_and_say_so_and_end_without_it() -> None:
    silent, agent = client(machine("m1")), machine("m2", "r2")
    decision = decide(world(silent, agent, cycles=[ours(), cycle("k1", waves=False)]))
    assert [s.name for s in decision.steps] == ["m2"]
    assert "fleetlock" in kinds(decision)
    assert {b.clears for b in decision.reasons["m1"] if b.kind == "fleetlock"} == {CLIENT}
    done = [c for c, _ in decide(world(silent, cycles=[ours(), cycle("k1")])).cycles]
    assert [(c.id, c.state.value, c.totals["skipped"]) for c in done] == [("k1", "done", 1)]


def test_no_wave_waits_for_a_client_that_does_not_ask() -> None:
    waves = parse_policy("fleetlock: {enabled: true}\nwaves: [{name: first, racks: [r1]}, {name: rest, size: 100%}]")
    silent, asks = client(machine("m1")), client(machine("m1"), NOW - 5)
    agent = machine("m2", "r2")
    decision = decide(world(silent, agent, cycles=[cycle("k1")], policy=waves))
    assert [s.name for s in decision.steps] == ["m2"]
    decision = decide(world(asks, agent, cycles=[cycle("k1")], policy=waves))
    assert [s.name for s in decision.steps] == ["m1"]
    assert "wave" in {b.kind for b in decision.reasons["m2"]}
    away = client(out(State.DRAINING), cycle="k1")
    decision = decide(world(away, agent, cycles=[cycle("k1")], policy=waves, racks={"r1": OURS}))
    assert "wave" in {b.kind for b in decision.reasons["m2"]}


# --- out and back ------------------------------------------------------------------------


def test_it_is_drained_at_once_and_waits_for_its_client() -> None:
    m = client(out(State.DRAINING, cycle=CYCLE), NOW - 5)
    step = step_of(decide(world(m, racks={"r1": OURS})))
    assert step is not None
    assert step.after is not None
    assert (step.after.state, step.after.permit) == (State.DRAINED, None)
    waiting = decide(world(step.after, racks={"r1": OURS}))
    assert step_of(waiting) is None
    assert waiting.reasons["m1"][-1].clears == CLIENT


def test_it_waits_longer_than_others_and_comes_back_unharmed() -> None:
    """Its client may ask only every five minutes: a deadline that is shorter is no fault of its."""
    m = client(out(State.DRAINED, cycle=CYCLE, since=NOW - 600), NOW - 700)
    assert step_of(decide(world(m, racks={"r1": OURS}))) is None
    step = step_of(decide(world(replace(m, fleetlock=FleetLock("m1", NOW - WISH - 1)), racks={"r1": OURS})))
    assert step is not None
    assert step.after is not None
    assert (step.after.state, step.after.outcomes) == (State.ENABLING, {})


def permitted(m: Machine) -> PermitRequest:
    return PermitRequest(name=m.name, machine_id=m.machine_id, boot_id=m.boot_id, nonce=nonce(m))


def test_one_permit_for_each_boot_whoever_leads() -> None:
    m = client(out(State.DRAINED, cycle=CYCLE), NOW - 5)
    step = step_of(decide(world(m, racks={"r1": OURS}, calls={"m1": PRE}, asking=[permitted(m)])))
    assert step is not None
    assert step.after is not None
    gone = step.after
    assert gone.permit is not None
    assert (gone.permit.boot_id, gone.permit.nonce) == (m.boot_id, f"fleetlock:{m.boot_id}")
    # Another leader, after the permit has run out: the same nonce, so the same permit is renewed.
    later = decide(world(gone, racks={"r1": OURS}, asking=[permitted(gone)], epoch=9, now=NOW + 100))
    renewed = step_of(later)
    assert renewed is not None
    assert renewed.after is not None
    assert renewed.after.permit is not None
    assert (renewed.after.permit.nonce, renewed.after.permit.boot_id) == (gone.permit.nonce, gone.permit.boot_id)
    assert renewed.after.permit.until > gone.permit.until


def test_steady_state_after_a_permit_is_another_boot_and_after_none_it_is_not() -> None:
    m = client(out(State.REBOOTING, cycle=CYCLE, permit=Permit("m1-b1", "fleetlock:m1-b1", NOW - 100, 1)), NOW - 500)
    step = step_of(decide(world(m, racks={"r1": OURS}, calls={"m1": STEADY})))
    assert step is not None
    assert step.after is not None
    back = step.after
    assert (back.state, back.planned, back.permit, back.boots) == (State.ENABLING, True, None, ("m1-b1",))
    assert (back.outcomes, back.flag, back.unplanned) == ({CYCLE: "rebooted"}, "", 0)
    assert back.fleetlock == FleetLock("m1", 0.0, NOW)
    again = step_of(decide(world(back, racks={"r1": OURS}, calls={"m1": STEADY})))
    assert again is not None
    assert again.after is not None
    assert (again.after.state, again.after.boot_id) == (State.IN_SERVICE, back.boot_id)
    assert step_of(decide(world(again.after, calls={"m1": STEADY}))) is None


def test_a_new_boot_id_is_none_that_was() -> None:
    m = client(out(State.REBOOTING, cycle=CYCLE), NOW - 500)
    used = f"fleetlock:m1:{int(NOW * 1000)}"
    m = replace(m, boots=(used, f"fleetlock:m1:{int(NOW * 1000) + 1}"))
    seen = dict(voices({"m1": m}, {"m1": STEADY}, {}, {}, ON, NOW))["m1"]
    assert seen.report.boot_id == f"fleetlock:m1:{int(NOW * 1000) + 2}"


def test_the_soak_is_counted_from_the_way_back() -> None:
    m = client(out(State.ENABLING, cycle=CYCLE, since=NOW - 50))
    policy = replace(ON, soak=60.0)
    assert step_of(decide(world(m, policy=policy, racks={"r1": OURS}))) is None
    step = step_of(decide(world(m, policy=policy, racks={"r1": OURS}, now=NOW + 11)))
    assert step is not None
    assert step.after is not None
    assert step.after.state is State.IN_SERVICE


def test_nothing_delays_a_return_when_the_policy_lets_it_no_more() -> None:
    m = client(out(State.REBOOTING, cycle=CYCLE), NOW - 5)
    step = step_of(decide(world(m, policy=Policy(window_required=True), racks={"r1": OURS}, calls={"m1": STEADY})))
    assert step is not None
    assert step.after is not None
    assert step.after.state is State.ENABLING


# --- records and policy ------------------------------------------------------------------


def test_records_from_before_can_be_read() -> None:
    text = msgspec.json.encode(machine())
    without = msgspec.json.decode(text)
    del without["fleetlock"]
    assert msgspec.json.decode(msgspec.json.encode(without), type=Machine) == machine()


def test_its_cycle_is_the_policys() -> None:
    [(made, event)] = decide(world(machine(), cycles=[])).cycles
    assert (made.id, made.standing, made.selector, made.waves, event.to) == (CYCLE, True, "fleetlock", False, "running")
    [(ended, _)] = decide(world(machine(), cycles=[made], policy=Policy())).cycles
    assert ended.state.value == "cancelled"
    s = world(machine())
    assert move_cycle(s, "pause", CYCLE, BECAUSE).writes
    with pytest.raises(Refused, match=r"fleetlock\.enabled: false"):
        move_cycle(s, "cancel", CYCLE, BECAUSE)
    with pytest.raises(Refused, match="standing cycle"):
        start_cycle(replace(s, cycles={}), cycle_id=CYCLE, selector="*", because=BECAUSE)


@settings(deadline=None)
@given(st.booleans(), st.integers(1000, 86_400_000))
def test_the_policy_is_read_as_it_is_written(enabled: bool, milliseconds: int) -> None:
    policy = replace(Policy(), fleetlock=FleetLocks(enabled, milliseconds / 1000))
    assert parse_policy(render_policy(policy)) == policy


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("fleetlock: {enabled: yes}", "fleetlock.enabled"),
        ("fleetlock: {wish: 0s}", "fleetlock.wish"),
        ("fleetlock: {wish: 2d}", "fleetlock.wish"),
        ("fleetlock: {wishes: 2m}", "fleetlock.wishes"),
        ("standing: {id: fleetlock}", "standing.id"),
    ],
)
def test_what_the_policy_may_not_say(text: str, field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_policy(text)
    assert refused.value.field == field


def test_a_forecast_has_who_asks_and_leaves_out_who_does_not() -> None:
    asks, silent = client(machine("m1"), NOW - 9), client(machine("m2", "r2"))
    agent = machine("m3", "r3")
    found = run(world(asks, silent, agent, cycles=[ours(), cycle("k1", waves=False)]))
    assert sorted((p.machine, p.cycle) for p in found.planned) == [("m1", "k1"), ("m3", "k1")]
    only = run(world(asks, silent, agent), CYCLE)
    assert [(p.machine, p.cycle) for p in only.planned] == [("m1", CYCLE)]

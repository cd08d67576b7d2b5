from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from msgspec.structs import replace

from rebootd.core.decide import decide
from rebootd.core.model import Machine, PowerCycle, PowerState, Snapshot, State
from rebootd.core.policy import Deadlines, Policy
from rebootd.core.policy_failures import Failures, Power
from rebootd.core.power import ACTING, HOUR, conclude, controller, objection
from tests.core.worlds import NOW, OURS, PASSED, cycle, kinds, machine, out, seen, snapshot, step_of

if TYPE_CHECKING:
    from rebootd.core.decision import Decision

S = State
RULE = Power(address="https://{meta.bmc}", after=60.0, at_once=1, per_hour=2)
POWERED = Policy(failures=Failures(power=RULE))
AT = ("https://bmc-m1", "")


def hung(state: State = S.REBOOTING, name: str = "m1", overdue: float = 100.0, **facts: Any) -> Machine:
    limit = POWERED.deadlines.of(state)
    assert limit is not None
    return out(state, name, **({"since": NOW - limit - overdue} | facts))


def world(*machines: Machine, policy: Policy = POWERED, **facts: Any) -> Snapshot:
    silent = {m.name: seen(m, at=m.since) for m in machines if m.state is not S.IN_SERVICE}
    given: dict[str, Any] = {
        "cycles": [cycle()],
        "racks": {"r1": OURS},
        "observed": silent,
        "controllers": {m.name: (f"https://bmc-{m.name}", "") for m in machines},
    }
    return snapshot(*machines, policy=policy, **(given | facts))


def record(name: str = "m1", **facts: Any) -> PowerCycle:
    given: dict[str, Any] = {"boot_id": f"{name}-b1", "address": "https://x", "since": NOW - 10, "changed": NOW - 10}
    return PowerCycle(machine=name, **(given | {"epoch": 4} | facts))


def quarantined(decision: Decision, name: str = "m1") -> str:
    """The evidence of a machine that was given up."""
    step = step_of(decision, name)
    assert step is not None
    assert step.after is not None
    assert step.after.state is S.QUARANTINED
    assert decision.power == ()
    return step.after.evidence


@pytest.mark.parametrize("state", [S.REBOOTING, S.VERIFYING])
def test_a_silent_machine_that_is_long_overdue_is_power_cycled(state: State) -> None:
    m = hung(state)
    decision = decide(world(m))
    (step,) = decision.power
    assert (step.before, step.after.machine, step.after.boot_id) == (None, "m1", "m1-b1")
    assert (step.after.address, step.after.system, step.after.state) == (*AT, PowerState.ASKED)
    assert (step.after.since, step.after.epoch) == (NOW, 4)
    assert (step.event.kind, step.event.cause) == ("power", "power cycle decided")
    assert step_of(decision) is None
    assert "power" in kinds(decision)


@pytest.mark.parametrize("state", [S.DRAINING, S.DRAINED, S.ENABLING])
def test_other_states_never(state: State) -> None:
    assert quarantined(decide(world(hung(state))))


def test_not_before_its_time() -> None:
    early = decide(world(hung(overdue=59)))
    assert (early.power, early.steps) == ((), ())
    assert "will be power-cycled at 08:00:01Z" in early.reasons["m1"][-1].what
    assert len(decide(world(hung(overdue=60))).power) == 1


def test_who_reports_is_not_dead() -> None:
    m = hung()
    assert quarantined(decide(world(m, observed={"m1": seen(m)})))


def test_a_deadline_shorter_than_unreachable_after_gives_nobody_up_who_has_fallen_silent() -> None:
    hasty = replace(POWERED, deadlines=Deadlines(rebooting=60.0))
    m = out(S.REBOOTING, since=NOW - 125)
    for ago, waits in ((29, False), (31, True), (149, True)):
        decision = decide(world(m, policy=hasty, observed={"m1": seen(m, at=NOW - ago)}))
        assert decision.power == ()
        assert (decision.steps == ()) is waits, ago
    decision = decide(world(m, policy=hasty, observed={"m1": seen(m, at=NOW - 120)}))
    assert "if it does not call until 08:00:30Z" in decision.reasons["m1"][-1].what
    assert len(decide(world(m, policy=hasty, observed={"m1": seen(m, at=NOW - 151)})).power) == 1
    # Who cannot be power-cycled has nothing to wait for.
    said = quarantined(decide(world(m, policy=hasty, observed={"m1": seen(m, at=NOW - 120)}, controllers={})))
    assert "silent" not in said


def test_who_has_no_controller_is_given_up() -> None:
    assert "knows no controller" in quarantined(decide(world(hung(), controllers={})))
    assert "controller" not in quarantined(decide(world(hung(), policy=Policy())))


def test_two_machines_under_one_name_are_left_alone() -> None:
    assert quarantined(decide(world(hung(), conflicts={"m1": "two"})))


def test_one_boot_is_power_cycled_once() -> None:
    m = hung()
    asked = decide(world(m, power={"m1": record()}))
    assert (asked.power, asked.steps) == ((), ())
    sent = decide(world(m, power={"m1": record(state=PowerState.SENT, result="ok")}))
    assert (sent.power, sent.steps) == ((), ())
    assert "it has until 08:14:50Z to come back" in sent.reasons["m1"][-1].what
    over = record(state=PowerState.SENT, result="ForceRestart accepted", changed=NOW - 901)
    assert "ForceRestart accepted" in quarantined(decide(world(m, power={"m1": over})))


@pytest.mark.parametrize("state", [PowerState.FAILED, PowerState.CANCELLED])
def test_what_did_not_work_is_evidence(state: PowerState) -> None:
    said = quarantined(decide(world(hung(), power={"m1": record(state=state, result="HTTP 500")})))
    assert "HTTP 500" in said


@pytest.mark.parametrize("lost", [{"epoch": 3}, {"changed": NOW - ACTING - 1}])
def test_nobody_knows_what_became_of_it_and_it_is_not_sent_again(lost: dict[str, Any]) -> None:
    decision = decide(world(hung(), power={"m1": record(**lost)}))
    assert (decision.power, decision.steps) == ((), ())
    assert "nobody knows whether it was sent" in decision.reasons["m1"][-1].what
    long_ago = record(**({"changed": NOW - 5000} | {"epoch": lost.get("epoch", 4)}))
    assert "nobody knows" in quarantined(decide(world(hung(), power={"m1": long_ago})))


def test_the_next_boot_is_another_matter() -> None:
    m = hung()
    before = record(boot_id="m1-b0", state=PowerState.SENT)
    (step,) = decide(world(m, power={"m1": before})).power
    assert (step.before, step.after.boot_id) == (before, "m1-b1")


def test_the_caps_hold_for_the_whole_fleet() -> None:
    three = [hung(name=f"m{n}") for n in (1, 2, 3)]
    decision = decide(world(*three))
    assert [s.after.machine for s in decision.power] == ["m1"]
    assert "1 of at most 1 are under way" in decision.reasons["m2"][-1].what
    wide = replace(POWERED, failures=Failures(power=replace(RULE, at_once=9)))
    decision = decide(world(*three, policy=wide))
    assert [s.after.machine for s in decision.power] == ["m1", "m2"]
    step = step_of(decision, "m3")
    assert step is not None
    assert step.after is not None
    assert "the cap of 2 power cycles an hour is reached" in step.after.evidence


@pytest.mark.parametrize(("ago", "counts"), [(HOUR - 1, True), (HOUR, False)])
def test_an_hour_is_an_hour(ago: float, counts: bool) -> None:
    old = {n: record(n, since=NOW - ago, changed=NOW - ago, state=PowerState.SENT) for n in ("a", "b")}
    decision = decide(world(hung(), power=old))
    assert bool(decision.power) != counts
    assert set(decision.prune) == (set() if counts else {"power/a", "power/b"})


def test_a_machine_that_is_power_cycled_boot_after_boot_counts_each_time() -> None:
    before = record(boot_id="m1-b0", since=NOW - 100, changed=NOW - 100, state=PowerState.SENT)
    (step,) = decide(world(hung(), power={"m1": before})).power
    assert step.after.earlier == (NOW - 100,)
    twice = replace(step.after, boot_id="m1-b0", state=PowerState.SENT)
    assert "the cap of 2 power cycles an hour is reached" in quarantined(decide(world(hung(), power={"m1": twice})))
    # What is older than an hour is left out.
    (step,) = decide(world(hung(), power={"m1": replace(twice, earlier=(NOW - HOUR,))})).power
    assert step.after.earlier == (twice.since,)


def test_a_record_that_is_needed_is_not_pruned() -> None:
    m = hung()
    old = record(since=NOW - 2 * HOUR, changed=NOW - 10, state=PowerState.SENT)
    assert decide(world(m, power={"m1": old})).prune == ()


def test_the_boot_that_follows_is_no_unplanned_one() -> None:
    m = hung(S.VERIFYING, boots=("m1-b0",))
    sent = {"m1": record(state=PowerState.SENT)}
    heard = {"m1": seen(m, boot_id="m1-b2", boot_check=PASSED)}
    step = step_of(decide(world(m, power=sent, observed=heard)))
    assert step is not None
    assert step.after is not None
    assert step.events[0].cause == "boot after a power cycle"
    assert (step.after.unplanned, step.after.unplanned_at) == (0, ())


@pytest.mark.parametrize(
    ("machine_", "heard", "why"),
    [
        (None, None, "no record"),
        (hung(boot_id="m1-b2"), None, "boot_id is m1-b2 now"),
        (hung(S.ENABLING), None, "enabling now"),
        (machine(), None, "in-service now"),
        (hung(), seen(hung(), at=NOW), "reported meanwhile"),
        (hung(), seen(hung(), at=NOW - 50, boot_id="m1-b2"), "reported meanwhile"),
        (hung(), seen(hung(), at=NOW - 50), ""),
        (hung(S.VERIFYING), None, ""),
    ],
)
def test_the_last_look_before_it_is_sent(machine_: Machine | None, heard: Any, why: str) -> None:
    said = objection(record(), machine_, heard)
    assert why in said
    assert bool(why) == bool(said)


def test_what_came_of_it_is_put_down_once() -> None:
    m = hung()
    change = conclude(world(m, power={"m1": record()}), record(), PowerState.SENT, "accepted")
    (write,) = change.writes
    assert write.key == "power/m1"
    assert write.value is not None
    after = msgspec.json.decode(write.value, type=PowerCycle)
    assert (after.state, after.result, after.changed, after.since) == (PowerState.SENT, "accepted", NOW, NOW - 10)
    assert [(e.kind, e.cause, e.detail) for e in change.events] == [("power", "power cycle sent", "accepted")]
    for other in ({}, {"m1": record(boot_id="m1-b2")}, {"m1": record(since=NOW)}):
        assert not conclude(world(m, power=other), record(), PowerState.SENT, "accepted").writes


@pytest.mark.parametrize(
    ("rule", "meta", "found"),
    [
        (Power(), {"bmc": "x"}, None),
        (Power(address="https://{name}.bmc:8443"), {}, ("https://m1.bmc:8443", "")),
        (Power(address="https://{meta.bmc}"), {"bmc": "10.0.0.1:443"}, ("https://10.0.0.1:443", "")),
        (Power(address="https://{meta.bmc}"), {}, None),
        (Power(address="https://{meta.bmc}"), {"bmc": "evil/redfish"}, None),
        (Power(address="https://{meta.bmc}"), {"bmc": "u:p@evil"}, None),
        (Power(address="https://{meta.bmc}"), {"bmc": "10.0.0.1\n"}, None),
        (Power(address="https://{meta.bmc}", system="{meta.node}"), {"bmc": "b", "node": "4"}, ("https://b", "4")),
        (Power(address="https://{meta.bmc}", system="{meta.node}"), {"bmc": "b"}, None),
    ],
)
def test_where_a_controller_is(rule: Power, meta: dict[str, str], found: tuple[str, str] | None) -> None:
    assert controller(Policy(failures=Failures(power=rule)), "m1", "r1", meta) == found

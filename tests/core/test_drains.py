"""The Nomad side of drains: who may go, when a drain is over, and what is undone."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from rebootd.core.decide import decide
from rebootd.core.drains import Act, next_act, orphan
from rebootd.core.model import Machine, Observation, Snapshot, State
from rebootd.core.nomad import NomadAlloc, NomadClient, NomadDrain, NomadSeen, NomadService, NomadSight, client_of
from rebootd.core.policy import Policy, parse_policy
from rebootd.core.wire import DirectiveKind
from tests.core.worlds import (
    NOW,
    ONCE,
    OURS,
    PASSED,
    asks,
    cycle,
    kinds,
    machine,
    out,
    report,
    result,
    snapshot,
    step_of,
)

POLICY = replace(
    parse_policy("drains: {nomad: {machines: '*', deadline: 5m, services: 1m}}"), failures=ONCE.failures, settle=0.0
)
MARK = "rebootd/m1/7"
DRAIN = NomadDrain(
    node="n1",
    mark=MARK,
    since=NOW - 20,
    eligible=True,
    deadline=300,
    system=("default/log",),
    services={"default/web": 2},
)
WEB = NomadAlloc(name="web.web[0]", job="default/web", type="service", live=True, running=True)
LOG = NomadAlloc(name="log.log[0]", job="default/log", type="system", live=True, running=True)
WHOLE = {"default/web": NomadService(2, 2), "default/log": NomadService(3, 1)}


def client(**facts: Any) -> NomadClient:
    return NomadClient(id="n1", name="m1", **facts)


def ours(**facts: Any) -> NomadClient:
    """The client with our drain: ended, unless ``facts`` say otherwise."""
    return client(**({"eligible": False, "mark": MARK, "drain": "complete", "was": "eligible"} | facts))


def seen(*clients: NomadClient, **facts: Any) -> NomadSeen:
    given: dict[str, Any] = {"at": NOW - 1, "allocs": (), "services": WHOLE}
    return NomadSeen(clients=clients, **(given | facts))


def world(m: Machine, look: NomadSeen | None = None, *, policy: Policy = POLICY, **facts: Any) -> Snapshot:
    sight = NomadSight(
        at=NOW - 1, clients={m.name: look.clients if look else (client(),)}, seen={m.name: look} if look else {}
    )
    given: dict[str, Any] = {"cycles": [cycle()], "policy": policy, "nomad": sight, "racks": {"r1": OURS}}
    return snapshot(m, **(given | facts))


def heard(m: Machine, **facts: Any) -> dict[str, Observation]:
    return {m.name: Observation(report=report(m, **facts), at=NOW - 1, enabled_at=NOW - 1)}


def drained_by_agent(m: Machine, *, ok: bool = True) -> dict[str, Observation]:
    return heard(m, result=result(m, DirectiveKind.DRAIN, ok, detail="" if ok else "hook failed"))


# --- who may go ----------------------------------------------------------------------------------


def test_a_machine_with_a_ready_client_goes() -> None:
    step = step_of(decide(world(machine())))
    assert step is not None
    assert step.after is not None
    assert step.after.state is State.DRAINING


@pytest.mark.parametrize(
    ("sight", "said"),
    [
        (None, "no address"),
        (NomadSight(at=NOW - 1, error="connection refused"), "cannot be asked: connection refused"),
        (NomadSight(at=NOW - 60, clients={"m1": (client(),)}), "too old"),
        (NomadSight(at=NOW - 1), "no client of its name"),
        (NomadSight(at=NOW - 1, clients={"m1": (client(status="down"),)}), "is down"),
        (NomadSight(at=NOW - 1, clients={"m1": (client(), NomadClient(id="n2", name="m1"))}), "2 clients of its name"),
    ],
    ids=["none", "away", "old", "missing", "down", "double"],
)
def test_what_is_unknown_at_nomad_keeps_it_in_and_says_so(sight: NomadSight | None, said: str) -> None:
    decision = decide(world(machine(), nomad=sight))
    assert step_of(decision) is None
    assert [b.what for b in decision.reasons["m1"] if b.kind == "nomad" and said in b.what]


def test_machines_that_the_policy_does_not_name_need_no_nomad() -> None:
    policy = parse_policy("drains: {nomad: {machines: role=web}}")
    assert step_of(decide(world(machine(), policy=policy, nomad=None))) is not None


def test_what_is_still_to_be_restored_keeps_it_in() -> None:
    decision = decide(world(machine(nomad=DRAIN), seen(ours())))
    assert "nomad" in kinds(decision)
    assert step_of(decision) is None


def test_a_lost_disk_makes_a_new_client_and_the_old_one_is_passed_over() -> None:
    old, new = client(status="down", index=9), NomadClient(id="n2", name="m1", index=3)
    assert client_of((old, new), "n1") is new
    assert client_of((old,), "n1") is old


# --- draining ------------------------------------------------------------------------------------


def test_what_was_there_before_is_committed_first() -> None:
    m = out(State.DRAINING)
    look = seen(client(), allocs=(WEB, LOG))
    step = step_of(decide(world(m, look, observed=drained_by_agent(m))))
    assert step is not None
    assert step.after is not None
    assert (step.after.state, step.after.version) == (State.DRAINING, m.version)
    assert step.after.nomad == replace(DRAIN, since=NOW)
    assert next_act(m, client()) is Act.NOTHING
    assert next_act(step.after, client()) is Act.DRAIN


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (client(), {"eligible": True, "foreign": False, "keep_system": False}),
        (client(eligible=False), {"eligible": False, "foreign": False, "keep_system": True}),
        (client(eligible=False, draining=True), {"eligible": False, "foreign": True, "keep_system": True}),
    ],
    ids=["eligible", "ineligible", "drained-by-others"],
)
def test_it_is_remembered_what_others_had_done(found: NomadClient, expected: dict[str, bool]) -> None:
    m = out(State.DRAINING)
    step = step_of(decide(world(m, seen(found, allocs=(WEB,)))))
    assert step is not None
    assert step.after is not None
    assert {k: getattr(step.after.nomad, k) for k in expected} == expected


@pytest.mark.parametrize(
    ("look", "state", "said"),
    [
        (seen(ours(draining=True, drain="draining"), allocs=(WEB,)), State.DRAINING, "have yet to stop: web.web[0]"),
        (seen(ours(draining=True, drain="draining")), State.DRAINING, "about to end it"),
        (seen(ours(), allocs=(LOG,)), State.DRAINING, "log.log[0]"),
        (seen(ours(), allocs=(replace(WEB, live=False),)), State.DRAINED, ""),
        (seen(ours(drain="canceled", eligible=True)), State.ENABLING, "others ended its Nomad drain"),
        (seen(ours(drain="canceled")), State.ENABLING, "others ended its Nomad drain"),
        (seen(client()), State.DRAINING, "it has not begun"),
        (seen(client(eligible=False)), State.ENABLING, "others made it ineligible"),
        (seen(client(eligible=False, draining=True)), State.ENABLING, "others began to drain it"),
        (seen(), State.ENABLING, "no client of its name"),
        (seen(ours(), error="away"), State.DRAINING, "cannot be asked how far"),
        (seen(ours(), at=NOW - 300), State.DRAINING, "cannot be asked how far"),
    ],
)  # fmt: skip
def test_how_far_the_drain_is(look: NomadSeen, state: State, said: str) -> None:
    m = out(State.DRAINING, nomad=DRAIN)
    decision = decide(world(m, look, observed=drained_by_agent(m)))
    step = step_of(decision)
    after = step.after if step is not None and step.after is not None else m
    assert after.state is state
    told = [b.what for b in decision.reasons.get("m1", ())] + [e.detail for e in (step.events if step else ())]
    assert said in "; ".join(told)


def test_both_sides_must_have_drained() -> None:
    m = out(State.DRAINING, nomad=DRAIN)
    decision = decide(world(m, seen(ours())))
    assert step_of(decision) is None
    assert kinds(decision) == ["agent"]


def test_a_drain_of_others_that_is_over_is_taken_as_it_is() -> None:
    m = out(State.DRAINING, nomad=replace(DRAIN, foreign=True, eligible=False))
    over = seen(client(eligible=False, drain="complete"), allocs=(LOG,))
    step = step_of(decide(world(m, over, observed=drained_by_agent(m))))
    assert step is not None
    assert step.after is not None
    assert step.after.state is State.DRAINED
    assert next_act(step.after, over.clients[0]) is next_act(out(State.ENABLING, nomad=m.nomad), over.clients[0])


@pytest.mark.parametrize("force", [False, True])
def test_at_the_deadline_the_drain_has_failed_unless_nomad_is_to_force_it(force: bool) -> None:
    m = out(State.DRAINING, since=NOW - 301, nomad=replace(DRAIN, force=force, since=NOW - 301))
    look = seen(ours(draining=True, drain="draining"), allocs=(WEB,))
    step = step_of(decide(world(m, look)))
    state = step.after.state if step is not None and step.after is not None else m.state
    assert state is (State.DRAINING if force else State.ENABLING)


def test_when_the_agents_side_fails_nomads_side_is_undone_at_once() -> None:
    m = out(State.DRAINING, nomad=DRAIN)
    under_way = ours(draining=True, drain="draining")
    step = step_of(decide(world(m, seen(under_way, allocs=(WEB,)), observed=drained_by_agent(m, ok=False))))
    assert step is not None
    assert step.after is not None
    assert step.after.state is State.ENABLING
    assert next_act(step.after, under_way) is Act.UNDO


# --- what is asked of Nomad ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "found", "act"),
    [
        (State.DRAINING, client(), Act.DRAIN),
        (State.DRAINING, client(eligible=False), Act.NOTHING),
        (State.DRAINING, client(eligible=False, draining=True), Act.NOTHING),
        (State.DRAINING, ours(draining=True), Act.NOTHING),
        (State.DRAINING, ours(drain="canceled"), Act.NOTHING),
        (State.REBOOTING, ours(), Act.NOTHING),
        (State.VERIFYING, ours(draining=True), Act.STOP),
        (State.QUARANTINED, ours(draining=True), Act.STOP),
        (State.HELD, client(eligible=False, draining=True), Act.NOTHING),
        (State.ENABLING, ours(), Act.ENABLE),
        (State.IN_SERVICE, ours(), Act.ENABLE),
        (State.ENABLING, ours(eligible=True), Act.NOTHING),
        (State.ENABLING, client(eligible=False, draining=True), Act.NOTHING),
        (State.ENABLING, client(eligible=False, mark="rebootd/m1/3"), Act.NOTHING),
    ],
)
def test_only_what_carries_our_mark_is_touched(state: State, found: NomadClient, act: Act) -> None:
    assert next_act(machine(state=state, nomad=DRAIN), found) is act
    assert next_act(machine(state=state), found) is Act.NOTHING


def test_what_was_ineligible_before_is_never_made_eligible() -> None:
    m = machine(state=State.ENABLING, nomad=replace(DRAIN, eligible=False))
    assert next_act(m, ours()) is Act.NOTHING
    assert next_act(m, ours(draining=True)) is Act.STOP


def test_a_drain_that_no_record_knows_of_is_an_orphan_only_while_it_goes_on_and_on_our_machines() -> None:
    late = ours(draining=True, drain="draining")
    assert orphan(late, "rebootd/", {"m1": machine()})
    assert not orphan(late, "rebootd/", {"m1": machine(nomad=DRAIN)})
    assert not orphan(ours(), "rebootd/", {"m1": machine()})
    assert not orphan(late, "rebootd/", {})
    assert not orphan(late, "other/", {"m1": machine()})
    assert not orphan(client(draining=True, eligible=False), "rebootd/", {"m1": machine()})


# --- the permit ----------------------------------------------------------------------------------


def permit_of(look: NomadSeen) -> tuple[State, list[str]]:
    m = out(State.DRAINED, nomad=DRAIN)
    decision = decide(world(m, look, asking=[asks(m)]))
    step = step_of(decision)
    return (step.after.state if step is not None and step.after is not None else m.state), kinds(decision)


def test_no_permit_while_nomad_cannot_be_asked() -> None:
    assert permit_of(seen(ours()))[0] is State.REBOOTING
    assert permit_of(seen(ours(), error="away")) == (State.DRAINED, ["nomad"])
    assert permit_of(seen(ours(), at=NOW - 31)) == (State.DRAINED, ["nomad"])


def test_who_is_made_eligible_by_others_comes_back_instead_of_rebooting() -> None:
    assert permit_of(seen(ours(eligible=True)))[0] is State.ENABLING


# --- coming back ---------------------------------------------------------------------------------


def verified(look: NomadSight | None, since: float = NOW - 30) -> tuple[bool, list[str]]:
    m = out(State.VERIFYING, since=since)
    decision = decide(world(m, nomad=look, observed=heard(m, boot_check=PASSED)))
    step = step_of(decision)
    return step is not None and step.after is not None and step.after.state is State.ENABLING, [
        kind for kind in kinds(decision) if kind == "nomad"
    ]


def test_a_booted_machine_waits_for_its_client_but_not_for_a_silent_nomad() -> None:
    ready = {"m1": (client(),)}
    assert verified(NomadSight(at=NOW - 1, clients=ready)) == (True, [])
    assert verified(NomadSight(at=NOW - 1, clients={"m1": (client(status="down"),)})) == (False, ["nomad"])
    assert verified(NomadSight(at=NOW - 40, clients=ready), NOW - 30) == (False, ["nomad"])
    assert verified(NomadSight(at=NOW - 40, clients=ready), NOW - 31) == (True, [])
    assert verified(NomadSight(at=NOW - 1, error="away", clients=ready), NOW - 300) == (False, ["nomad"])
    assert verified(NomadSight(at=NOW - 31, error="away", clients=ready), NOW - 300) == (True, [])
    assert verified(None) == (True, [])


def returned(look: NomadSeen, **facts: Any) -> tuple[Machine | None, str]:
    """The record after it, if the machine came into service, and why not."""
    m = out(State.ENABLING, **({"nomad": DRAIN} | facts))
    observed = heard(m, result=result(m, DirectiveKind.ENABLE))
    decision = decide(world(m, look, observed=observed))
    step = step_of(decision)
    after = step.after if step is not None and step.after is not None else None
    return (after if after is not None and after.state is State.IN_SERVICE else None), "; ".join(
        b.what for b in decision.reasons.get("m1", ())
    )


BACK = ours(eligible=True)


@pytest.mark.parametrize(
    ("look", "said"),
    [
        (seen(ours(), allocs=(LOG,)), "eligibility at Nomad is being restored"),
        (seen(BACK), "system jobs do not run on it yet: default/log"),
        (seen(BACK, allocs=(LOG,), services=WHOLE | {"default/web": NomadService(1, 2)}), "default/web (1 of 2 run)"),
        (seen(BACK, allocs=(LOG,), error="away"), "Nomad cannot be asked: away"),
    ],
)
def test_a_return_waits_until_all_is_as_before(look: NomadSeen, said: str) -> None:
    after, why = returned(look)
    assert after is None
    assert said in why


@pytest.mark.parametrize(
    "look",
    [
        seen(BACK, allocs=(LOG,)),
        # Stopped, gone or smaller jobs are not waited for; nor is what others did to the client meanwhile.
        seen(BACK, services={"default/web": NomadService(0, 0)}),
        seen(BACK, allocs=(LOG,), services=WHOLE | {"default/web": NomadService(1, 1)}),
        seen(client(eligible=False, draining=True)),
        seen(client(), allocs=(LOG,)),
        seen(),
    ],
    ids=["all", "stopped", "smaller", "taken-over", "never-begun", "gone"],
)
def test_then_it_is_in_service_and_its_record_forgets_the_drain(look: NomadSeen) -> None:
    after, why = returned(look)
    assert after is not None, why
    assert after.nomad is None


def test_service_jobs_that_stay_short_keep_nobody_out_for_ever() -> None:
    short = seen(BACK, allocs=(LOG,), services=WHOLE | {"default/web": NomadService(1, 2)})
    assert returned(short, since=NOW - 59)[0] is None
    assert returned(short, since=NOW - 61)[0] is not None


def test_a_silent_nomad_is_left_owing_what_it_is_owed() -> None:
    after, _ = returned(seen(ours(), at=NOW - 31, error="away"), since=NOW - 60)
    assert after is not None
    assert after.nomad == DRAIN
    owing = machine(nomad=DRAIN)
    assert step_of(decide(world(owing, seen(ours(), error="away")))) is None
    paid = step_of(decide(world(owing, seen(BACK))))
    assert paid is not None
    assert paid.after is not None
    assert paid.after.nomad is None


def test_the_soak_counts_from_when_all_was_well_there() -> None:
    policy = replace(POLICY, soak=10.0)
    m = out(State.ENABLING, nomad=DRAIN)
    observed = {
        "m1": Observation(report=report(m, result=result(m, DirectiveKind.ENABLE)), at=NOW, enabled_at=NOW - 20)
    }
    for well_since, state in ((NOW - 5, None), (NOW - 11, State.IN_SERVICE)):
        look = seen(BACK, allocs=(LOG,), well_since=well_since)
        step = step_of(decide(world(m, look, policy=policy, observed=observed)))
        assert (step.after.state if step is not None and step.after is not None else None) is state


def test_progress_of_both_sides_is_told() -> None:
    m = out(State.DRAINING, nomad=DRAIN)
    look = seen(ours(draining=True, drain="draining"), allocs=(WEB,))
    decision = decide(world(m, look, observed=heard(m, doing="drain: waiting for traffic to leave")))
    assert [b.what for b in decision.reasons["m1"]] == [
        "its agent is draining it: drain: waiting for traffic to leave",
        "its Nomad drain goes on for 20s of 5m: 1 allocations have yet to stop: web.web[0]",
    ]

"""FleetLock clients in the full simulation: small plans, told by what happened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.sim.enough import too_few
from tests.sim.features import Features
from tests.sim.interrupted import run_whole, small_plan
from tests.sim.lock_plan import FLEETLOCK, SHARE
from tests.sim.plan import Fault, make_plan
from tests.sim.planted import plant
from tests.sim.run import Outcome, quiet_logs, run_seed
from tests.sim.world import World

if TYPE_CHECKING:
    from collections.abc import Sequence

ALL = {name: f"client-of-{name}" for name in ("m1a", "m1b", "m2a", "m2b")}
CALM = 1200.0


def play(
    *faults: Fault, staged: Sequence[str] = (), later: Sequence[str] = (), planted: str = "", **changes: Any
) -> Outcome:
    """Four machines in two racks, clients all of them; those that are ``staged`` have an update from second 60 on, or
    from second 300 on (``later``).
    """
    quiet_logs()
    plan = small_plan()
    plan.policy = "settle: 20s\nfleetlock: {enabled: true, wish: 2m}\n"
    plan.lock_clients = dict(ALL)
    plan.staged = [*((60.0, name) for name in staged), *((300.0, name) for name in later)]
    plan.faults, plan.faults_for, plan.failure_budget = list(faults), CALM, 100
    plan.features = Features(sight=True)
    for name, value in changes.items():
        setattr(plan, name, value)
    with plant(planted):
        return run_whole(World(plan))


def held(*faults: Fault, **facts: Any) -> Outcome:
    outcome = play(*faults, **facts)
    assert outcome.ok, "\n".join([*outcome.log[-40:], outcome.violation])
    return outcome


def lines(outcome: Outcome, *words: str) -> list[float]:
    """When something with all these words was told."""
    return [float(line.split()[0]) for line in outcome.log if all(word in line for word in words)]


def test_clients_take_turns_and_each_reboots_once_for_each_update() -> None:
    outcome = held(staged=[*ALL])
    assert outcome.counts["lock reboots"] == 2 * len(ALL)
    for name in ALL:
        first, second = lines(outcome, f"{name} reboots, as its client was told")
        assert first < CALM < second
    assert outcome.counts["lock refusals"] > 0


@pytest.mark.parametrize("kind", ["ambush-kill", "ambush-lost", "ambush-late", "ambush-session"])
def test_a_leader_that_ends_between_commit_and_answer_costs_nobody_a_turn(kind: str) -> None:
    outcome = held(*(Fault(50.0, kind, "rebooting") for _ in range(3)), staged=[*ALL])
    assert outcome.counts[f"hit {kind}"] == 3
    assert outcome.counts["lock reboots"] == 2 * len(ALL)


def test_a_client_that_is_started_anew_gives_its_lock_back_and_asks_again() -> None:
    outcome = held(Fault(50.0, "ambush-kill-client"), staged=["m1a"])
    assert outcome.counts["hit ambush-kill-client"] == 1
    told = lines(outcome, "the client of m1a is told 200")
    assert len(told) == 1 + len(lines(outcome, "m1a reboots, as its client was told")) == 3


def test_a_client_that_never_comes_back_keeps_its_rack_until_people_say_otherwise() -> None:
    outcome = held(Fault(50.0, "never", "m1a"), staged=["m1a"], later=["m1b"], settle_for=3600.0)
    assert outcome.counts["hit never"] == 1
    [quarantined] = lines(outcome, "m1a rebooting -> quarantined")
    assert quarantined > lines(outcome, "the client of m1a is told 200")[0] + 900.0
    # The rack's one place is taken: it stays quarantined, until it is forgotten when the faults are over.
    assert all(at > CALM for at in lines(outcome, "the client of m1b is told 200"))


def test_nobody_is_told_to_go_while_everything_is_halted() -> None:
    outcome = held(Fault(55.0, "raw-halt", "", 400.0), staged=[*ALL])
    told = lines(outcome, "is told 200")
    assert len(told) == 2 * len(ALL)
    assert min(told) > 455.0


def test_nobody_is_told_to_go_outside_of_windows() -> None:
    closed = "windows: {required: true, calendar: [{name: hourly, start: '10 * * * *', duration: 20m, timezone: UTC}]}"
    policy = f"settle: 20s\nfleetlock: {{enabled: true, wish: 2m}}\n{closed}\n"
    outcome = held(staged=[*ALL], policy=policy, faults_for=2400.0, settle_for=8 * 3600.0)
    told = lines(outcome, "is told 200")
    assert len(told) == 2 * len(ALL)
    assert all(600.0 <= at % 3600.0 <= 1800.0 for at in told)


def test_a_client_that_is_stopped_while_it_waits_is_forgotten() -> None:
    halt = Fault(55.0, "raw-halt", "", 500.0)
    outcome = held(halt, Fault(200.0, "client-away", "", 900.0), staged=["m1a"], lock_clients={"m1a": "m1a"})
    assert not [at for at in lines(outcome, "m1a in-service -> draining") if at < CALM - 100.0]


def test_a_machine_that_is_not_there_any_more_needs_no_turn() -> None:
    """A cycle over all machines ends without the clients that do not ask."""
    outcome = held(policy="settle: 20s\nfleetlock: {enabled: true}\nwaves: [{size: 1}, {size: 100%}]\n")
    assert outcome.counts["lock reboots"] == len(ALL)
    assert min(lines(outcome, "is told 200")) > CALM


@pytest.mark.parametrize(
    ("planted", "name"),
    [("client-granted-early", "COMMITTED"), ("client-frees-others", "S3"), ("limit-forgets-clients", "S2")],
)
def test_what_is_planted_is_seen(planted: str, name: str) -> None:
    where: dict[str, Any] = (
        {"racks": {"r1": ["m1a", "m1b", "m2a", "m2b"]}} if planted == "limit-forgets-clients" else {}
    )
    two: dict[str, Any] = {"policy": "settle: 20s\nracks: {open: 2}\nfleetlock: {enabled: true, wish: 2m}\n"}
    outcome = play(staged=[*ALL], planted=planted, boot_seconds=(60.0, 90.0), **two, **where)
    assert outcome.name == name, outcome.violation


def test_some_seeds_have_clients_and_the_others_are_what_they_were() -> None:
    plans = [make_plan(seed) for seed in range(200)]
    having = [plan for plan in plans if plan.lock_clients]
    assert SHARE / 2 < len(having) / len(plans) < SHARE * 2
    assert all(("fleetlock" in plan.policy) is bool(plan.lock_clients) for plan in plans)
    assert all(make_plan(seed, profile=FLEETLOCK).lock_clients for seed in range(20))


def test_that_too_few_clients_reboot_is_noticed() -> None:
    assert "lock reboots" in too_few({}, 100)


@pytest.mark.parametrize("seed", [pytest.param(s, marks=pytest.mark.slow if s >= 4 else ()) for s in range(40)])
def test_every_invariant_holds_where_everything_happens_to_clients(seed: int) -> None:
    quiet_logs()
    outcome = run_seed(seed, profile=FLEETLOCK)
    assert outcome.ok, "\n".join([*outcome.log[-40:], outcome.violation])

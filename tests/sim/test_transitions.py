"""Each transition that the state table allows lands in one of the interrupted plans, where it is cut (test_sim)."""

from __future__ import annotations

import msgspec
import pytest

from rebootd.core.model import Machine, State
from rebootd.core.states import TABLE, Happening
from rebootd.store.port import Set
from tests.sim.interrupted import PLANS, run_whole, small_plan
from tests.sim.run import quiet_logs
from tests.sim.transitions import missing, watching
from tests.sim.world import World


@pytest.fixture(scope="module")
def landed() -> dict[str, set[tuple[State, Happening]]]:
    """What landed in each plan that nobody cuts."""
    quiet_logs()
    found = {}
    for name, plan in PLANS.items():
        world = World(plan())
        with watching(world) as watch:
            outcome = run_whole(world)
        assert outcome.ok, f"{name}: {outcome.violation}"
        found[name] = watch.landed
    return found


def test_every_transition_of_the_table_is_in_a_plan(landed: dict[str, set[tuple[State, Happening]]]) -> None:
    assert missing(set().union(*landed.values())) == []


def test_a_transition_that_is_in_no_plan_is_named(landed: dict[str, set[tuple[State, Happening]]]) -> None:
    new = msgspec.structs.replace(TABLE[0], frm=State.HELD, happening=Happening.DEADLINE, to=State.QUARANTINED)
    seen = set().union(*landed.values())
    assert missing(seen, (*TABLE, new)) == ["held + deadline -> quarantined"]
    assert missing(seen - {(State.REBOOTING, Happening.BY_HAND)}) == ["rebooting + by-hand -> in-service"]


def test_what_is_decided_and_does_not_land_is_not_counted() -> None:
    world = World(small_plan())
    machine = Machine(name="m1a", rack="r1", state=State.DRAINED, since=1.0, boot_id="b", version=4, epoch=2)

    def write(record: Machine) -> None:
        op = Set("rebootd/machines/m1a", msgspec.json.encode(record))
        world.loop.inside(lambda: world.servers.by("people", [op]))

    with watching(world) as watch:
        write(machine)
        given_up, _ = watch.advance(machine, Happening.DEADLINE, now=2.0, epoch=2, cause="drained for too long")
        permitted, _ = watch.advance(machine, Happening.PERMIT, now=2.0, epoch=2, cause="permitted")
        write(given_up)
        assert watch.landed == set()
        write(machine)
        write(permitted)
        assert watch.landed == {(State.DRAINED, Happening.PERMIT)}
    world.loop.close()

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from rebootd.core.counts import Counts
from rebootd.core.decide import KEPT_CYCLES, decide
from rebootd.core.errors import InvalidInput, NotFound, Refused
from rebootd.core.model import Cycle, CycleState, Machine, OpenWindow, Snapshot, State
from rebootd.core.operations import forget, hold, open_window, release
from rebootd.core.operations_cycles import move_cycle, progress, start_cycle
from rebootd.core.operations_inputs import YEAR, Because, parse_moment
from rebootd.core.policy import Policy

NOW = 1_800_000_000.0
WHO = Because("ann", "because")


def machine(name: str, state: State = State.IN_SERVICE, **facts: object) -> Machine:
    base = Machine(name=name, rack="r1", state=state, since=NOW - 60, boot_id="b", labels={"role": "web"})
    return replace(base, **facts)


def snapshot(*machines: Machine, **facts: object) -> Snapshot:
    base = Snapshot(
        now=NOW,
        epoch=3,
        policy=Policy(),
        machines={m.name: m for m in machines},
        observed={},
        cycles={},
        machine_holds={},
        rack_holds={},
    )
    return replace(base, **facts)


def cycle(name: str, state: CycleState, **facts: object) -> Cycle:
    return replace(Cycle(id=name, selector="*", created=NOW - 9, changed=NOW - 9, state=state), **facts)


@pytest.mark.parametrize("verb", ["pause", "resume", "cancel"])
@pytest.mark.parametrize("state", list(CycleState))
def test_verbs_and_states_of_cycles(verb: str, state: CycleState) -> None:
    legal = {
        "pause": {"running": "paused"},
        "resume": {"paused": "running", "halted": "running"},
        "cancel": {"running": "cancelled", "paused": "cancelled", "halted": "cancelled"},
    }
    before = snapshot(cycles={"k": cycle("k", state, why="old")})
    to = legal[verb].get(state.value)
    if to is None:
        with pytest.raises(Refused, match=f"is {state.value}"):
            move_cycle(before, verb, "k", WHO)
        return
    change = move_cycle(before, verb, "k", WHO)
    (write,) = change.writes
    after = msgspec.json.decode(write.value or b"", type=Cycle)
    assert (after.state, after.version, after.changed, after.epoch) == (to, 2, NOW, 3)
    assert (after.why == "") == (to == "running")
    (event,) = change.events
    assert (event.kind, event.cycle, event.time) == ("operator", "k", NOW)
    assert "ann: because" in event.detail


def test_the_oldest_ended_cycles_that_nobody_is_out_for_are_pruned() -> None:
    ended = {f"k{i:03}": cycle(f"k{i:03}", CycleState.DONE, changed=float(i)) for i in range(KEPT_CYCLES + 3)}
    out = machine("m", State.HELD, cycle="k000")
    assert decide(snapshot(out, machine("n"), cycles=ended)).prune == ("cycles/k001", "cycles/k002")


def test_windows_that_are_long_over_are_pruned() -> None:
    old, new = OpenWindow(id="old", start=1.0, end=2.0), OpenWindow(id="new", start=NOW - 60, end=NOW - 30)
    assert decide(snapshot(machine("n"), windows=(old, new))).prune == ("windows/old",)


def test_failure_budgets() -> None:
    fleet = snapshot(*(machine(f"m{i}") for i in range(40)), policy=Policy(failure_budget=3))
    for given_, budget in ((None, 3), (0, 0), ("0%", 0), ("1%", 1), ("10%", 4), (7, 7), ("7", 7)):
        change = start_cycle(fleet, cycle_id="k", selector="*", failure_budget=given_, because=WHO)
        assert msgspec.json.decode(change.writes[0].value or b"", type=Cycle).failure_budget == budget


outcomes = st.sampled_from(["", "rebooted", "failed: hook", "skipped: held"])
members = st.lists(
    st.tuples(outcomes, st.sampled_from(State), st.booleans(), st.sampled_from(["r1", "r2", ""]), st.booleans()),
    max_size=8,
)


@given(members, st.sampled_from(["", "kernel=9"]))
def test_counts_always_add_up(what: list[tuple[str, State, bool, str, bool]], target: str) -> None:
    machines = [
        machine(
            f"m{i}",
            state,
            outcomes={"k": o} if o else {},
            cycle="k" if mine else "",
            rack=rack,
            kernel="9" if new else "8",
        )
        for i, (o, state, mine, rack, new) in enumerate(what)
    ]
    total, racks = progress(cycle("k", CycleState.RUNNING, target=target), machines)
    assert total.selected == len(machines)
    for counts in (total, *racks.values()):
        parts = counts.rebooted + counts.failed + counts.skipped + counts.out + counts.waiting
        assert parts == counts.selected
    for field in Counts.__struct_fields__:
        assert sum(getattr(c, field) for c in racks.values()) == getattr(total, field)


@given(st.text(max_size=40) | st.integers() | st.floats() | st.none() | st.booleans() | st.lists(st.integers()))
def test_a_moment_is_within_a_year_or_bad_input(value: object) -> None:
    with contextlib.suppress(InvalidInput):
        assert abs(parse_moment(value, "start", NOW) - NOW) <= YEAR


def test_moments() -> None:
    assert parse_moment(None, "start", NOW) == parse_moment(" Now ", "start", NOW) == NOW
    assert parse_moment("2027-01-15T09:00:00+01:00", "start", NOW) == NOW
    assert parse_moment("1800000000.5", "start", NOW) == NOW + 0.5


def test_a_window_gets_an_id_that_is_free() -> None:
    first = open_window(snapshot(), window_id="", start=None, length="1h", because=WHO).writes[0]
    from rebootd.core.model import OpenWindow

    record = msgspec.json.decode(first.value or b"", type=OpenWindow)
    assert first.key == f"windows/{record.id}" == "windows/w20270115T080000Z"
    again = open_window(snapshot(windows=(record,)), window_id="", start=None, length="1h", because=WHO)
    assert again.writes[0].key == f"{first.key}-2"


def test_an_unreadable_machine_can_be_held_and_an_orphaned_hold_released() -> None:
    from rebootd.core.model import Aside, Hold

    aside = snapshot(asides={"x": Aside("x", "r1", "not JSON", NOW)})
    assert hold(aside, "machine", "x", WHO).writes[0].key == "holds/machine/x"
    orphan = snapshot(machine_holds={"gone": Hold(kind="machine", name="gone", since=NOW)})
    assert release(orphan, "machine", "gone", WHO).writes[0].value is None
    with pytest.raises(NotFound):
        release(snapshot(), "machine", "gone", WHO)


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("force", [False, True])
def test_forgetting_by_state(state: State, force: bool) -> None:
    fleet = snapshot(machine("m", state))
    if state is State.IN_SERVICE or (force and state in {State.HELD, State.QUARANTINED}):
        (step,) = forget(fleet, "m", WHO, force=force).steps
        assert (step.before, step.after) == (fleet.machines["m"], None)
        assert step.events[0].kind == "operator"
    else:
        with pytest.raises(Refused, match=state.value):
            forget(fleet, "m", WHO, force=force)

"""The table of states: every state with every happening, and what must be true of the table as a whole."""

from __future__ import annotations

from itertools import product

import pytest

from rebootd.core.advance import advance
from rebootd.core.model import State
from rebootd.core.policy import Deadlines
from rebootd.core.states import TABLE, WORKING, Happening, Rule, Who, target
from tests.core.worlds import NOW, machine

S, H = State, Happening
# One row per state: what the design says may happen there, and where it leads.
EXPECTED: dict[State, dict[Happening, State]] = {
    S.IN_SERVICE: {H.TAKE_OUT: S.DRAINING, H.BOOT: S.VERIFYING, H.FOUND_OUT: S.VERIFYING},
    S.DRAINING: {
        H.DRAIN_DONE: S.DRAINED,
        H.DRAIN_FAILED: S.ENABLING,
        H.RETURN: S.ENABLING,
        H.BOOT: S.VERIFYING,
        H.DEADLINE: S.QUARANTINED,
        H.BY_HAND: S.IN_SERVICE,
    },
    S.DRAINED: {
        H.PERMIT: S.REBOOTING,
        H.HOLD: S.HELD,
        H.RETURN: S.ENABLING,
        H.REBOOT_FAILED: S.ENABLING,
        H.BOOT: S.VERIFYING,
        H.DEADLINE: S.QUARANTINED,
        H.BY_HAND: S.IN_SERVICE,
    },
    S.REBOOTING: {
        H.BOOT: S.VERIFYING,
        H.REBOOT_FAILED: S.QUARANTINED,
        H.DEADLINE: S.QUARANTINED,
        H.BY_HAND: S.IN_SERVICE,
    },
    S.VERIFYING: {
        H.VERIFIED: S.ENABLING,
        H.VERIFY_FAILED: S.QUARANTINED,
        H.HOLD: S.HELD,
        H.BOOT: S.VERIFYING,
        H.DEADLINE: S.QUARANTINED,
        H.BY_HAND: S.IN_SERVICE,
    },
    S.ENABLING: {
        H.ENABLED: S.IN_SERVICE,
        H.ENABLE_FAILED: S.QUARANTINED,
        H.BOOT: S.VERIFYING,
        H.DEADLINE: S.QUARANTINED,
        H.BY_HAND: S.IN_SERVICE,
    },
    S.HELD: {H.BOOT: S.HELD, H.RELEASE: S.ENABLING, H.PERMIT: S.REBOOTING, H.BY_HAND: S.IN_SERVICE},
    S.QUARANTINED: {H.BOOT: S.QUARANTINED, H.CLEAR: S.VERIFYING, H.BY_HAND: S.IN_SERVICE},
}


@pytest.mark.parametrize(("state", "happening"), list(product(State, Happening)))
def test_every_state_with_every_happening(state: State, happening: Happening) -> None:
    before = machine(state=state, epoch=3)
    expected = EXPECTED[state].get(happening)
    assert target(state, happening) is expected
    if expected is None:
        with pytest.raises(ValueError, match=rf"{happening}.*m1.*{state}"):
            advance(before, happening, now=NOW, epoch=4, cause="test")
        return
    after, event = advance(before, happening, now=NOW, epoch=4, cause="test", detail="why", kernel="6.12")
    assert (after.state, after.version, after.epoch, after.cause, after.kernel) == (expected, 8, 4, "test", "6.12")
    assert (event.frm, event.to, event.machine, event.rack) == (state.value, expected.value, "m1", "r1")
    assert (event.time, event.epoch, event.cause, event.detail, event.kind) == (NOW, 4, "test", "why", "transition")
    # A technician's power cycle does not restart the time that a machine is held or quarantined.
    stays = happening is H.BOOT and state in {S.HELD, S.QUARANTINED}
    assert after.since == (before.since if stays else NOW)


def test_no_rule_is_written_twice() -> None:
    pairs = [(r.frm, r.happening) for r in TABLE]
    assert len(pairs) == len(set(pairs))


AGENT = {H.DRAIN_DONE, H.DRAIN_FAILED, H.REBOOT_FAILED, H.BOOT, H.ENABLED, H.ENABLE_FAILED, H.BY_HAND, H.FOUND_OUT}
OPERATOR = {H.HOLD, H.RELEASE, H.CLEAR}


@pytest.mark.parametrize("rule", TABLE, ids=lambda r: f"{r.frm.value} {r.happening.value}")
def test_who_may_cause_it(rule: Rule) -> None:
    groups = {Who.AGENT: AGENT, Who.OPERATOR: OPERATOR, Who.CLOCK: {H.DEADLINE}}
    named = next((who for who, happenings in groups.items() if rule.happening in happenings), Who.COORDINATOR)
    assert rule.who is named


@pytest.mark.parametrize("state", State)
def test_a_state_has_a_deadline_exactly_if_the_clock_may_end_it(state: State) -> None:
    assert (Deadlines().of(state) is not None) == (target(state, H.DEADLINE) is not None)
    assert (Deadlines().of(state) is not None) == (state in WORKING)


@pytest.mark.parametrize("state", [s for s in State if s is not State.IN_SERVICE])
def test_every_state_out_of_service_has_a_way_back_without_breaking_the_glass(state: State) -> None:
    reached, todo = {state}, [state]
    while todo:
        here = todo.pop()
        new = {to for h, to in EXPECTED[here].items() if h is not H.BY_HAND} - reached
        reached |= new
        todo += new
    assert State.IN_SERVICE in reached


@pytest.mark.parametrize("state", State)
def test_a_new_boot_is_received_in_every_state(state: State) -> None:
    stays = {State.HELD, State.QUARANTINED}
    assert target(state, H.BOOT) is (state if state in stays else State.VERIFYING)


def test_only_a_permit_leads_to_rebooting_and_only_from_where_the_machine_is_empty() -> None:
    ways = {(r.frm, r.happening) for r in TABLE if r.to is State.REBOOTING}
    assert ways == {(S.DRAINED, H.PERMIT), (S.HELD, H.PERMIT)}


def test_nothing_leaves_service_but_by_being_taken_out_or_by_its_host() -> None:
    assert {r.happening for r in TABLE if r.frm is State.IN_SERVICE} == {H.TAKE_OUT, H.BOOT, H.FOUND_OUT}


def test_the_states_in_which_a_rack_is_open() -> None:
    assert set(State) - WORKING == {S.IN_SERVICE, S.HELD, S.QUARANTINED}

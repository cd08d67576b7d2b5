from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebootd.core.advance import transition_event
from rebootd.core.durations import KEPT_KEYS, Durations, Mean, keys_of, phases_left, seen
from rebootd.core.model import Event, Machine, State
from rebootd.core.policy import DEFAULT_POLICY, Policy, parse_policy
from rebootd.core.policy_waves import PHASES, Expected
from tests.core.worlds import machine, out

CAUSES = {State.VERIFYING: "planned boot", State.IN_SERVICE: "enabled"}


def moved(m: Machine, to: State, after: float, cause: str = "") -> tuple[Machine, Event]:
    event = transition_event(
        m, msgspec.structs.replace(m, state=to), now=m.since + after, cause=cause or CAUSES.get(to, "")
    )
    return msgspec.structs.replace(m, state=to, since=m.since + after, planned=True), event


def lived(durations: Durations, seconds: dict[str, float], policy: Policy = DEFAULT_POLICY, **labels: str) -> Durations:
    """One planned reboot, with these lengths of its phases."""
    m = out(State.DRAINING, labels=labels)
    ways = zip(PHASES, (State.DRAINED, State.REBOOTING, State.VERIFYING, State.ENABLING, State.IN_SERVICE), strict=True)
    for phase, to in ways:
        before = m
        m, event = moved(m, to, seconds[phase])
        durations = seen(durations, before, (event,), policy)
    return durations


LONG = {"drain": 10.0, "prepare": 2.0, "reboot": 200.0, "verify": 30.0, "enable": 5.0}


def test_one_reboot_gives_a_sample_of_every_phase() -> None:
    durations = lived(Durations(), LONG)
    assert durations.samples == 5
    assert {p: durations.expected(p, (), DEFAULT_POLICY) for p in PHASES} == LONG
    assert durations.whole(machine(), DEFAULT_POLICY) == durations.longest(DEFAULT_POLICY) == 247


def test_the_soak_is_no_time_that_the_machine_needs() -> None:
    policy = Policy(soak=60)
    durations = lived(Durations(), {**LONG, "enable": 65}, policy)
    assert durations.expected("enable", (), policy) == 5
    assert durations.whole(machine(), policy) == 247 + 60


def test_a_label_is_believed_once_it_has_enough_samples() -> None:
    durations = Durations()
    for _ in range(10):
        durations = lived(durations, LONG, role="web")
    keys = keys_of(machine(labels={"role": "db"}), DEFAULT_POLICY)
    for n in range(3):
        assert durations.expected("reboot", keys, DEFAULT_POLICY) != 400, n
        durations = lived(durations, {**LONG, "reboot": 400}, role="db")
    assert durations.expected("reboot", keys, DEFAULT_POLICY) == 400
    assert durations.expected("reboot", ("role=web",), DEFAULT_POLICY) == 200
    assert 200 < durations.expected("reboot", ("role=new",), DEFAULT_POLICY) < 400


def test_defaults_are_the_policys_and_never_beyond_the_deadline() -> None:
    policy = Policy(expected=Expected(reboot=5000))
    assert Durations().expected("reboot", (), policy) == policy.deadlines.rebooting
    assert Durations().expected("drain", (), policy) == 60


@pytest.mark.parametrize("cause", ["unplanned boot", "deadline"])
def test_what_went_wrong_or_was_not_planned_is_no_sample(cause: str) -> None:
    m = out(State.REBOOTING)
    _, event = moved(m, State.VERIFYING, 100, cause)
    assert seen(Durations(), m, (event,), DEFAULT_POLICY).samples == 0
    crashed = out(State.VERIFYING, planned=False)
    _, event = moved(crashed, State.ENABLING, 100, "verified")
    assert seen(Durations(), crashed, (event,), DEFAULT_POLICY).samples == 0
    for_hold = out(State.DRAINING, cycle="")
    _, event = moved(for_hold, State.DRAINED, 100)
    assert seen(Durations(), for_hold, (event,), DEFAULT_POLICY).samples == 0
    assert seen(Durations(), None, (event,), DEFAULT_POLICY).samples == 0


def test_several_transitions_in_one_step_are_told_apart() -> None:
    m = out(State.REBOOTING)
    middle, one = moved(m, State.VERIFYING, 100)
    _, two = moved(middle, State.ENABLING, 7, "verified")
    durations = seen(Durations(), m, (one, two), DEFAULT_POLICY)
    assert (durations.expected("reboot", (), DEFAULT_POLICY), durations.expected("verify", (), DEFAULT_POLICY)) == (
        100,
        7,
    )


def test_the_record_is_bounded_and_readable() -> None:
    durations = Durations()
    policy = parse_policy("forecast: {labels: [name]}")
    for n in range(300):
        m = out(State.DRAINING, f"m{n}")
        _, event = moved(m, State.DRAINED, 10)
        durations = seen(durations, m, (event,), policy)
    assert len(durations.phases["drain"]) <= KEPT_KEYS + 1
    assert durations.phases["drain"]["*"].count == 300
    text = msgspec.json.encode(durations)
    assert len(text) < 20_000
    assert msgspec.json.decode(text, type=Durations) == durations
    torn = Durations(phases={"drain": {"name=a": Mean(3)}})
    assert torn.expected("drain", (), policy) == 60


@given(st.lists(st.floats(0, 1e5), min_size=1, max_size=60))
def test_a_mean_stays_among_its_samples(samples: list[float]) -> None:
    mean = Mean(samples[0])
    for sample in samples[1:]:
        mean = mean.with_sample(sample)
    assert min(samples) - 0.1 <= mean.mean <= max(samples) + 0.1
    assert mean.count == len(samples)
    assert mean.spread <= max(samples) - min(samples) + 0.1


def test_own_keys_can_tell_machines_apart() -> None:
    policy = parse_policy("forecast: {labels: [kernel, rack, model]}")
    assert keys_of(machine(kernel="6.1", labels={"model": "x1"}), policy) == ("kernel=6.1", "rack=r1", "model=x1")
    assert phases_left(State.VERIFYING) == ("verify", "enable")
    assert phases_left(State.HELD) == ()

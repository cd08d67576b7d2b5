from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from rebootd.core import forecast_course
from rebootd.core.admit import choose
from rebootd.core.amounts import Amount
from rebootd.core.decide import decide
from rebootd.core.decision import Lane
from rebootd.core.durations import Durations, Mean, seen
from rebootd.core.forecast import past_errors, run
from rebootd.core.forecast_course import Course
from rebootd.core.limits import Capacity
from rebootd.core.model import CycleState, State
from rebootd.core.policy import Policy, parse_policy
from rebootd.core.policy_waves import Expected
from tests.core.simulation import Simulation
from tests.core.worlds import HALT, NOW, OTHER, OURS, cycle, hold, machine, out, snapshot, window

if TYPE_CHECKING:
    from rebootd.core.admit import Admission
    from rebootd.core.decision import MachineStep
    from rebootd.core.forecast_told import Forecast
    from rebootd.core.model import Machine, Snapshot
    from rebootd.core.view import View
    from rebootd.core.wishes import Wish

TAKES = 490.0
"""Seconds of one reboot by default."""


def fleet(racks: int = 3, per_rack: int = 3, **facts: Any) -> list[Machine]:
    return [
        machine(f"m{r}{n}", f"r{r}", labels={"role": "db" if n == 1 else "web"}, **facts)
        for r in range(1, racks + 1)
        for n in range(1, per_rack + 1)
    ]


def plan(*machines: Machine, policy: str = "{}", cycles: int = 1, **facts: Any) -> Forecast:
    known = [cycle(f"k{i}") for i in range(1, cycles + 1)]
    return run(snapshot(*machines, policy=parse_policy(policy), cycles=known, **facts), "k1")


def test_one_after_another_and_rack_after_rack() -> None:
    f = plan(*fleet())
    assert [p.machine for p in f.planned] == [m.name for m in fleet()]
    assert [p.start - NOW for p in f.planned] == [TAKES * i for i in range(9)]
    assert f.ends == f.last == NOW + 9 * TAKES
    assert (f.never, f.windows) == ((), 0)


def test_a_soak_and_what_machines_have_shown_count() -> None:
    shown = Durations(phases={"reboot": {"*": Mean(100, 50), "role=db": Mean(900, 50)}}, samples=100)
    f = plan(*fleet(1), policy="soak: 10s", durations=shown)
    assert [round(p.back - p.start) for p in f.planned] == [130 + 900 + 60 - 0 + 10 - 0, 130 + 100 + 60 + 10, 300]
    assert {b.phase: b.samples for b in f.basis}["reboot"] == 50


def test_windows_are_counted_and_nothing_starts_that_would_not_fit() -> None:
    nightly = "windows: {required: true, calendar: [{name: n, start: 0 22 * * *, duration: 25m}]}"
    f = plan(*fleet(), policy=nightly)
    assert f.windows == 3
    opening = NOW + 14 * 3600
    for i, p in enumerate(f.planned):
        night, turn = divmod(i, 3)
        assert p.start == opening + night * 86400 + turn * TAKES


def test_waves_and_their_soaks() -> None:
    f = plan(*fleet(), policy="waves: [{machines: name=m31, soak: 1h}, {size: 2, soak: 10m}, {size: 100%}]")
    assert [(p.machine, p.wave) for p in f.planned[:4]] == [("m31", 1), ("m11", 2), ("m12", 2), ("m13", 3)]
    # The soak counts from when a machine is back.
    assert f.planned[1].start == f.planned[0].back + 3600
    assert f.planned[3].start == f.planned[2].back + 600
    assert len(f.planned) == 9


def test_machines_that_are_out_already_are_in_the_plan() -> None:
    held = out(State.HELD, "m13", since=NOW - 50)
    f = plan(
        out(State.REBOOTING, "m11", since=NOW - 100), machine("m12"), held,
        racks={"r1": OURS}, holds=[hold("machine", "m13")], policy="racks: {unavailable: 2}",
    )  # fmt: skip
    assert [(p.machine, p.start - NOW, p.back - NOW) for p in f.planned] == [("m11", -100, 320), ("m12", 320, 810)]
    assert [(n.machine, n.reasons[0].kind) for n in f.never] == [("m13", "hold")]
    assert f.ends == NOW + 810


@pytest.mark.parametrize(
    ("policy", "facts", "kind"),
    [
        ("racks: {unavailable: 0}", {}, "limit"),
        ("{}", {"halt": HALT}, "halt"),
        ("{}", {"racks": {"r1": OTHER}}, "rack-lock"),
        ("{}", {"silent": ["m1"]}, "unseen"),
        ("windows: {required: true}", {}, "window"),
        ("windows: {required: true, calendar: [{name: n, start: 0 22 * * *, duration: 5m}]}", {}, "never"),
    ],
)
def test_who_can_never_go_and_why(policy: str, facts: dict[str, Any], kind: str) -> None:
    f = plan(machine(), policy=policy, **facts)
    assert f.planned == ()
    assert [n.machine for n in f.never] == ["m1"]
    assert kind in [b.kind for b in f.never[0].reasons]
    assert f.ends is None


def test_a_window_that_is_too_short_does_not_count_if_another_is_long_enough() -> None:
    two = (
        "windows: {calendar: [{name: s, start: 0 22 * * *, duration: 5m}, {name: l, start: 0 3 * * SUN, duration: 1h}]}"
    )
    f = plan(machine(), policy=two)
    assert f.planned[0].start == NOW + 43 * 3600
    assert f.never == ()


def test_a_paused_cycle_is_planned_as_if_it_were_resumed() -> None:
    s = snapshot(machine(), cycles=[cycle(state=CycleState.PAUSED)])
    f = run(s, "k1")
    assert len(f.planned) == 1
    assert any("resumed" in said for said in f.assumes)
    assert run(s).planned == ()


def test_past_errors() -> None:
    done = cycle(state=CycleState.DONE, created=NOW - 1000, changed=NOW, estimated=NOW - 100, estimated_at=NOW - 1000)
    assert [(e.late, e.share) for e in past_errors(snapshot(cycles=[done]))] == [(100.0, 0.1)]
    assert past_errors(snapshot(cycles=[replace(done, state=CycleState.CANCELLED)])) == ()


# --- it is the same function, and it keeps the same promises -----------------------------------------


class Checked(Course):
    """Compares what it admits with what the whole decision says of the same moment."""

    compared = 0


def _compare(view: View, wanting: dict[str, list[Wish]]) -> Admission:
    s = view.snapshot
    frozen = replace(s, machines=dict(s.machines), observed=dict(s.observed), racks=dict(s.racks), asking={})
    decision = decide(frozen)
    admitted = choose(view, wanting)
    wanted = [step for step in decision.steps if step.lane is Lane.OUT]
    assert [(x.name, x.after, x.lock) for x in admitted.steps] == [(x.name, x.after, x.lock) for x in wanted]
    _promises(frozen, len(admitted.steps))
    Checked.compared += 1
    return admitted


def _promises(s: Snapshot, more: int) -> None:
    capacity = Capacity(s)
    assert len(capacity.open) + (1 if more and not capacity.open else 0) <= s.policy.open_racks, "S1"
    for tally in (*capacity.racks.values(), *(t for _, t in capacity.limits)):
        assert len(tally.away) <= tally.maximum, f"S2: {tally.sentence()}"


POLICIES = st.builds(
    Policy,
    open_racks=st.integers(1, 3),
    rack_unavailable=st.sampled_from([Amount(1), Amount(2), Amount(50, percent=True)]),
    limits=st.sampled_from(
        [(), parse_policy("limits: [{name: db, selector: role=db, max: 1}, {name: all, selector: '*', max: 3}]").limits]
    ),
    windows=st.sampled_from(
        [(), parse_policy("windows: {calendar: [{name: n, start: 0 */6 * * *, duration: 40m}]}").windows]
    ),
    waves=st.sampled_from(
        [(), parse_policy("waves: [{size: 1, soak: 30m}, {machines: role=db, soak: 1m}, {size: 100%}]").waves]
    ),
    rack_order=st.sampled_from(
        [parse_policy("racks: {order: [r2]}").rack_order, parse_policy("racks: {order: smallest-first}").rack_order]
    ),
    soak=st.sampled_from([0.0, 20.0]),
    expected=st.just(Expected(drain=30, prepare=5, reboot=120, verify=20, enable=10)),
)


@settings(max_examples=40, deadline=None)
@given(policy=POLICIES, sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4), two=st.booleans(), own=st.booleans())
def test_the_forecast_admits_what_the_whole_decision_admits(
    policy: Policy, sizes: list[int], two: bool, own: bool
) -> None:
    machines = [
        machine(f"m{r}{n}", f"r{r}", labels={"role": "db" if n == 1 else "web"})
        for r, size in enumerate(sizes, 1)
        for n in range(size)
    ]
    cycles = [cycle("k1"), *([cycle("k2", selector="role=db", created=NOW - 900)] if two else [])]
    s = snapshot(*machines, policy=policy, cycles=cycles, leader_node="m11" if own else "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forecast_course, "choose", _compare)
        before = Checked.compared
        f = run(s)
        assert Checked.compared > before
    assert sorted({p.machine for p in f.planned}) == sorted(m.name for m in machines)
    assert f.never == ()


# --- it tells what then happens ----------------------------------------------------------------------

LIVED = Expected(drain=6, prepare=4, reboot=20, verify=2, enable=6)
"""What hosts of the pure simulation need at most, until they have shown it."""


class Learning(Simulation):
    """Keeps what its machines show."""

    durations = Durations()

    def snapshot(self) -> Snapshot:
        return replace(super().snapshot(), durations=self.durations)

    def land(self, snapshot: Snapshot, step: MachineStep) -> bool:
        landed = super().land(snapshot, step)
        if landed:
            self.durations = seen(self.durations, step.before, step.events, self.policy)
        return landed

    def through(self, cycle_id: str) -> dict[str, float]:
        """Lives until the cycle is done; when machines were taken out."""
        self.cycles[cycle_id] = cycle(cycle_id, created=self.now)
        starts: dict[str, float] = {}
        until = self.now + 50_000
        while self.cycles[cycle_id].state is CycleState.RUNNING:
            self.round(1.0)
            assert self.now < until
            for m in self.machines.values():
                if m.state is State.DRAINING:
                    starts.setdefault(m.name, m.since)
        return starts


@pytest.mark.parametrize(
    "policy",
    [
        Policy(expected=LIVED),
        Policy(expected=LIVED, open_racks=2, rack_unavailable=Amount(2)),
        Policy(expected=LIVED, soak=20, limits=parse_policy("limits: [{name: d, selector: role=db, max: 1}]").limits),
        Policy(expected=LIVED, window_required=True),
        Policy(expected=LIVED, waves=parse_policy("waves: [{size: 2, soak: 60s}, {size: 100%}]").waves),
    ],
)
def test_the_forecast_agrees_with_a_run_of_the_simulation(policy: Policy) -> None:
    sim = Learning(7, policy, racks=4, per_rack=4)
    sim.leader_node = ""
    if policy.window_required:
        sim.windows = {f"w{i}": window(NOW + 100 + 400 * i, NOW + 300 + 400 * i, f"w{i}") for i in range(60)}
    while len(sim.machines) < 16 or any(m.state is not State.IN_SERVICE for m in sim.machines.values()):
        sim.round(1.0)
    sim.through("k0")
    began = sim.now
    expected = run(replace(sim.snapshot(), cycles={"k1": cycle("k1", created=began)}), "k1")
    starts = sim.through("k1")
    assert expected.ends is not None
    # A machine more or less may fit into a window, and then the end is one window sooner or later.
    tolerated = 400 if sim.windows else 0.15 * (sim.now - began)
    assert expected.ends - began == pytest.approx(sim.now - began, abs=tolerated)
    assert {p.machine for p in expected.planned} == set(starts)
    apart = [abs(p.start - starts[p.machine]) for p in expected.planned]
    assert sorted(apart)[len(apart) // 2] <= tolerated, "half of the machines go about when it was said"
    if sim.windows:
        assert abs(expected.windows - len({int((at - NOW) // 400) for at in starts.values()})) <= 1


def test_gates_stay_as_they_are() -> None:
    alert = "gates: [{name: e, kind: prometheus, address: 'http://p:9', query: up, holds_when: '> 0', covers: role=db}]"
    machines = [m for m in fleet() if m.name != "m31"]
    f = plan(*machines, policy=alert)
    assert [n.machine for n in f.never] == ["m11", "m21"]
    assert [b.kind for b in f.never[0].reasons] == ["gate"]
    assert len(f.planned) == len(machines) - 2
    # While a machine that the gate covers is out, what the gate says is of the moment.
    busy = [out(State.REBOOTING, "m11", labels={"role": "db"}), *machines[1:]]
    assert plan(*busy, policy=alert, racks={"r1": OURS}).never == ()

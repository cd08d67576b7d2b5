from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebootd.core.decide import decide
from rebootd.core.durations import Durations, Mean
from rebootd.core.errors import InvalidInput
from rebootd.core.model import CycleState, Machine, State
from rebootd.core.operations_policy import diff_policy
from rebootd.core.policy import parse_policy, render_policy
from rebootd.core.view import View
from tests.core.worlds import NOW, OURS, cycle, hold, kinds, machine, out, snapshot, window

if TYPE_CHECKING:
    from rebootd.core.decision import Decision
    from rebootd.core.waves import WavePlan

WAVES = 'waves: [{name: canary, machines: "canary=true", soak: 30m}, {racks: [r3], soak: 1h}, {size: 2}, {size: 100%}]'


def fleet(racks: int = 3, per_rack: int = 3) -> list[Machine]:
    return [
        machine(f"m{r}{n}", f"r{r}", labels={"canary": "true"} if (r, n) == (2, 2) else {})
        for r in range(1, racks + 1)
        for n in range(1, per_rack + 1)
    ]


def done(m: Machine, ended: float = NOW - 10, **facts: Any) -> Machine:
    given: dict[str, Any] = {"outcomes": {"k1": "rebooted"}, "ended": ended, "labels": m.labels}
    return machine(m.name, m.rack, **(given | facts))


def taken(decision: Decision) -> list[str]:
    return [s.name for s in decision.steps if s.after is not None and s.after.state is State.DRAINING]


def plan_of(*machines: Machine, policy: str = WAVES, **facts: Any) -> WavePlan:
    view = View(snapshot(*machines, policy=parse_policy(policy), cycles=[cycle()], **facts))
    return view.pace.plans["k1"]


def waves_of(plan: WavePlan) -> list[list[str]]:
    return [sorted(n for n, w in plan.index.items() if w == number) for number in range(len(plan.waves))]


# --- which wave -------------------------------------------------------------------------------------


def test_every_machine_is_in_the_first_wave_that_takes_it() -> None:
    plan = plan_of(*fleet())
    assert waves_of(plan) == [["m22"], ["m31", "m32", "m33"], ["m11", "m12"], ["m13", "m21", "m23"]]
    assert plan.current == 0


def test_waves_stay_the_same_while_a_cycle_goes_on() -> None:
    before = plan_of(*fleet())
    machines = [done(m) if m.name in {"m22", "m31", "m11"} else m for m in fleet()]
    # Another leader, on another host, sees the same waves.
    assert plan_of(*reversed(machines), leader_node="m12").index == before.index


def test_who_need_not_go_is_in_no_wave() -> None:
    odd = [machine("x1", "", labels={}), machine("x2", "r1", kernel="6.12")]
    view = View(snapshot(*fleet(), *odd, policy=parse_policy(WAVES), cycles=[cycle(target="kernel=6.12")]))
    assert not {"x1", "x2"} & set(view.pace.plans["k1"].index)


def test_who_is_out_for_another_cycle_keeps_its_place_until_its_boot_is_proved() -> None:
    """Its boot serves this cycle, too: were it in no wave meanwhile, the others would each move up by one."""
    booted = out(State.VERIFYING, cycle="k0", kernel="6.13")
    others = [machine(f"m{n}", kernel="6.12") for n in (2, 3)]
    policy = parse_policy("waves: [{size: 1, soak: 1h}, {size: 100%}]")
    view = View(snapshot(booted, *others, policy=policy, cycles=[cycle(target="kernel=6.13")]))
    assert waves_of(view.pace.plans["k1"]) == [["m1"], ["m2", "m3"]]


def test_sizes_are_of_all_that_is_selected() -> None:
    plan = plan_of(*fleet(4, 5), policy="waves: [{size: 1}, {size: 10%}, {size: 50%}, {size: 100%}]")
    assert [len(w) for w in waves_of(plan)] == [1, 2, 10, 7]


def test_members_of_quorum_groups_are_in_the_last_places() -> None:
    text = "waves: [{size: 4}, {size: 100%}]\nquorums: [{name: q, selector: 'name in (m11,m12,m21)'}]"
    assert waves_of(plan_of(*fleet(), policy=text)) == [
        ["m13", "m22", "m23", "m31"],
        ["m11", "m12", "m21", "m32", "m33"],
    ]


# --- which wave has come ----------------------------------------------------------------------------


def world(*machines: Machine, **facts: Any) -> Decision:
    given: dict[str, Any] = {"policy": parse_policy(WAVES), "cycles": [cycle()]}
    return decide(snapshot(*machines, **(given | facts)))


def test_only_the_canary_goes_first_and_the_others_are_told() -> None:
    decision = world(*fleet())
    assert taken(decision) == ["m22"]
    assert kinds(decision, "m31") == ["racks", "wave"]
    blocker = decision.reasons["m11"][-1]
    assert "wave 3 of 4 (wave-3)" in blocker.what
    assert "wave 1 (canary), which has 1 machine to go: m22" in blocker.what


@pytest.mark.parametrize(("ago", "goes"), [(29 * 60, []), (31 * 60, ["m31"])])
def test_the_next_wave_goes_when_the_last_has_soaked(ago: float, goes: list[str]) -> None:
    decision = world(*(done(m, NOW - ago) if m.name == "m22" else m for m in fleet()))
    assert taken(decision) == goes
    if not goes:
        assert "soaks until 2027-01-15T08:01:00Z" in decision.reasons["m31"][-1].what
        assert decision.reasons["m31"][-1].clears == "time"


def test_a_wave_is_over_when_its_last_machine_is_back() -> None:
    on_its_way = out(
        State.ENABLING, "m22", "r2", labels={"canary": "true"}, outcomes={"k1": "rebooted"}, ended=NOW - 7200
    )
    machines = [on_its_way if m.name == "m22" else m for m in fleet()]
    assert taken(world(*machines, racks={"r2": OURS})) == []


@pytest.mark.parametrize("state", [State.REBOOTING, State.VERIFYING, State.ENABLING])
@pytest.mark.parametrize("odd", [{}, {"flag": "still required after a reboot: kernel"}])
def test_a_canary_that_shows_the_target_is_waited_for_until_it_is_back(state: State, odd: dict[str, str]) -> None:
    canary = out(state, "m22", "r2", labels={"canary": "true"}, kernel="6.13", booted=True, **odd)
    machines = [canary if m.name == "m22" else m for m in fleet()]
    policy = parse_policy("racks: {open: 3}\n" + WAVES)
    decision = world(*machines, policy=policy, racks={"r2": OURS}, cycles=[cycle(target="kernel=6.13")])
    assert taken(decision) == []
    assert "to go: m22" in decision.reasons["m31"][-1].what


@pytest.mark.parametrize("state", [State.HELD, State.QUARANTINED])
def test_who_needs_a_person_is_not_waited_for(state: State) -> None:
    machines = [machine("m22", "r2", state, labels={"canary": "true"}) if m.name == "m22" else m for m in fleet()]
    assert taken(world(*machines, holds=[hold("machine", "m22")])) == ["m31"]


def test_a_failure_counts_and_the_wave_goes_on() -> None:
    failed = machine(
        "m22", "r2", State.QUARANTINED, labels={"canary": "true"}, outcomes={"k1": "failed: x"}, ended=NOW - 9000
    )
    machines = [failed if m.name == "m22" else m for m in fleet()]
    assert taken(world(*machines, cycles=[cycle(failure_budget=1)])) == ["m31"]
    halted = world(*machines)
    assert taken(halted) == []
    assert halted.cycles[0][0].state is CycleState.HALTED


def test_a_crash_long_after_does_not_begin_the_soak_anew() -> None:
    crashed = done(fleet()[4], NOW - 7200, since=NOW - 5)
    assert crashed.name == "m22"
    assert taken(world(*(crashed if m.name == "m22" else m for m in fleet()))) == ["m31"]


def test_a_cycle_without_waves_takes_no_notice() -> None:
    assert taken(world(*fleet(), cycles=[cycle(waves=False)])) == ["m11"]


def test_another_cycle_may_take_a_machine_whose_wave_has_not_come() -> None:
    both = [cycle("k1", created=NOW - 900), cycle("k2", selector="name=m11", waves=False)]
    decision = world(*fleet(), cycles=both, policy=parse_policy(WAVES + "\nracks: {open: 2}"))
    assert set(taken(decision)) == {"m11", "m22"}
    step = next(s for s in decision.steps if s.name == "m11")
    assert step.after is not None
    assert step.after.cycle == "k2"


def test_emptied_waves_are_over_at_once() -> None:
    assert taken(world(*(m for m in fleet() if m.name != "m22"))) == ["m31"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_waves_cover_every_selection_once(data: st.DataObject) -> None:
    parts = ["{size: 1}", "{size: 30%, soak: 1m}", "{racks: [r1, r9]}", '{machines: "name=m?1"}']
    text = ", ".join(data.draw(st.lists(st.sampled_from(parts), max_size=5)))
    last = data.draw(st.sampled_from(["{size: 100%}", '{machines: "*"}']))
    machines = data.draw(st.permutations(fleet(data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4)))))
    plan = plan_of(*machines, policy=f"waves: [{text}{', ' if text else ''}{last}]")
    assert set(plan.index) == {m.name for m in machines}


# --- order ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "own", "first"),
    [
        ("name", "", "m11"),
        ("name", "m12", "m21"),
        ("[r3]", "", "m31"),
        ("[r3, r1]", "m31", "m32"),
        ("smallest-first", "", "m31"),
    ],
)
def test_the_order_of_racks(order: str, own: str, first: str) -> None:
    machines = [m for m in fleet() if m.name != "m33"]
    policy = parse_policy(f"racks: {{order: {order}}}")
    assert taken(world(*machines, policy=policy, leader_node=own)) == [first]


def test_a_rack_that_is_open_goes_on_before_a_listed_one() -> None:
    decision = world(*fleet(), policy=parse_policy("racks: {order: [r3]}"), racks={"r2": OURS})
    assert taken(decision) == ["m21"]


def test_the_oldest_wish_goes_first() -> None:
    cycles = [cycle("k1", created=NOW - 100), cycle("k0", created=NOW - 900, selector="name=m33")]
    assert taken(world(*fleet(), policy=parse_policy("{}"), cycles=cycles)) == ["m33"]


def test_members_of_quorum_groups_go_last_and_alone() -> None:
    policy = parse_policy("racks: {open: 3, unavailable: 3}\nquorums: [{name: q, selector: 'name in (m11,m21,m31)'}]")
    decision = world(*fleet(), policy=policy)
    assert not {"m11", "m21", "m31"} & set(taken(decision))
    assert "order" in kinds(decision, "m11")
    rest = [m if m.name in {"m11", "m21", "m31"} else done(m) for m in fleet()]
    assert taken(world(*rest, policy=policy)) == ["m11"]
    late = [out(State.ENABLING, m.name, m.rack) if m.name == "m12" else m for m in rest]
    assert taken(world(*late, policy=policy, racks={"r1": OURS})) == []
    # One that can never go does not keep them waiting for ever.
    stuck = [m if m.name in {"m11", "m21", "m31", "m13"} else done(m) for m in fleet()]
    assert taken(world(*stuck, policy=policy, silent=["m13"])) != []


def test_members_of_two_groups_in_one_rack_do_not_go_together() -> None:
    groups = "quorums: [{name: q, selector: 'name in (m11,m21,m31)'}, {name: p, selector: 'name in (m12,m22,m32)'}]"
    policy = parse_policy("racks: {open: 3, unavailable: 3}\n" + groups)
    rest = [m if m.name in {"m11", "m12"} else done(m) for m in fleet()]
    assert taken(world(*rest, policy=policy, racks={"r1": OURS})) == ["m11"]


# --- what fits the window ---------------------------------------------------------------------------

SHOWN = Durations(phases={"reboot": {"*": Mean(300, 9), "role=db": Mean(800, 9)}}, samples=18)


@pytest.mark.parametrize(("left", "goes"), [(480, []), (500, ["m12"]), (980, ["m12"]), (1000, ["m11"])])
def test_a_machine_starts_only_if_it_fits(left: float, goes: list[str]) -> None:
    pair = (machine("m11", labels={"role": "db"}), machine("m12", labels={"role": "web"}))
    # Another window is long enough for all of them.
    windows = (window(NOW - 60, NOW + left), window(NOW + 90_000, NOW + 99_000, "w2"))
    decision = world(*pair, policy=parse_policy("windows: {required: true}"), windows=windows, durations=SHOWN)
    assert taken(decision) == goes
    if goes != ["m11"]:
        assert kinds(decision, "m11")[-1] == "window-fit"
        assert "16m30s, and the window closes in" in decision.reasons["m11"][-1].what


@pytest.mark.parametrize("opens", [NOW - 60, NOW + 600])
def test_a_machine_that_fits_no_window_is_told_so(opens: float) -> None:
    windows = (window(opens, opens + 900),)
    decision = world(
        machine("m11", labels={"role": "db"}),
        policy=parse_policy("windows: {required: true}"),
        windows=windows,
        durations=SHOWN,
    )
    assert kinds(decision, "m11")[-1] == "never"
    assert taken(decision) == []


def test_an_emergency_asks_for_no_window() -> None:
    windows = (window(NOW - 60, NOW + 100),)
    policy = parse_policy("windows: {required: true}")
    assert taken(world(machine(), policy=policy, windows=windows, cycles=[cycle(emergency=True)])) == ["m1"]
    assert taken(world(machine(), policy=policy, windows=windows)) == []


# --- bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "field", "said"),
    [
        ("waves: [{size: 50%}]", "waves[0]", "takes all that is left"),
        ("waves: [{size: 1}, {size: 99%}]", "waves[1]", "takes all that is left"),
        ("waves: [{size: 100%}, {size: 1}]", "waves[1]", "no wave after"),
        ("waves: [{size: 0}, {size: 100%}]", "waves[0].size", "not zero"),
        ("waves: [{size: 1, racks: [r1]}, {size: 100%}]", "waves[0]", "exactly one"),
        ("waves: [{soak: 1h}, {size: 100%}]", "waves[0]", "exactly one"),
        ("waves: [{racks: []}, {size: 100%}]", "waves[0].racks", "at least one"),
        ("waves: [{racks: [r1, r1]}, {size: 100%}]", "waves[0].racks[1]", "once"),
        ("waves: [{machines: 'a=='}, {size: 100%}]", "waves[0].machines", "letters"),
        ("waves: [{name: a, size: 1}, {name: a, size: 100%}]", "waves[1].name", "no other wave"),
        ("waves: [{size: 1, soak: 99d}, {size: 100%}]", "waves[0].soak", "31d"),
        ("waves: [{szie: 1}]", "waves[0].szie", "did you mean size?"),
        ("racks: {order: nmae}", "racks.order", "did you mean name?"),
        ("racks: {order: [r1, r1]}", "racks.order[1]", "once"),
        ("standing: {every: 1s}", "standing.every", "1m"),
        ("standing: {enabled: yes}", "standing.enabled", "true or false"),
        ("standing: {id: a/b}", "standing.id", "characters"),
        ("forecast: {labels: [a, b, c, d, e]}", "forecast.labels", "at most 4"),
        ("forecast: {reboot: -1}", "forecast.reboot", "duration"),
    ],
)
def test_bad_input_names_field_and_reason(text: str, field: str, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_policy(text)
    assert caught.value.field == field
    assert said in caught.value.accepted


@pytest.mark.parametrize("text", [WAVES, "racks: {order: [r2, r1]}", "forecast: {labels: [], reboot: 7m}"])
def test_what_is_rendered_reads_the_same(text: str) -> None:
    assert parse_policy(render_policy(parse_policy(text))) == parse_policy(text)


def test_what_a_policy_hardly_means_is_said() -> None:
    said = diff_policy(
        snapshot(*fleet()),
        """
        racks: {order: [r9]}
        waves: [{racks: [r22]}, {machines: canray=true}, {size: 100%}]
        standing: {enabled: true, selector: role=none}
        windows: {calendar: [{name: short, start: 0 2 * * *, duration: 5m}]}
        """,
    ).warnings
    assert [w.partition(":")[0] for w in said] == [
        "racks.order", "waves[0].racks", "waves[1].machines", "standing.selector", "windows.calendar",
    ]  # fmt: skip
    assert "nearest: r2" in said[1]
    assert "up to 8m10s, and no window is longer than 5m" in said[4]


def test_the_standing_cycle_needs_an_id_of_its_own() -> None:
    with pytest.raises(InvalidInput) as caught:
        diff_policy(snapshot(*fleet(), cycles=[cycle("k1")]), "standing: {enabled: true, id: k1}")
    assert caught.value.field == "standing.id"


def test_one_list_serves_cycles_over_different_machines() -> None:
    text = "waves: [{machines: role=db, soak: 1h}, {machines: 'role=web, canary', soak: 1h}, {size: 100%}]"
    web = [machine(f"w{n}", "r1", labels={"role": "web"} | ({"canary": "true"} if n == 2 else {})) for n in (1, 2)]
    world = snapshot(*web, machine("d1", "r2", labels={"role": "db"}), policy=parse_policy(text),
                     cycles=[cycle(selector="role=web")])  # fmt: skip
    assert [step.name for step in decide(world).steps] == ["w2"], "the wave of databases is over, without its soak"

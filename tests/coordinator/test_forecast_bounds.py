"""Forecasts cost the leader no more than they may: the loop goes on, what takes too long is given up and said so."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from typing import TYPE_CHECKING

import pytest

from rebootd.api import shapes, views
from rebootd.cli.ctl_cycle import _estimate
from rebootd.coordinator import forecasts
from rebootd.coordinator.leader import LeaderSettings
from rebootd.core import fit, windows
from rebootd.core.errors import Refused
from rebootd.core.forecast import estimate_due, forecast, past_errors, with_estimate
from rebootd.core.forecast_told import Estimate
from rebootd.core.model import CycleState
from rebootd.core.policy import parse_policy
from tests.coordinator.lab import Host, Lab, eventually, start
from tests.core.worlds import NOW, cycle, machine, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from rebootd.core.decision import Change
    from rebootd.core.forecast_told import Forecast
    from rebootd.core.model import Snapshot

real = forecast


@pytest.fixture(autouse=True)
def _brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecasts, "LOOK", 0.05)
    monkeypatch.setattr(forecasts, "EVERY", 0.1)


def endless(world: Snapshot, cycle_id: str = "") -> Generator[float, None, Forecast]:
    while True:
        yield 0.0


def grinding(world: Snapshot, cycle_id: str = "") -> Generator[float, None, Forecast]:
    """Slices that each keep the processor busy for 0.4 s."""
    for _ in range(3):
        until = time.thread_time() + 0.4
        while time.thread_time() < until:
            pass
        yield 0.0
    return (yield from real(world, cycle_id))


@pytest.fixture(params=["in slices", "in a thread"])
def anywhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(forecasts, "SMALL", 0 if request.param == "in a thread" else 1000)
    before = threading.active_count()
    yield
    until = time.monotonic() + 5
    while threading.active_count() > before + 1 and time.monotonic() < until:
        time.sleep(0.01)


@pytest.mark.usefixtures("anywhere")
async def test_one_that_takes_too_long_is_given_up_and_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecasts, "forecast", endless)
    monkeypatch.setattr(forecasts, "LONGEST", 0.3)
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    async with lab.leader() as leader, asyncio.timeout(20):
        await host.join(leader)
        with pytest.raises(Refused, match="given up after"):
            await leader.forecast()
        await start(leader)
        await eventually(lambda: (e := leader.estimate("k1")) is not None and "given up" in e.note)
        shown = views.cycle(leader.snapshot(), leader.decision(), "k1")
        told = shapes.CycleShow(
            **{f: getattr(shown, f) for f in shown.__struct_fields__ if f != "estimate"}, estimate=leader.estimate("k1")
        )
        assert "given up after" in _estimate(told)
        assert leader.fleet.cycles["k1"].estimated == 0
        monkeypatch.setattr(forecasts, "forecast", real)
        await eventually(lambda: (e := leader.estimate("k1")) is not None and not e.note and e.to_go == 1)


async def test_a_large_fleet_s_forecast_never_stops_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecasts, "forecast", grinding)
    monkeypatch.setattr(forecasts, "SMALL", 0)
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    async with lab.leader() as leader, asyncio.timeout(30):
        await host.join(leader)
        asked = asyncio.create_task(leader.forecast())
        longest, turns, last = 0.0, 0, time.monotonic()
        while not asked.done():
            await asyncio.sleep(0)
            longest, turns, last = max(longest, time.monotonic() - last), turns + 1, time.monotonic()
        assert (await asked).now
        assert turns > 20
        assert longest < 0.35, "less than one slice"


LIMITS = ", ".join(f"{{name: l{i}, selector: 'name=m000{i}*,role in (web,db)', max: 1}}" for i in range(10))
WAVES = ", ".join(["{size: 2%, soak: 1h}"] * 49 + ["{size: '100%'}"])
HEAVY = {
    "all at once": "racks: {open: 40, unavailable: 100%}",
    "limits": f"racks: {{open: 40, unavailable: 50%}}\nlimits: [{LIMITS}]",
    "waves": f"waves: [{WAVES}]",
}


def calendar(windows: int) -> str:
    """Windows that open some hundred times a week."""
    each = [f"{{name: w{i}, start: '{i},{30 + i} */3 * * *', duration: 20m}}" for i in range(windows)]
    return f"windows: {{required: true, calendar: [{', '.join(each)}]}}"


@pytest.mark.parametrize("heavy", HEAVY)
def test_what_is_computed_in_the_loop_holds_it_for_a_small_part_of_a_tick(heavy: str) -> None:
    policy = parse_policy(f"{HEAVY[heavy]}\n{calendar(forecasts.FEW)}")
    machines = [machine(f"m{n:05d}", f"r{n % 40:02d}", labels={"role": "web"}) for n in range(forecasts.SMALL)]
    cycles = [cycle(f"k{n}", created=NOW - n) for n in range(20)]
    windows._spells.cache_clear()
    fit.longest_stretch.cache_clear()
    slices, longest = real(snapshot(*machines, policy=policy, cycles=cycles)), 0.0
    done = False
    # The collector would go through all that other tests have left in this process.
    gc.disable()
    try:
        while not done:
            begin = time.thread_time()
            done = next(slices, None) is None
            longest = max(longest, time.thread_time() - begin)
    finally:
        gc.enable()
    assert longest < LeaderSettings(id="d1").tick / 5


@pytest.mark.parametrize(("many", "elsewhere"), [(0, False), (forecasts.FEW, False), (forecasts.FEW + 1, True)])
async def test_many_windows_are_worked_out_beside_the_loop(
    monkeypatch: pytest.MonkeyPatch, many: int, elsewhere: bool
) -> None:
    where = []

    def noting(world: Snapshot, cycle_id: str = "") -> Generator[float, None, Forecast]:
        where.append(threading.current_thread() is threading.main_thread())
        return (yield from real(world, cycle_id))

    monkeypatch.setattr(forecasts, "forecast", noting)
    world = snapshot(machine(), policy=parse_policy(calendar(many)), cycles=[cycle()])
    await forecasts.Forecasts(lambda: world, no_change).of()
    assert where == [not elsewhere]


async def no_change(plan: Callable[[Snapshot], Change]) -> Change:
    return plan(snapshot())


@pytest.mark.usefixtures("anywhere")
async def test_one_that_would_fill_the_memory_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecasts, "ROWS", 1)
    lab, hosts = Lab({"r1": ["a1", "a2"]}), [Host("a1"), Host("a2")]
    async with lab.leader() as leader, asyncio.timeout(20):
        for host in hosts:
            await host.join(leader)
        with pytest.raises(Refused, match="2 machines"):
            await leader.forecast()


@pytest.mark.usefixtures("anywhere")
async def test_who_no_longer_waits_leaves_nothing_running(monkeypatch: pytest.MonkeyPatch) -> None:
    slices = 0

    def counting(world: Snapshot, cycle_id: str = "") -> Generator[float, None, Forecast]:
        nonlocal slices
        while True:
            slices += 1
            time.sleep(0.001)
            yield 0.0

    monkeypatch.setattr(forecasts, "forecast", counting)
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    async with lab.leader() as leader:
        await host.join(leader)
        asked = asyncio.create_task(leader.forecast())
        await eventually(lambda: slices > 5)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await asyncio.sleep(0.05)
        stopped = slices
        await asyncio.sleep(0.1)
        assert slices == stopped


def estimate(at: float, last: float | None) -> Estimate:
    return Estimate(at=at, to_go=1, never=0, last=last, ends=last)


def test_estimates_are_written_down_anew_each_time_half_of_what_was_left_is_over() -> None:
    k1 = cycle(created=NOW)
    assert estimate_due(k1, NOW)
    assert with_estimate(k1, estimate(NOW, None)) is k1
    k1 = with_estimate(k1, estimate(NOW, NOW + 8000))
    assert (k1.estimated_at, k1.estimated, k1.reestimated) == (NOW, NOW + 8000, ())
    assert not estimate_due(k1, NOW + 3999)
    assert estimate_due(k1, NOW + 4000)
    k1 = with_estimate(k1, estimate(NOW + 4000, NOW + 9000))
    assert k1.reestimated == ((NOW + 4000, NOW + 9000),)
    assert not estimate_due(k1, NOW + 6499)
    assert estimate_due(k1, NOW + 6500)
    at = NOW + 6500
    for _ in range(50):
        if estimate_due(k1, at):
            k1 = with_estimate(k1, estimate(at, at + 1))
        at += 60
    assert len(k1.reestimated) == 8, "it is bounded, however far off they are"


def test_their_errors_are_told_too() -> None:
    done = cycle(
        created=NOW - 10_000,
        state=CycleState.DONE,
        changed=NOW,
        estimated_at=NOW - 10_000,
        estimated=NOW - 1000,
        reestimated=((NOW - 4000, NOW + 400),),
    )
    found = past_errors(snapshot(cycles=[done]))
    assert [(e.number, e.late, e.share) for e in found] == [(0, 1000.0, 0.1), (1, -400.0, -0.1)]


async def test_later_estimates_get_into_the_record_while_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    async with lab.leader() as leader, asyncio.timeout(20):
        await host.join(leader)
        await start(leader)
        await eventually(lambda: leader.fleet.cycles["k1"].estimated > 0)
        k1 = leader.fleet.cycles["k1"]
        monkeypatch.setattr("rebootd.coordinator.forecasts.estimate_due", lambda c, now: len(c.reestimated) < 2)
        await eventually(lambda: len(leader.fleet.cycles["k1"].reestimated) == 2)
        assert leader.fleet.cycles["k1"].estimated == k1.estimated

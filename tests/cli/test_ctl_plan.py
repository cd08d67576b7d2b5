from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from rebootd.core.model import Cycle, CycleState
from rebootd.core.policy import parse_policy
from tests.api.fake_desk import FakeDesk, fleet

if TYPE_CHECKING:
    from tests.api.server import Api
    from tests.cli.ctl_runner import Ctl


async def test_a_plan_is_a_table_and_a_picture(api: Api, ctl: Ctl) -> None:
    await ctl.good("cycle", "start", "k1", "--selector", "*")
    said = await ctl.good("plan", "--cycle", "k1")
    assert "cycle k1: 12 machines to go" in said
    assert "it ends" in said
    rows = [line.split() for line in said.splitlines() if line.startswith(("r1 ", "r2 ", "r3 "))]
    assert len(rows) == 3 + 12
    assert all("█" in row[1] for row in rows[:3])
    assert "takes it that" in said
    assert "nobody knows how far off" in said
    assert {p["machine"] for p in (await ctl("plan", "--cycle", "k1", "--json")).json()["planned"]} == {
        m.name for m in fleet()
    }


async def test_what_if_with_machines_that_never_go(api: Api, ctl: Ctl) -> None:
    api.office.held = FakeDesk(fleet(), policy=parse_policy("limits: [{name: pinned, selector: role=db, max: 0}]"))
    said = await ctl.good("plan", "--selector", "*")
    assert "never, as things are: 3 machines" in said
    assert "limit pinned" in said
    assert "ends not by itself" in said
    assert "no cycles" in await ctl.good("cycle", "list")


async def test_what_if_it_were_an_emergency(api: Api, ctl: Ctl) -> None:
    shut = (
        "windows: {required: true}\n"
        "gates: [{name: load, kind: prometheus, address: 'http://p:9', query: up, holds_when: '< 5'}]"
    )
    api.office.held = FakeDesk(fleet(), policy=parse_policy(shut))
    words = ("plan", "--selector", "*", "--emergency")
    assert "no machine can go" in await ctl.good("plan", "--selector", "*")
    said = await ctl.good(*words)
    assert "never, as things are: 12 machines" in said
    assert "gate load is unknown" in said
    assert "12 machines to go" in await ctl.good(*words, "--skip-gate", "load")
    assert "nearest: load" in await ctl.bad(2, *words, "--skip-gate", "laod")
    assert "--skip-gate" in await ctl.bad(2, "plan", "--skip-gate", "load")


async def test_past_errors_are_told(api: Api, ctl: Ctl) -> None:
    now = api.desk.state.now
    old = Cycle(id="old", selector="*", created=now - 9000, state=CycleState.DONE, changed=now - 3000,
                estimated=now - 3600, estimated_at=now - 9000)  # fmt: skip
    api.desk.state = replace(api.desk.state, cycles={"old": old})
    assert "off by 10% (median of 1): old 10m late" in await ctl.good("plan", "--selector", "*")


async def test_bad_options_end_with_two(ctl: Ctl) -> None:
    for words in (("--cycle", "k1", "--selector", "*"), ("--target", "kernel=6"), ("--selector", "role==")):
        assert (await ctl("plan", *words)).code == 2, words
    assert (await ctl("plan", "--cycle", "none")).code == 1


async def test_show_and_start_know_waves_and_estimates(ctl: Ctl) -> None:
    await ctl.good("cycle", "start", "k1", "--selector", "*", "--no-waves")
    assert "estimate" in (said := await ctl.good("cycle", "show", "k1"))
    assert "ends" in said
    assert (await ctl("cycle", "show", "k1", "--json")).json()["cycle"]["waves"] is False

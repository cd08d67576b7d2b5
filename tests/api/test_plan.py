from __future__ import annotations

import time
from typing import TYPE_CHECKING

from msgspec.structs import replace

from rebootd.core.policy import parse_policy
from tests.api.fake_desk import FakeDesk, fleet

if TYPE_CHECKING:
    from tests.api.server import Api


async def start(api: Api, cycle_id: str = "k1", **more: object) -> None:
    await api.good("POST", "/v1/cycles", {"id": cycle_id, "selector": "*", "reason": "test", **more})


async def test_the_plan_of_a_cycle_names_every_machine_once(api: Api) -> None:
    await start(api)
    plan = await api.good("GET", "/v1/plan?cycle=k1")
    assert sorted(p["machine"] for p in plan["planned"]) == sorted(m.name for m in fleet())
    assert (plan["cycle"], plan["selector"], plan["never"], plan["windows"]) == ("k1", "*", [], 0)
    assert plan["ends"] == plan["last"] == max(p["back"] for p in plan["planned"])
    assert plan["cycles"]["k1"]["to_go"] == 12
    assert {b["phase"] for b in plan["basis"]} == {"drain", "prepare", "reboot", "verify", "enable"}
    assert any("gates" in said for said in plan["assumes"])


async def test_what_if_changes_nothing(api: Api) -> None:
    applied, before = api.desk.applied, api.desk.state
    plan = await api.good("POST", "/v1/plan", {"selector": "rack=r1"})
    assert len(plan["planned"]) == 4
    assert (api.desk.applied, api.desk.state.cycles) == (applied, before.cycles)
    assert (await api.good("GET", "/v1/cycles"))["cycles"] == []


async def test_all_running_cycles_are_planned_together(api: Api) -> None:
    await start(api, "k1", selector="rack=r1")
    await start(api, "k2", selector="rack=r2")
    plan = await api.good("GET", "/v1/plan")
    assert {p["cycle"] for p in plan["planned"]} == {"k1", "k2"} == set(plan["cycles"])


async def test_who_can_never_go_and_why(api: Api) -> None:
    never = parse_policy("limits: [{name: pinned, selector: role=db, max: 0}]")
    api.desk.state = replace(api.desk.state, policy=never)
    plan = await api.good("POST", "/v1/plan", {"selector": "*"})
    assert [n["machine"] for n in plan["never"]] == ["r1m1", "r2m1", "r3m1"]
    assert plan["never"][0]["reasons"][0]["kind"] == "limit"
    assert "never" in plan["never"][0]["reasons"][0]["what"]
    assert plan["ends"] is None
    assert plan["last"] is not None


async def test_bad_questions_are_refused(api: Api) -> None:
    await start(api)
    assert (await api.bad("GET", "/v1/plan?cycle=none"))[0] == 404
    assert (await api.bad("GET", "/v1/plan?cicle=k1"))[1]["field"] == "cicle"
    assert (await api.bad("POST", "/v1/plan", {"selector": "role=="}))[1]["field"] == "selector"
    assert (await api.bad("POST", "/v1/plan", {"selector": "role=wep"}))[1]["field"] == "selector"
    assert (await api.bad("POST", "/v1/plan", {"selector": "*", "size": 3}))[1]["field"] == "size"
    await api.good("POST", "/v1/cycles/k1/cancel", {})
    assert (await api.bad("GET", "/v1/plan?cycle=k1"))[0] == 409


async def test_cycle_show_carries_the_estimate(api: Api) -> None:
    await start(api)
    shown = await api.good("GET", "/v1/cycles/k1")
    assert shown["estimate"]["to_go"] == 12
    assert shown["estimate"]["ends"] > time.time()
    await api.good("POST", "/v1/cycles/k1/pause", {})
    assert (await api.good("GET", "/v1/cycles/k1"))["estimate"] is None


async def test_a_cycle_can_go_without_waves(api: Api) -> None:
    api.office.held = FakeDesk(fleet(), policy=parse_policy("waves: [{size: 1, soak: 1h}, {size: 100%}]"))
    waved = await api.good("POST", "/v1/plan", {"selector": "*"})
    plain = await api.good("POST", "/v1/plan", {"selector": "*", "waves": False})
    assert {p["wave"] for p in waved["planned"]} == {1, 2}
    assert {p["wave"] for p in plain["planned"]} == {0}
    assert waved["last"] - plain["last"] > 3000
    await start(api, waves=False)
    assert (await api.good("GET", "/v1/cycles/k1"))["cycle"]["waves"] is False


async def test_every_reason_of_a_plan_says_since_when(api: Api) -> None:
    api.desk.state = replace(api.desk.state, conflicts={"r1m1": "two machine-ids report as r1m1"})
    plan = await api.good("POST", "/v1/plan", {"selector": "*"})
    reasons = [b for n in plan["never"] for b in n["reasons"]]
    assert {"conflict", "limit"} <= {b["kind"] for b in reasons}
    assert all(isinstance(b["since"], float) for b in reasons)

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

if TYPE_CHECKING:
    from tests.api.server import Api


async def test_an_emergency_says_who_and_why_and_what_it_skips(api: Api) -> None:
    asked = {"id": "k9", "selector": "*", "emergency": True, "by": "alice", "reason": "CVE-2026-1"}
    done = await api.good("POST", "/v1/cycles", asked)
    assert "EMERGENCY by alice: CVE-2026-1; it skips windows" in done["events"][0]["detail"]
    assert (await api.good("GET", "/v1/cycles/k9"))["cycle"]["emergency"] is True
    for change, field in (
        ({"reason": ""}, "reason"),
        ({"skip_gates": ["errors"]}, "skip_gates[0]"),
        ({"emergency": False, "skip_gates": ["errors"]}, "skip_gates"),
        ({"skip_gates": "errors"}, "skip_gates"),
    ):
        status, problem = await api.bad("POST", "/v1/cycles", {**asked, "id": "k10", **change})
        assert (status, problem["field"]) == (400, field)


async def test_a_flag_is_shown_alarms_and_is_cleared(api: Api) -> None:
    name = "r1m1"
    flagged = replace(api.desk.state.machines[name], flag="target not reached: x", required_before=("x",))
    api.desk.state = replace(api.desk.state, machines={**api.desk.state.machines, name: flagged})
    explained = await api.good("GET", f"/v1/machines/{name}/explain")
    assert (explained["flag"], explained["deadline"]) == ("target not reached: x", None)
    assert explained["says"].startswith("nothing wants it out")
    assert [(a["kind"], a["machine"]) for a in (await api.good("GET", "/v1/status"))["alarms"]] == [("flag", name)]
    await api.good("POST", f"/v1/quarantine/{name}/clear", {"by": "alice", "reason": "new boot loader"})
    assert (await api.good("GET", f"/v1/machines/{name}/explain"))["flag"] == ""
    assert (await api.good("GET", "/v1/status"))["alarms"] == []
    assert (await api.bad("POST", f"/v1/quarantine/{name}/clear", {"by": "alice"}))[0] == 409

"""What the policy's routes answer beside the fields: machines by name, and from where."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from msgspec.structs import replace

from rebootd.api import operator
from rebootd.core import operations_policy
from rebootd.core.model import Cycle, CycleState

if TYPE_CHECKING:
    import pytest

    from rebootd.core.model import Snapshot
    from rebootd.core.policy_told import PolicyDiff
    from tests.api.server import Api

TEXT = b"limits: [{name: dbs, selector: '*', max: 1}]\nwaves: [{size: 1}, {size: 100%}]\n"


async def test_a_diff_names_all_and_an_apply_some(api: Api) -> None:
    diff = await api.good("POST", "/v1/policy/diff", TEXT)
    told = [diff["limits"][0], diff["concerns"][1]]
    assert [(x["machines"], len(x["examples"]), len(x["names"])) for x in told] == [(12, 5, 12), (11, 5, 11)]
    applied = (await api.good("PUT", "/v1/policy", TEXT))["diff"]
    told = [applied["limits"][0], applied["concerns"][1]]
    assert [(x["machines"], len(x["examples"]), len(x["names"])) for x in told] == [(12, 5, 0), (11, 5, 0)]


async def test_a_large_fleet_s_diff_is_made_beside_the_loop(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    real, where = operations_policy.diff_policy, []

    def noting(snapshot: Snapshot, text: str) -> PolicyDiff:
        where.append(threading.current_thread() is threading.main_thread())
        return real(snapshot, text)

    monkeypatch.setattr(operations_policy, "diff_policy", noting)
    first = await api.good("POST", "/v1/policy/diff", TEXT)
    monkeypatch.setattr(operator, "SMALL", 11)
    assert await api.good("POST", "/v1/policy/diff", TEXT) == first
    assert (await api.bad("POST", "/v1/policy/diff", b"limits: {}"))[1]["field"] == "limits"
    assert where == [True, False, False]


async def test_a_policy_with_every_section_is_compared_and_applied(api: Api) -> None:
    rules = b"reboot: {methods: [{machines: role=web, method: kexec}, {machines: role=web, method: reboot}]}"
    diff = await api.good("POST", "/v1/policy/diff", rules)
    assert [f["field"] for f in diff["fields"]][:2] == ["reboot.methods[0].machines", "reboot.methods[0].method"]
    assert (await api.good("PUT", "/v1/policy", rules))["done"] == "applied the policy"


async def test_a_cycle_is_shown_with_the_errors_of_past_estimates(api: Api) -> None:
    now = api.desk.state.now
    old = Cycle(id="old", selector="*", created=now - 9000, state=CycleState.DONE, changed=now - 3000,
                estimated=now - 3600, estimated_at=now - 9000)  # fmt: skip
    api.desk.state = replace(api.desk.state, cycles={"old": old})
    await api.good("POST", "/v1/cycles", {"id": "k1", "selector": "*"})
    assert [(e["cycle"], e["late"]) for e in (await api.good("GET", "/v1/cycles/k1"))["errors"]] == [("old", 600.0)]
    assert (await api.good("GET", "/v1/cycles/old"))["errors"] == []


async def test_an_explanation_says_which_cycles_want_the_machine(api: Api) -> None:
    assert (await api.good("GET", "/v1/machines/r1m1/explain"))["wanted"] == []
    for name, selector in (("k1", "*"), ("k2", "role=web"), ("k3", "role=db")):
        await api.good("POST", "/v1/cycles", {"id": name, "selector": selector})
    assert (await api.good("GET", "/v1/machines/r1m2/explain"))["wanted"] == ["k1", "k2"]
    await api.good("POST", "/v1/cycles/k1/cancel")
    assert (await api.good("GET", "/v1/machines/r1m1/explain"))["wanted"] == ["k3"]

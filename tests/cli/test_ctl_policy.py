"""`rebootctl policy diff` as people read it, and what else tells of estimates and wishes."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from msgspec.structs import replace
from rich.console import Console

from rebootd.cli.ctl_plan import off
from rebootd.cli.ctl_policy import SHOWN, _diff
from rebootd.core.forecast_told import PastError
from rebootd.core.model import Cycle, CycleState
from rebootd.core.policy_told import Concern, FieldChange, PolicyDiff

if TYPE_CHECKING:
    from tests.api.server import Api
    from tests.cli.ctl_runner import Ctl


def printed(diff: PolicyDiff) -> str:
    out = Console(width=200, highlight=False)
    with out.capture() as got:
        for part in _diff(diff):
            out.print(part)
    return got.get()


async def test_a_diff_says_for_whom_and_what_changes_at_once(api: Api, ctl: Ctl) -> None:
    await ctl.good("cycle", "start", "k1", "--selector", "*")
    file = ctl.folder / "policy.yaml"
    file.write_text(
        "windows: {required: true}\n"
        "limits: [{name: dbs, selector: role=db, max: 0}, {name: x, selector: role=dbb, max: 1}]\n"
    )
    said = await ctl.good("policy", "diff", str(file))
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert lines[0] == "warning: limits[0].max: 0 means never: none of these 3 machines goes out of service by rebootd"
    assert "no role is 'dbb'; nearest: db" in lines[1]
    assert "limit dbs: at most 0 of the 3 with role=db, 0 unavailable now 3 r1m1, r2m1, r3m1" in lines
    assert any(line.startswith("windows: closed, and none is planned") for line in lines)
    assert any(line.startswith("at once: kept in by window: no maintenance window is open") for line in lines)
    assert lines[-1] == "the other fields concern every machine"
    names = (await ctl("policy", "diff", str(file), "--json")).json()["concerns"][0]["names"]
    assert len(names) == 12


def test_what_concerns_nobody_says_so_and_what_is_long_is_cut() -> None:
    field = (FieldChange("racks.order", "name", "smallest-first"),)
    assert printed(PolicyDiff(fields=field)).rstrip().endswith("no machine is concerned, as the fleet is")
    assert printed(PolicyDiff()) == "no difference\n"
    many = tuple(Concern(f"wave {n}", 10_000, ("m1", "m2", "m3", "m4", "m5")) for n in range(SHOWN + 7))
    lines = printed(PolicyDiff(fields=field, concerns=many)).splitlines()
    assert len(lines) < SHOWN + 10
    assert lines[-1] == "... and 7 more: rebootctl policy diff --json"
    assert "m1, m2, m3, m4, m5 ..." in lines[5]


def test_errors_beyond_all_measure_are_no_per_cents() -> None:
    assert (
        off([PastError("k1", 60.0, 0.1), PastError("k2", -6.0, -0.3), PastError("k3", 1.0, 0.2)]) == "20% (median of 3)"
    )
    assert off([PastError("k1", -3700.0, -161.5)]) == "162 times the time (median of 1)"


async def test_show_and_explain_know_past_errors_and_wishes(api: Api, ctl: Ctl) -> None:
    now = api.desk.state.now
    old = Cycle(id="old", selector="*", created=now - 9000, state=CycleState.DONE, changed=now - 3000,
                estimated=now - 3600, estimated_at=now - 9000)  # fmt: skip
    api.desk.state = replace(api.desk.state, cycles={"old": old})
    await ctl.good("cycle", "start", "k1", "--selector", "role=web")
    assert "; past ones were off by 10% (median of 1)" in await ctl.good("cycle", "show", "k1")
    assert "wanted by: cycle k1" in await ctl.good("explain", "r1m2")
    assert "wanted by" not in await ctl.good("explain", "r1m1")


def test_who_only_shows_does_not_load_the_rules() -> None:
    """They cost more than everything else that a command of rebootctl does."""
    loaded = "import sys, rebootd.api.shapes, rebootd.cli.ctl, rebootd.core.forecast_told; print(*sys.modules)"
    names = subprocess.run([sys.executable, "-c", loaded], capture_output=True, check=True, timeout=60).stdout.decode()
    assert "rebootd.core.policy_told" in names.split()
    assert {"rebootd.core.decide", "rebootd.core.policy", "yaml"} & set(names.split()) == set()

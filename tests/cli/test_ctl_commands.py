from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from rebootd.core.model import Aside, RackLock, State
from tests.api.fake_desk import FakeDesk, fleet, machine

if TYPE_CHECKING:
    from tests.api.server import Api
    from tests.cli.ctl_runner import Ctl

EMPTY = {
    ("status",): "start an agent",
    ("machines",): "start an agent",
    ("cycle", "list"): "cycle start",
    ("held",): "rebootctl hold",
    ("window", "list"): "window open",
    ("rack", "list"): "node meta",
    ("quarantine", "list"): "no machine is quarantined",
    ("policy", "show"): "policy apply",
    ("events",): "no events",
}


@pytest.mark.parametrize("words", EMPTY, ids="-".join)
async def test_what_is_empty_says_what_to_do(api: Api, ctl: Ctl, words: tuple[str, ...]) -> None:
    api.office.held = FakeDesk([])
    assert EMPTY[words] in await ctl.good(*words)


async def test_status_fits_one_screen_and_names_what_is_wrong(api: Api, ctl: Ctl) -> None:
    api.office.held = FakeDesk(
        [*fleet(), machine("q1", "r2", State.QUARANTINED, cause="no \x1b[31mboot")],
        asides={"x1": Aside("x1", "r3", "not JSON", time.time())},
        racks={"r2": RackLock("other", "s-1", "switch-host")},
    )
    await ctl.good("cycle", "start", "k1", "--selector", "*")
    await ctl.good("halt", "--reason", "[red]smoke")
    out = await ctl.good("status")
    for word in ("host-1", "epoch 7", "HALTED", "[red]smoke", "12 in-service", "switch-host", "k1", "not JSON", "0/13"):
        assert word in out
    assert "no ?[31mboot" in out
    assert len(out.splitlines()) < 25


async def test_machines_machine_and_explain(api: Api, ctl: Ctl) -> None:
    assert len((await ctl.good("machines", "--rack", "r2", "--selector", "role=web")).splitlines()) == 4
    assert (await ctl("machines", "--state", "held", "--json")).json()["machines"] == []
    assert "see all" in await ctl.good("machines", "--state", "held")
    await ctl.good("cycle", "start", "k1", "--selector", "role=web")
    await api.desk.tick()
    assert "role=web" in await ctl.good("machine", "r1m2")
    out = await ctl.good("explain", "r2m2")
    assert "racks open" in out
    assert "when its last machine is back" in out
    assert (await ctl("explain", "--json", "r2m2")).json()["blockers"][0]["kind"] == "racks"
    assert "r1m2" in await ctl.bad(1, "explain", "r1m22")
    assert "state: 'odd'" in await ctl.bad(2, "machines", "--state", "odd")


async def test_cycles(api: Api, ctl: Ctl) -> None:
    await ctl.good("--by", "ann", "cycle", "start", "k1", "--selector", "role=web", "--failure-budget", "50%")
    cycle = api.desk.state.cycles["k1"]
    assert (cycle.failure_budget, cycle.by) == (4, "ann")
    await api.desk.tick()
    out = await ctl.good("cycle", "show", "k1")
    assert "0/9" in out
    assert "r1m2" in out
    assert "k1" in await ctl.good("cycle", "list")
    for verb in ("pause", "resume", "cancel"):
        await ctl.good("cycle", verb, "k1", "--reason", "why not")
    assert "must be" in await ctl.bad(1, "cycle", "pause", "k1")
    assert "in use" in await ctl.bad(1, "cycle", "start", "k1", "--selector", "*")
    assert "nearest: web" in await ctl.bad(2, "cycle", "start", "k2", "--selector", "role=wbe")
    assert "id: '..'" in await ctl.bad(2, "cycle", "start", "..", "--selector", "*")
    assert "failure_budget" in await ctl.bad(2, "cycle", "start", "k2", "--selector", "*", "--failure-budget", "many")
    assert "no cycle" in await ctl.bad(1, "cycle", "show", "k9/../x")
    await ctl.good("cycle", "start", "k2", "--selector", "role=none", "--allow-empty", "--target", "kernel=9")


async def test_holds_and_windows(api: Api, ctl: Ctl) -> None:
    await ctl.good("hold", "r1m1", "--reason", "disk [swap]")
    await ctl.good("hold", "--rack", "r2")
    assert "disk [swap]" in await ctl.good("held")
    assert api.desk.state.machine_holds["r1m1"].by.count("@") == 1
    await ctl.good("release", "r1m1")
    await ctl.good("release", "--rack", "r2")
    assert "not held" in await ctl.bad(1, "release", "r1m1")
    for words in (["hold"], ["hold", "r1m1", "--rack", "r2"], ["release"]):
        assert "either" in await ctl.bad(2, *words)
    await ctl.good("window", "open", "2h", "--id", "w1", "--reason", "kernel")
    await ctl.good("window", "open", "3600", "--start", str(time.time() + 60))
    out = await ctl.good("window", "list")
    assert "w1" in out
    assert "open" in out
    assert "duration: 'soon'" in await ctl.bad(2, "window", "open", "soon")
    assert "timezone" in await ctl.bad(2, "window", "open", "1h", "--start", "2026-01-01T00:00:00")
    await ctl.good("window", "close", "w1")
    assert "no window" in await ctl.bad(1, "window", "close", "w1")


async def test_halt_racks_quarantine_and_forget(api: Api, ctl: Ctl) -> None:
    await ctl.good("halt")
    await ctl.good("unhalt")
    assert "nothing is halted" in await ctl.bad(1, "unhalt")
    away = machine("q1", "r1", State.QUARANTINED, cause="deadline", evidence="line one\nline two")
    api.desk.state = replace(
        api.desk.state, machines={**api.desk.state.machines, "q1": away}, racks={"r1": RackLock("ours", "s")}
    )
    assert "deadline" in await ctl.good("quarantine", "list")
    assert "line one" in await ctl.good("machine", "q1")
    assert "ours" in await ctl.good("rack", "list")
    await ctl.good("rack", "unlock", "r1", "--reason", "left over")
    assert "not locked" in await ctl.bad(1, "rack", "unlock", "r1")
    await ctl.good("quarantine", "clear", "q1")
    assert "verifying" in await ctl.bad(1, "quarantine", "clear", "q1")
    assert "still reports" in await ctl.bad(1, "forget", "r1m1")
    api.desk.state = replace(api.desk.state, observed={})
    await ctl.good("forget", "r1m1")
    assert "r1m1" not in api.desk.state.machines


async def test_policy(api: Api, ctl: Ctl) -> None:
    file = ctl.folder / "policy.yaml"
    file.write_text("racks: {open: 2}\nlimits:\n- {name: dbs, selector: role=db, max: 1}\n")
    out = await ctl.good("policy", "diff", str(file))
    assert "racks.open" in out
    assert "limit dbs: at most 1 of the 3 with role=db, 0 unavailable now" in out
    await ctl.good("policy", "apply", str(file), "--reason", "faster")
    assert api.desk.state.policy.open_racks == 2
    assert await ctl.good("policy", "show") == file.read_text()
    shown = await ctl.good("policy", "show", "--effective")
    assert "settle: 1m" in shown
    (ctl.folder / "same.yaml").write_text(shown)
    assert "no difference" in await ctl.good("policy", "diff", "same.yaml")
    file.write_text("racks: {open: many}\n")
    assert "racks.open: 'many'" in await ctl.bad(2, "policy", "apply", str(file))
    assert "No such file" in await ctl.bad(2, "policy", "apply", "nowhere.yaml")


LOOKING = [
    "status", "machines", "machine r1m1", "explain r1m1", "cycle list", "cycle show k1", "held", "window list",
    "rack list", "quarantine list", "policy show", "gate list",
]  # fmt: skip
CHANGING = [
    "cycle start k2 --selector *", "cycle pause k1", "hold r1m1", "release r1m1", "window open 2h --id w",
    "window close w", "halt", "unhalt",
]  # fmt: skip


async def test_json_everywhere(ctl: Ctl) -> None:
    await ctl.good("cycle", "start", "k1", "--selector", "role=web")
    for words in LOOKING:
        ran = await ctl(*words.split(), "--json")
        assert isinstance(ran.json(), dict), words
        assert (ran.code, ran.err) == (0, "")
    assert (await ctl("--json", "status")).json()["epoch"] == 7
    for words in CHANGING:
        assert (await ctl(*words.split(), "--json")).json()["done"], words
    refused = await ctl("unhalt", "--json")
    assert (refused.code, refused.out) == (1, "")
    assert "halted" in refused._replace(out=refused.err).json()["error"]
    events = (await ctl("events", "--json", "--limit", "3")).out.splitlines()
    assert len(events) == 3
    assert all(line.startswith("{") for line in events)


async def test_an_emergency_cycle(api: Api, ctl: Ctl) -> None:
    words = ("cycle", "start", "k9", "--selector", "*", "--emergency")
    assert "reason" in await ctl.bad(2, *words)
    assert "skip_gates[0]" in await ctl.bad(2, *words, "--reason", "CVE", "--skip-gate", "errors")
    await ctl.good(*words, "--reason", "CVE-2026-1")
    assert "it skips windows" in await ctl.good("cycle", "show", "k9")
    assert "EMERGENCY" in await ctl.good("events")


async def test_explain_names_what_is_not_a_blocker_too(api: Api, ctl: Ctl) -> None:
    assert "nothing wants it out" in await ctl.good("explain", "r1m1")
    api.office.held = FakeDesk([machine("q1", "r2", State.VERIFYING, flag="target not reached: cycle k1 wants x")])
    out = await ctl.good("explain", "q1")
    assert "flagged: target not reached" in out
    assert "given up:" in out

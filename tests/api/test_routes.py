from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from rebootd.core.model import Aside, RackLock, State
from rebootd.core.wire import Report
from tests.api.fake_desk import FakeDesk, fleet, machine, report_of

if TYPE_CHECKING:
    from tests.api.server import Api

SHOWN = [
    "status", "machines", "machines/r1m1", "machines/r1m1/explain", "cycles", "holds", "windows", "racks", "quarantine",
    "policy",
]  # fmt: skip


@pytest.mark.parametrize("path", SHOWN)
async def test_every_view_answers_and_takes_no_unknown_parameter(api: Api, path: str) -> None:
    assert isinstance(await api.good("GET", f"/v1/{path}"), dict)
    status, problem = await api.bad("GET", f"/v1/{path}?colour=red")
    assert (status, problem["field"], problem["value"]) == (400, "colour", "red")


async def test_views_work_on_an_empty_fleet(api: Api) -> None:
    api.office.held = FakeDesk([])
    for path in ("status", "machines", "cycles", "holds", "windows", "racks", "quarantine", "policy"):
        await api.good("GET", f"/v1/{path}")
    assert (await api.bad("GET", "/v1/machines/r1m1"))[0] == 404


async def test_status_tells_of_everything_that_needs_a_person(api: Api) -> None:
    api.office.held = FakeDesk(
        [*fleet(), machine("q1", "r2", State.QUARANTINED, cause="deadline")],
        asides={"x1": Aside("x1", "r3", "not JSON", time.time())},
        conflicts={"r1m1": "two machine-ids"},
        faults=("Consul does not answer",),
        racks={"r2": RackLock("other", "s-1", "switch-host")},
    )
    await api.good("PUT", "/v1/halt", {"reason": "smoke"})
    status = await api.good("GET", "/v1/status")
    assert [a["kind"] for a in status["alarms"]] == ["store", "conflict", "aside", "quarantine"]
    assert status["halt"]["reason"] == "smoke"
    assert status["machines"] == {"in-service": 12, "quarantined": 1, "unreadable": 1}
    assert [(r["rack"], r["lock"], r["holder"]) for r in status["racks"]] == [("r2", "other", "s-1 on switch-host")]
    assert status["known"] == 14


def names(answer: Any) -> list[str]:
    return [m["name"] for m in answer["machines"]]


async def test_machines_are_filtered(api: Api) -> None:
    api.desk.state = replace(api.desk.state, asides={"x1": Aside("x1", "r3", "not JSON", time.time())})
    everything = await api.good("GET", "/v1/machines")
    assert len(names(everything)) == everything["known"] == 13
    assert names(await api.good("GET", "/v1/machines?rack=r3")) == ["r3m1", "r3m2", "r3m3", "r3m4", "x1"]
    assert names(await api.good("GET", "/v1/machines?state=unreadable")) == ["x1"]
    assert names(await api.good("GET", "/v1/machines?selector=role%3Ddb,rack%3Dr2")) == ["r2m1"]
    assert names(await api.good("GET", "/v1/machines?state=held")) == []
    for query, field in (("state=gone", "state"), ("selector=%3D%3D", "selector"), ("rack=r1&rack=r2", "rack")):
        status, problem = await api.bad("GET", f"/v1/machines?{query}")
        assert (status, problem["field"]) == (400, field)
        assert problem["accepted"]
    status, problem = await api.bad("GET", "/v1/machines?rack=r33")
    assert status == 404
    assert "r3" in problem["error"]


async def test_one_cycle_from_start_to_done(api: Api) -> None:
    asked = {"id": "k1", "selector": "role=web", "failure_budget": "50%", "by": "ann", "reason": "CVE"}
    done = await api.good("POST", "/v1/cycles", asked)
    assert (done["id"], done["events"][0]["kind"]) == ("k1", "operator")
    assert "ann: CVE" in done["events"][0]["detail"]
    await api.desk.tick()
    shown = await api.good("GET", "/v1/cycles/k1")
    assert shown["cycle"]["failure_budget"] == 4
    assert shown["counts"] == {"selected": 9, "rebooted": 0, "failed": 0, "skipped": 0, "out": 1, "waiting": 8}
    assert sum(r["selected"] for r in shown["racks"].values()) == 9
    assert {b["blocker"]["kind"] for b in shown["blockers"]} >= {"racks", "limit"}
    (out,) = shown["machines"]
    explained = await api.good("GET", f"/v1/machines/{out}/explain")
    assert (explained["state"], explained["cycle"]) == ("draining", "k1")
    assert explained["blockers"][0]["clears"]
    for verb, state in (("pause", "paused"), ("resume", "running"), ("cancel", "cancelled")):
        await api.good("POST", f"/v1/cycles/k1/{verb}", {"reason": "r"})
        assert (await api.good("GET", "/v1/cycles/k1"))["cycle"]["state"] == state
    for verb in ("pause", "resume", "cancel"):
        assert (await api.bad("POST", f"/v1/cycles/k1/{verb}"))[0] == 409
    assert [v["cycle"]["id"] for v in (await api.good("GET", "/v1/cycles"))["cycles"]] == ["k1"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"id": ""}, "id"),
        ({"id": ".."}, "id"),
        ({"id": "a/b"}, "id"),
        ({"id": "x" * 65}, "id"),
        ({"id": 7}, "id"),
        ({"selector": ""}, "selector"),
        ({"selector": "role==="}, "selector"),
        ({"selector": "role=wbe"}, "selector"),
        ({"target": "kernel in"}, "target"),
        ({"failure_budget": "150%"}, "failure_budget"),
        ({"failure_budget": -1}, "failure_budget"),
        ({"failure_budget": 1.5}, "failure_budget"),
        ({"reason": "a\nb"}, "reason"),
        ({"reason": "x" * 501}, "reason"),
        ({"by": "\x1b[31m"}, "by"),
        ({"colour": "red"}, "colour"),
        ({"selector": None}, "selector"),
    ],
)
async def test_a_bad_cycle_is_refused_by_field(api: Api, change: dict[str, Any], field: str) -> None:
    status, problem = await api.bad("POST", "/v1/cycles", {"id": "k1", "selector": "role=web", **change})
    assert (status, problem["field"]) == (400, field)
    assert problem["accepted"]
    assert api.desk.state.cycles == {}


async def test_cycle_ids_are_used_once_and_empty_ones_named(api: Api) -> None:
    await api.good("POST", "/v1/cycles", {"id": "k1", "selector": "role=web"})
    assert (await api.bad("POST", "/v1/cycles", {"id": "k1", "selector": "*"}))[0] == 409
    api.office.held = FakeDesk([machine("m", "r", outcomes={"old": "rebooted"})])
    assert (await api.bad("POST", "/v1/cycles", {"id": "old", "selector": "*"}))[0] == 409
    status, problem = await api.bad("POST", "/v1/cycles", {"id": "k2", "selector": "rol=web"})
    assert status == 400
    assert "role" in problem["accepted"]
    await api.good("POST", "/v1/cycles", {"id": "k2", "selector": "rol=web", "allow_empty": True})
    status, problem = await api.bad("GET", "/v1/cycles/k22")
    assert status == 404
    assert "k2" in problem["error"]
    assert (await api.bad("POST", "/v1/cycles/nope/pause"))[0] == 404
    assert (await api.bad("POST", "/v1/cycles/k2/explode"))[0] == 404


async def test_holds(api: Api) -> None:
    await api.good("PUT", "/v1/holds/machine/r1m1", {"reason": "disk", "by": "ann"})
    since = api.desk.state.machine_holds["r1m1"].since
    await api.good("PUT", "/v1/holds/machine/r1m1", {"reason": "board"})
    assert api.desk.state.machine_holds["r1m1"].since == since
    await api.good("PUT", "/v1/holds/rack/r2")
    assert [(h["kind"], h["name"]) for h in (await api.good("GET", "/v1/holds"))["holds"]] == [
        ("rack", "r2"),
        ("machine", "r1m1"),
    ]
    assert (await api.good("GET", "/v1/machines/r2m1"))["hold"]["name"] == "r2"
    status, problem = await api.bad("DELETE", "/v1/holds/machine/r2m1")
    assert status == 404
    assert "its rack r2 is" in problem["error"]
    await api.good("DELETE", "/v1/holds/machine/r1m1", {"reason": "done"})
    await api.good("DELETE", "/v1/holds/rack/r2")
    assert not api.desk.state.machine_holds
    assert not api.desk.state.rack_holds
    for method, what in (
        ("PUT", "machine/r9m9"),
        ("PUT", "rack/r9"),
        ("DELETE", "machine/r1m1"),
        ("DELETE", "rack/r1"),
    ):
        assert (await api.bad(method, f"/v1/holds/{what}"))[0] == 404
    assert (await api.bad("PUT", "/v1/holds/row/r1"))[0] == 404


async def test_windows(api: Api) -> None:
    first = await api.good("POST", "/v1/windows", {"duration": "2h", "reason": "kernel"})
    assert "changes nothing" in first["done"]
    await api.good("POST", "/v1/windows", {"duration": 60.5, "id": "sunday", "start": time.time() + 3600})
    await api.good("POST", "/v1/windows", {"duration": "90m", "id": "iso", "start": iso(time.time() + 60)})
    policy = b"windows:\n  required: true\n  calendar:\n  - {name: nightly, start: 0 2 * * *, duration: 1h}\n"
    await api.good("PUT", "/v1/policy", policy)
    shown = await api.good("GET", "/v1/windows")
    assert shown["allowed"]
    assert shown["required"]
    rows = {w["id"]: w for w in shown["windows"]}
    assert rows.keys() == {first["id"], "sunday", "iso", "nightly"}
    assert rows[first["id"]]["open"]
    assert not rows["sunday"]["open"]
    assert rows["nightly"]["start"] > 0
    assert (await api.bad("POST", "/v1/windows", {"duration": "2h", "id": "sunday"}))[0] == 409
    assert (await api.bad("DELETE", "/v1/windows/nightly"))[0] == 409
    assert (await api.bad("DELETE", "/v1/windows/sundae"))[0] == 404
    await api.good("DELETE", f"/v1/windows/{first['id']}", {"reason": "early"})
    assert {w.id for w in api.desk.state.windows} == {"sunday", "iso"}


def iso(when: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(when, UTC).isoformat()


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({}, "duration"),
        ({"duration": "0s"}, "duration"),
        ({"duration": "soon"}, "duration"),
        ({"duration": -5}, "duration"),
        ({"duration": "900d"}, "duration"),
        ({"duration": "1h", "id": "a b"}, "id"),
        ({"duration": "1h", "start": "2026-03-01T22:00:00"}, "start"),
        ({"duration": "1h", "start": "tomorrow"}, "start"),
        ({"duration": "1h", "start": 12}, "start"),
        ({"duration": "1h", "start": "9999-12-31T23:59:59-14:00"}, "start"),
        ({"duration": "1h", "start": {}}, "start"),
    ],
)
async def test_a_bad_window_is_refused_by_field(api: Api, asked: dict[str, Any], field: str) -> None:
    status, problem = await api.bad("POST", "/v1/windows", asked)
    assert (status, problem["field"]) == (400, field)
    assert api.desk.state.windows == ()


async def test_a_window_in_the_past_is_refused(api: Api) -> None:
    status, _ = await api.bad("POST", "/v1/windows", {"duration": "1m", "start": time.time() - 3600})
    assert status == 400


async def test_halt_and_unhalt(api: Api) -> None:
    assert (await api.bad("DELETE", "/v1/halt"))[0] == 409
    await api.good("PUT", "/v1/halt", {"by": "ann"})
    first = (await api.good("GET", "/v1/status"))["halt"]
    await api.good("PUT", "/v1/halt", {"reason": "fire"})
    assert (await api.good("GET", "/v1/status"))["halt"] == {"reason": "fire", "since": first["since"]}
    done = await api.good("DELETE", "/v1/halt", {"reason": "out"})
    assert api.desk.state.halt is None
    assert "fire" in done["events"][0]["detail"]


async def test_racks_are_unlocked_only_when_they_are_ours_and_closed(api: Api) -> None:
    locks = {"r1": RackLock("ours", "s"), "r2": RackLock("other", "s2", "node-9"), "r3": RackLock("ours", "s")}
    api.desk.state = replace(api.desk.state, racks=locks)
    api.desk.state = replace(
        api.desk.state, machines={**api.desk.state.machines, "r1m1": machine("r1m1", "r1", State.VERIFYING)}
    )
    status, problem = await api.bad("POST", "/v1/racks/r1/unlock")
    assert status == 409
    assert "r1m1" in problem["error"]
    status, problem = await api.bad("POST", "/v1/racks/r2/unlock", {"force": True})
    assert status == 409
    assert "node-9" in problem["error"]
    await api.good("POST", "/v1/racks/r3/unlock", {"reason": "left over"})
    await api.good("POST", "/v1/racks/r1/unlock", {"force": True})
    assert {r: x.holder for r, x in api.desk.state.racks.items()} == {"r1": "free", "r2": "other", "r3": "free"}
    assert (await api.bad("POST", "/v1/racks/r3/unlock"))[0] == 409
    assert (await api.bad("POST", "/v1/racks/r77/unlock"))[0] == 404


async def test_quarantine(api: Api) -> None:
    away = machine("r1m1", "r1", State.QUARANTINED, cause="deadline", evidence="hook\nfailed")
    api.desk.state = replace(api.desk.state, machines={**api.desk.state.machines, "r1m1": away})
    (row,) = (await api.good("GET", "/v1/quarantine"))["machines"]
    assert (row["name"], row["cause"], row["evidence"]) == ("r1m1", "deadline", "hook\nfailed")
    assert (await api.bad("POST", "/v1/quarantine/r1m2/clear"))[0] == 409
    assert (await api.bad("POST", "/v1/quarantine/nope/clear"))[0] == 404
    done = await api.good("POST", "/v1/quarantine/r1m1/clear", {"by": "ann", "reason": "new disk"})
    assert [(e["kind"], e["to"]) for e in done["events"]] == [("operator", ""), ("transition", "verifying")]
    after = api.desk.state.machines["r1m1"]
    assert (after.state, after.version) == (State.VERIFYING, away.version + 1)
    assert after.cause


async def test_only_machines_that_are_gone_are_forgotten(api: Api) -> None:
    silent = {k: replace(o, at=o.at - 1000) for k, o in api.desk.state.observed.items()}
    api.desk.state = replace(
        api.desk.state,
        observed={**silent, "r1m1": api.desk.state.observed["r1m1"]},
        machines={
            **api.desk.state.machines,
            "r1m2": machine("r1m2", "r1", State.DRAINING),
            "r1m3": machine("r1m3", "r1", State.QUARANTINED),
        },
        asides={"x1": Aside("x1", "r3", "not JSON", time.time())},
    )
    assert (await api.bad("POST", "/v1/machines/r1m1/forget", {"force": True}))[0] == 409
    assert (await api.bad("POST", "/v1/machines/r1m2/forget", {"force": True}))[0] == 409
    assert (await api.bad("POST", "/v1/machines/r1m3/forget"))[0] == 409
    assert (await api.bad("POST", "/v1/machines/x1/forget"))[0] == 409
    assert (await api.bad("POST", "/v1/machines/nope/forget"))[0] == 404
    await api.good("PUT", "/v1/holds/machine/r1m4")
    for name, force in (("r1m3", True), ("r1m4", False), ("x1", True)):
        await api.good("POST", f"/v1/machines/{name}/forget", {"force": force, "reason": "scrapped"})
    assert api.desk.state.machines.keys() & {"r1m3", "r1m4"} == set()
    assert not api.desk.state.asides
    assert not api.desk.state.machine_holds


async def test_a_new_leader_forgets_nobody_before_they_could_report(api: Api) -> None:
    api.desk.state = replace(api.desk.state, observed={}, leading_since=time.time() - 5)
    assert (await api.bad("POST", "/v1/machines/r1m1/forget"))[0] == 409


async def test_policy(api: Api) -> None:
    text = b"racks:\n  open: 2\nlimits:\n- {name: dbs, selector: role=db, max: 1}\n"
    diff = await api.good("POST", "/v1/policy/diff", text)
    assert "racks.open" in [f["field"] for f in diff["fields"]]
    assert (diff["limits"][0]["limit"], diff["limits"][0]["machines"], diff["fleet_wide"]) == ("dbs", 3, True)
    assert api.desk.state.policy.open_racks == 1
    applied = await api.good("PUT", "/v1/policy?by=ann&reason=faster", text)
    assert "ann: faster" in applied["events"][0]["detail"]
    assert api.desk.state.policy.open_racks == 2
    shown = await api.good("GET", "/v1/policy")
    assert (shown["text"], shown["index"]) == (text.decode(), 1)
    again = await api.good("PUT", "/v1/policy", text)
    assert (again["events"], api.desk.index) == ([], 1)
    for bad, field in (
        (b"rakcs: {}", "rakcs"),
        (b"racks: {open: many}", "racks.open"),
        (b"\xff\xfe", "body"),
        (b"a: [", "document"),
    ):
        for method, path in (("POST", "/v1/policy/diff"), ("PUT", "/v1/policy")):
            status, problem = await api.bad(method, path, bad)
            assert status == 400
            assert problem["field"] == field or field == "document"
    assert (await api.bad("PUT", "/v1/policy?reason=a%0Ab", b"racks: {open: 3}"))[0] == 400
    assert (await api.bad("PUT", "/v1/policy", b"#" * (256 * 1024 + 1)))[0] == 413
    assert api.desk.index == 1


async def test_a_report_is_answered_and_waits(api: Api) -> None:
    known = report_of(api.desk.state.machines["r1m1"])
    answer = await api.good("POST", "/v1/machines/r1m1/report", known)
    assert (answer["state"], answer["directive"]) == ("in-service", None)
    begun = time.monotonic()
    await api.good("POST", "/v1/machines/r1m1/report", replace(known, index=answer["index"], wait=0.3))
    assert time.monotonic() - begun >= 0.29
    new = Report(name="n1", machine_id="i", boot_id="b", rack="r1")
    answer = await api.good("POST", "/v1/machines/n1/report", new)
    assert answer["state"] in {"verifying", "enabling"}
    refused = {"name": "n1", "machine_id": "i", "boot_id": "b", "nonce": "x"}
    answer = await api.good("POST", "/v1/machines/n1/permit", refused)
    assert (answer["granted"], answer["nonce"]) == (False, "x")
    assert answer["reason"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": "r1m2"}, "name"),
        ({"boot_id": None}, "boot_id"),
        ({"index": -1}, "index"),
        ({"index": 2**60}, "index"),
        ({"index": "1"}, "index"),
        ({"wait": -1}, "wait"),
        ({"wait": 1e9}, "wait"),
        ({"labels": {"a": 1}}, "labels[...]"),
        ({"reboot_required": "perhaps"}, "reboot_required"),
        ({"result": {"id": "x"}}, "result.kind"),
        ({"reboot_reasons": "one"}, "reboot_reasons"),
    ],
)
async def test_a_bad_report_names_its_field(api: Api, change: dict[str, Any], field: str) -> None:
    body = {"name": "r1m1", "machine_id": "i", "boot_id": "b", **change}
    status, problem = await api.bad("POST", "/v1/machines/r1m1/report", body)
    assert (status, problem["field"]) == (400, field)
    assert problem["accepted"]


async def test_names_that_climb_or_do_not_match_are_refused(api: Api) -> None:
    for path, name in (("a%2Fb", "a/b"), ("a%20b", "a b"), ("x" * 129, "x" * 129), ("%ff", "ÿ"), ("r1m1", "r1m2")):
        for what, more in (("report", {}), ("permit", {"nonce": "n"})):
            body = {"name": name, "machine_id": "i", "boot_id": "b", **more}
            status, problem = await api.bad("POST", f"/v1/machines/{path}/{what}", body)
            assert (status, problem["field"]) == (400, "name")

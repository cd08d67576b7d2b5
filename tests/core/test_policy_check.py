"""What `policy diff` says of a policy on the fleet as it is: whom it concerns, and what cannot be meant so."""

from __future__ import annotations

from functools import partial

import pytest

from rebootd.core.errors import InvalidInput
from rebootd.core.operations_inputs import Because
from rebootd.core.operations_policy import apply_policy, diff_policy
from rebootd.core.policy import parse_policy
from tests.core.worlds import machine, snapshot

FLEET = snapshot(
    *(machine(f"d{n}", "r1", labels={"role": "database"}) for n in range(4)),
    *(machine(f"w{n}", "r2", labels={"role": "web"}) for n in range(7)),
)
GATE = "{name: load, kind: prometheus, address: 'http://p:9090', query: up, holds_when: < 5, covers: %s}"

UNMATCHED = {
    "limits": ("limits: [{name: dbs, selector: role=databse, max: 1}]", "limits[0].selector"),
    "gates": (f"gates: [{GATE % 'role=databse'}]", "gates[0].covers"),
    "quorums": ("quorums: [{name: dbs, selector: role=databse}]", "quorums[0].selector"),
    "standing": ("standing: {enabled: true, selector: role=databse}", "standing.selector"),
    "drains": ("drains: {nomad: {machines: role=databse}}", "drains.nomad.machines"),
    "methods": ("reboot: {methods: [{machines: role=databse, method: kexec}]}", "reboot.methods[0].machines"),
    "waves": ("waves: [{name: a, machines: role=databse}, {name: b, size: '100%'}]", "waves[0].machines"),
}


@pytest.mark.parametrize("where", UNMATCHED)
def test_a_selector_that_matches_nothing_is_a_warning_that_names_the_nearest(where: str) -> None:
    text, field = UNMATCHED[where]
    [warning] = diff_policy(FLEET, text).warnings
    assert warning.startswith(f"{field}: 'role=databse' matches no machine")
    assert "nearest: database" in warning


def test_an_unknown_label_names_the_nearest() -> None:
    [warning] = diff_policy(FLEET, "limits: [{name: dbs, selector: roll=web, max: 1}]").warnings
    assert "no machine has 'roll'; nearest: role" in warning


LABELS = {
    "failures.breaker.labels": "failures: {breaker: {labels: [kernel, rolle]}}",
    "forecast.labels": "forecast: {labels: [rolle]}",
}


@pytest.mark.parametrize("field", LABELS)
def test_labels_that_no_machine_has_name_the_nearest(field: str) -> None:
    [warning] = diff_policy(FLEET, LABELS[field]).warnings
    assert warning == f"{field}: no machine has 'rolle'; nearest: role"
    assert diff_policy(FLEET, LABELS[field].replace("rolle", "rack")).warnings == ()
    assert diff_policy(FLEET, "forecast: {labels: [model]}").warnings == (), "one of the defaults"


def test_a_rule_that_comes_too_late_is_warned_of() -> None:
    rules = "reboot: {methods: [{machines: '*', method: kexec}, {machines: role=web, method: soft-reboot}]}"
    [warning] = diff_policy(FLEET, rules).warnings
    assert warning.startswith("reboot.methods[1].machines: 'role=web' comes too late")


NEVER = {
    "racks.unavailable": ("racks: {unavailable: 0}", "11 machines"),
    "limits[0].max": ("limits: [{name: webs, selector: role=web, max: 0}]", "7 machines"),
}


@pytest.mark.parametrize("field", NEVER)
def test_a_limit_of_0_is_accepted_and_shown_as_never(field: str) -> None:
    text, concerned = NEVER[field]
    [warning] = diff_policy(FLEET, text).warnings
    assert warning.startswith(f"{field}: 0 means never")
    assert concerned in warning
    assert "0%" not in warning
    assert diff_policy(FLEET, text.replace(": 0", ": 1%")).warnings == ()


CONCERNS = {
    "a gate": (f"gates: [{GATE % 'role=web'}]", "gate load", 7),
    "a gate on all": ("gates: [{name: c, kind: consul-quorum}]", "gate c", 11),
    "a quorum group": ("quorums: [{name: dbs, selector: role=database}]", "quorum group dbs", 4),
    "the standing cycle": ("standing: {enabled: true, selector: role=web}", "standing cycle standing", 7),
}


@pytest.mark.parametrize("what", CONCERNS)
def test_what_changes_says_for_which_machines(what: str) -> None:
    text, name, many = CONCERNS[what]
    told = diff_policy(FLEET, text)
    [concern] = told.concerns
    assert (concern.what, concern.machines, len(concern.examples)) == (name, many, min(5, many))
    assert not told.fleet_wide
    given = snapshot(*FLEET.machines.values(), policy=parse_policy(text))
    assert diff_policy(given, text).concerns == ()
    [back] = diff_policy(given, "{}").concerns
    assert (back.what, back.machines) == (name, many)


def test_who_is_in_the_old_or_in_the_new_selection_is_concerned() -> None:
    given = snapshot(*FLEET.machines.values(), policy=parse_policy("quorums: [{name: q, selector: role=database}]"))
    [concern] = diff_policy(given, "quorums: [{name: q, selector: role=web}]").concerns
    assert concern.machines == 11
    assert diff_policy(given, "{racks: {open: 2}}").fleet_wide


def test_a_limit_that_changes_says_for_which_machines() -> None:
    [change] = diff_policy(FLEET, "limits: [{name: dbs, selector: role=database, max: 1}]").limits
    assert (change.limit, change.old, change.machines) == ("dbs", "", 4)
    assert change.examples == ("d0", "d1", "d2", "d3")


def test_a_gate_that_needs_every_instance_means_never() -> None:
    gate = "gates: [{name: web, kind: consul-service, service: web, minimum: %s}]"
    [warning] = diff_policy(FLEET, gate % "100%").warnings
    assert warning.startswith("gates[0].minimum: 100% means never: no machine that runs an instance of web")
    assert diff_policy(FLEET, gate % "99%").warnings == ()


REFUSED = {
    "windows: {calendar: [{name: n, start: 0 0 30 2 *, duration: 1h}]}": (
        "windows.calendar[0].start", "one that ever fires: no month of these has that day",
    ),
    "windows: {calendar: [{name: n, start: 0 25 * * *, duration: 1h}]}": ("windows.calendar[0].start", "(Bad hour)"),
    "waves: [{machines: rack in (r1,r2)}]": ("waves[0].r2)", "a value with commas needs quotes"),
    "waves: [{machines: rack=r1}, {racks: [r2]}]": ("waves[1]", "a last wave that takes all that is left"),
    "waves: [{size: 100%}, {name: late, racks: [r2]}]": ("waves[1]", "no wave after wave-1, which takes all"),
    "racks: {order: biggest}": ("racks.order", "one of name, smallest-first, or a list of racks"),
    "quorums: [{name: a, selector: role=web}, {name: b, selector: role=web, allow_outage: true}]": (
        "quorums[1].allow_outage", "a has that selector",
    ),
    "quorums: [{name: a, selector: role=web}, {name: b, selector: name=w1, allow_outage: true}]": (
        "quorums[1].allow_outage", "false as in quorums[0], or groups that do not overlap",
    ),
    "quorums: [{name: a, selector: name=w1}]": ("quorums[0].allow_outage", "loses its quorum with any one of them"),
}  # fmt: skip


@pytest.mark.parametrize("text", sorted(REFUSED))
def test_what_contradicts_itself_or_the_fleet_is_refused_with_field_and_reason(text: str) -> None:
    field, reason = REFUSED[text]
    for ask in (diff_policy, partial(apply_policy, because=Because())):
        with pytest.raises(InvalidInput) as caught:
            ask(FLEET, text=text)
        assert caught.value.field == field
        assert reason in caught.value.accepted

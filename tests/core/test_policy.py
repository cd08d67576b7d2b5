from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rebootd.core.amounts import Amount
from rebootd.core.errors import InvalidInput
from rebootd.core.inputs import DAY
from rebootd.core.model import State
from rebootd.core.policy import (
    DEADLINE_FIELDS,
    DEFAULT_POLICY,
    SECTIONS,
    Deadlines,
    Limit,
    Policy,
    PolicyChange,
    diff_policies,
    parse_policy,
    render_policy,
)
from rebootd.core.policy_drains import Drains, NomadDrains
from rebootd.core.policy_failures import Breaker, Failures, Power, Retry
from rebootd.core.policy_fleetlock import FleetLocks
from rebootd.core.policy_gates import (
    Comparison,
    ConsulQuorum,
    ConsulService,
    Gate,
    NoAlerts,
    NomadQuorum,
    PrometheusQuery,
    Quorum,
)
from rebootd.core.policy_reboot import RebootRule
from rebootd.core.policy_silences import Silences
from rebootd.core.policy_waves import Expected, RackOrder, Standing, Wave
from rebootd.core.selectors import GRAMMAR, parse_selector
from rebootd.core.windows import CalendarWindow, judge_windows

if TYPE_CHECKING:
    from collections.abc import Iterator

DOC = (Path(__file__).parents[2] / "docs" / "policy.md").read_text(encoding="utf-8")


def example() -> str:
    found = re.search(r"```yaml\n(.*?)```", DOC, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_example_of_the_doc_says_what_the_doc_says() -> None:
    policy = parse_policy(example())
    assert policy == Policy(
        open_racks=1,
        rack_unavailable=Amount(25, percent=True),
        limits=(
            Limit("web", parse_selector("role=web"), Amount(10, percent=True)),
            Limit("nomad-servers", parse_selector("role=nomad-server"), Amount(1)),
            Limit("never-touch", parse_selector("role in (bastion, hsm), environment!=test"), Amount(0)),
        ),
        windows=(
            CalendarWindow("weekday-nights", "0 22 * * MON-FRI", 6 * 3600.0, "Europe/Berlin"),
            CalendarWindow("first-saturday", "0 8 * * SAT#1", 10 * 3600.0),
        ),
        window_required=True,
        deadlines=Deadlines(draining=1800),
        soak=120,
        failure_budget=2,
        rack_order=RackOrder((), "smallest-first"),
        waves=(
            Wave(name="canaries", machines=parse_selector("canary=true"), soak=1800),
            Wave(name="wave-2", racks=("r1",), soak=3600),
            Wave(name="wave-3", size=Amount(10, percent=True), soak=600),
            Wave(name="wave-4", size=Amount(100, percent=True)),
        ),
        standing=Standing(enabled=True, selector=parse_selector("!pinned")),
        expected=Expected(reboot=420),
        failures=Failures(
            retry=Retry(after=120),
            power=Power(address="https://{meta.bmc}", at_once=2, per_hour=10),
            breaker=Breaker(failures=3, within=7200),
        ),
        gates=(
            Gate(name="dns", test=ConsulService(service="dns", minimum=Amount(2))),
            Gate(name="consul-servers", test=ConsulQuorum()),
            Gate(
                name="nomad-servers",
                test=NomadQuorum(address="http://127.0.0.1:4646"),
                covers=parse_selector("role=nomad-server"),
            ),
            Gate(
                name="errors",
                test=PrometheusQuery(
                    address="http://prometheus.service.consul:9090",
                    query="sum(rate(http_errors_total[5m])) or vector(0)",
                    holds_when=Comparison("<", 5.0),
                ),
                max_age=30,
                max_block=7200,
            ),
            Gate(
                name="no-pages",
                test=NoAlerts(
                    address="http://alertmanager.service.consul:9093",
                    matchers=('severity="page"', 'team=~"net|sys"'),
                ),
            ),
        ),
        quorums=(
            Quorum(name="etcd", selector=parse_selector("role=etcd")),
            Quorum(name="ntp", selector=parse_selector("role=ntp"), allow_outage=True),
        ),
        drains=Drains(nomad=NomadDrains(machines=parse_selector("role in (web, worker)"), deadline=1200)),
        reboot=(RebootRule(machines=parse_selector("role=web"), method="soft-reboot"),),
        silences=Silences(address="http://alertmanager.service.consul:9093"),
        fleetlock=FleetLocks(enabled=True),
    )
    assert set(yaml.safe_load(example())) == set(SECTIONS)
    assert judge_windows(policy, (), 1_715_000_000).next is not None


def leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    if not isinstance(value, dict):
        yield path, value
        return
    for key, below in value.items():
        yield from leaves(below, f"{path}.{key}" if path else key)


def test_the_doc_knows_every_field_and_its_default() -> None:
    rows = dict(re.findall(r"^\| `([a-z_.]+)` \| ([^|]+) \|", DOC, re.MULTILINE))
    given: dict[str, object] = yaml.safe_load(render_policy(DEFAULT_POLICY))
    for name, value in leaves(given):
        if isinstance(value, list):
            continue
        shown = str(value).lower() if isinstance(value, bool) else str(value) or "none"
        assert rows.get(name) == shown, name
    for field in ("limits[]", "windows.calendar[]", "waves[]"):
        assert f"| `{field}` |" in DOC


def test_the_doc_and_the_error_know_the_same_selectors() -> None:
    for term in ("*", "key=value", "key!=value", "key in (a,b)", "key notin (a,b)", "!key"):
        assert term in GRAMMAR
    section = DOC.partition("## Selectors")[2]
    for text in re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE):
        parse_selector(text)
    for text in section.rpartition("Examples: ")[2].split(" · "):
        parse_selector(text.strip().rstrip(".").strip("`"))


@pytest.mark.parametrize("text", ["{}", "racks:\nlimits:\nwindows:\ndeadlines:\n", "# a comment\n{}\n"])
def test_what_is_not_mentioned_keeps_its_default(text: str) -> None:
    assert parse_policy(text) == DEFAULT_POLICY == Policy()


def test_deadlines_of_states() -> None:
    deadlines = Deadlines()
    assert {state: deadlines.of(state) for state in State} == {
        State.IN_SERVICE: None, State.DRAINING: 900, State.DRAINED: 300, State.REBOOTING: 900, State.VERIFYING: 600,
        State.ENABLING: 600, State.HELD: None, State.QUARANTINED: None,
    }  # fmt: skip
    assert set(DEADLINE_FIELDS) == set(Deadlines.__struct_fields__) <= {state.value for state in State}


WINDOW = "windows: {calendar: [{name: w, start: 0 2 * * *, duration: 1h, timezone: UTC}]}"


@pytest.mark.parametrize(
    ("text", "field", "said"),
    [
        ("rack: {open: 1}", "rack", "did you mean racks?"),
        ("racks: {opne: 1}", "racks.opne", "did you mean open?"),
        ("racks: 1", "racks", "a mapping"),
        ("racks: {open: 0}", "racks.open", "from 1 to 1000"),
        ("racks: {open: 1.5}", "racks.open", "whole number"),
        ("racks: {open: }", "racks.open", "whole number"),
        ("racks: {open: .nan}", "racks.open", "whole number"),
        ("racks: {unavailable: 101%}", "racks.unavailable", "0% to 100%"),
        ("limits: {name: web}", "limits", "a list"),
        ("limits: [web]", "limits[0]", "a mapping"),
        ("limits: [{name: a, selector: x=y}]", "limits[0].max", "must be given"),
        ("limits: [{name: a, selector: x=y, max: -1}]", "limits[0].max", "0 to 1000000"),
        ("limits: [{name: a, selector: x=y, max: []}]", "limits[0].max", "0 to 1000000"),
        ("limits: [{name: a/b, selector: x=y, max: 1}]", "limits[0].name", "128 characters"),
        ("limits: [{name: a, selector: '', max: 1}]", "limits[0].selector", "write *"),
        ("limits: [{name: a, selector: [x], max: 1}]", "limits[0].selector", "text"),
        ("limits: [{name: a, selector: x>y, max: 1}]", "limits[0].selector", "key notin (a,b)"),
        ("limits: [{name: a, selector: x=y, max: 1}, {name: a, selector: x=z, max: 1}]", "limits[1].name", "no other"),
        ("windows: {required: yes}", "windows.required", "true or false"),
        (WINDOW.replace("0 2 * * *", "0 0 30 2 *"), "windows.calendar[0].start", "five fields"),
        (WINDOW.replace("0 2 * * *", "often"), "windows.calendar[0].start", "five fields"),
        (WINDOW.replace("1h", "0"), "windows.calendar[0].duration", "from 100ms to 31d"),
        (WINDOW.replace("1h", "1y"), "windows.calendar[0].duration", "from 100ms to 31d"),
        (WINDOW.replace("1h", "32d"), "windows.calendar[0].duration", "from 100ms to 31d"),
        (WINDOW.replace("UTC", "Europe/Berln"), "windows.calendar[0].timezone", "IANA"),
        (WINDOW.replace("timezone", "tz"), "windows.calendar[0].tz", "timezone"),
        (WINDOW.replace("]", ", {name: w, start: 0 3 * * *, duration: 1h}]"), "windows.calendar[1].name", "no other"),
        ("deadlines: {draining: 0}", "deadlines.draining", "from 100ms to 7d"),
        ("deadlines: {held: 1h}", "deadlines.held", "draining, drained"),
        ("soak: -1s", "soak", "from 0s to 7d"),
        ("soak: .inf", "soak", "from 0s to 7d"),
        ("soak: 1:30", "soak", "from 0s to 7d"),
        ("soak: null", "soak", "from 0s to 7d"),
        ("permit: {valid: 2h}", "permit.valid", "from 100ms to 1h"),
        ("permit: 60s", "permit", "a mapping with the fields valid"),
        ("settle: 2d", "settle", "from 0s to 1d"),
        ("unreachable_after: 0s", "unreachable_after", "from 100ms to 1d"),
        ("clock: {tolerance: 1d}", "clock.tolerance", "from 100ms to 1h"),
        ("failure_budget: -1", "failure_budget", "whole number"),
        ("power_loss_share: 0%", "power_loss_share", "1% to 100%"),
        ("power_loss_share: 20", "power_loss_share", "1% to 100%"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_by_its_path(text: str, field: str, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_policy(text)
    assert caught.value.field == field
    assert said in caught.value.accepted
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "{} is the policy of defaults"),
        ("# nothing\n", "{} is the policy of defaults"),
        ("racks:\n  open: [1\nsoak: 1s", r"line 3, column 5: "),
        ("racks:\n\topen: 1", r"line 2, column 1: "),
        ("soak: 1s\nsettle: 1s\nsoak: 2s", r"line 3, column 1: the key 'soak' appears twice"),
        ("racks: {open: 1, open: 2}", r"line 1, column 18: the key 'open' appears twice"),
        ("? [a]\n: b", r"line 1, column 3: a key must be text"),
        ("racks: &r {open: 1}\nclock: *r", r"line 2, column 8: aliases are not accepted; .* must be quoted"),
        ("limits:\n- {name: a, selector: *, max: 1}", r"line 2, column 24: .* must be quoted"),
        ("limits:\n- {name: a, selector: !canary, max: 1}", r"line 2, column 23: tags are not .* must be quoted"),
        ("limits:\n- name: a\n  max: 1\n  selector: !canary, role=web", r"line 4, column 13: tags are not accepted"),
        ("[" * 5000, r"line 1, column 13: nested too deeply"),
        ("soak: 1s\n---\nsoak: 2s", r"line 2, column 1: "),
        ("soak: 1s\nsettle: \x01", r"line 2, column 9: "),
        ('soak: "\\UFFFFFFFF"', "impossible numbers"),
        ("%YAML 1." + "9" * 5000 + "\n---\n{}", "impossible numbers"),
        ("x" * 1_000_001, "at most 1000000 characters"),
        ("- a", "a mapping with the fields racks"),
        ("just words", "a mapping with the fields racks"),
    ],
)
def test_broken_yaml_is_named_by_line_and_column(text: str, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_policy(text)
    assert re.search(said, caught.value.accepted), caught.value.accepted
    assert len(str(caught.value)) < 1000


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
AMOUNTS = st.builds(Amount, st.integers(0, 1000)) | st.builds(Amount, st.integers(0, 100), st.just(value=True))
SELECTORS = st.sampled_from(
    [
        "*",
        "role=web",
        "!canary",
        "rack in (r1, r2), name!=web-*",
        "role notin (db)",
        "true",
        "state=held",
        "label.on=off",
    ]
).map(parse_selector)
STARTS = st.sampled_from(["0 2 * * *", "*/30 1 * * MON-FRI", "0 8 * * SAT#1", "15 3 L * *", "0 0 29 2 *"])


def durations(minimum: float, maximum: float) -> st.SearchStrategy[float]:
    return st.integers(round(minimum * 1000), round(maximum * 1000)).map(lambda ms: ms / 1000)


DEADLINE = durations(0.1, 7 * DAY)
POLICIES = st.builds(
    Policy,
    open_racks=st.integers(1, 1000),
    rack_unavailable=AMOUNTS,
    limits=st.lists(st.builds(Limit, NAMES, SELECTORS, AMOUNTS), max_size=4, unique_by=lambda x: x.name).map(tuple),
    windows=st.lists(
        st.builds(CalendarWindow, NAMES, STARTS, durations(0.1, 31 * DAY), st.sampled_from(["UTC", "Europe/Berlin"])),
        max_size=4,
        unique_by=lambda x: x.name,
    ).map(tuple),
    window_required=st.booleans(),
    deadlines=st.builds(
        Deadlines, draining=DEADLINE, drained=DEADLINE, rebooting=DEADLINE, verifying=DEADLINE, enabling=DEADLINE
    ),
    soak=durations(0, 7 * DAY),
    permit_valid=durations(0.1, 3600),
    settle=durations(0, DAY),
    unreachable_after=durations(0.1, DAY),
    clock_tolerance=durations(0.1, 3600),
    failure_budget=st.integers(0, 1_000_000),
    power_loss_share=st.integers(100, 10_000).map(lambda n: n / 10_000),
)


@settings(deadline=None)
@given(POLICIES)
def test_policies_survive_text(policy: Policy) -> None:
    text = render_policy(policy)
    assert parse_policy(text) == policy
    assert render_policy(parse_policy(text)) == text


@settings(deadline=None)
@given(POLICIES, POLICIES)
def test_a_diff_is_empty_exactly_between_equal_policies(one: Policy, other: Policy) -> None:
    assert diff_policies(one, one) == []
    changes = diff_policies(one, other)
    assert bool(changes) is (one != other)
    assert diff_policies(other, one) != changes or not changes
    assert all(change.old != change.new for change in changes)


def test_a_diff_speaks_in_the_words_of_the_file() -> None:
    old = parse_policy(
        "limits: [{name: web, selector: role=web, max: 1}, {name: db, selector: role=db, max: 1}]\nsoak: 60s\n" + WINDOW
    )
    new = parse_policy(
        "limits: [{name: db, selector: role=db, max: 25%}, {name: web, selector: role=web, max: 1}]\n"
        "windows: {required: true}\nracks: {open: 2}\nsoak: 1m"
    )
    assert diff_policies(old, new) == [
        PolicyChange("racks.open", "1", "2"),
        PolicyChange("limits[db].max", "1", "25%"),
        PolicyChange("windows.required", "false", "true"),
        PolicyChange("windows.calendar[w].start", "0 2 * * *", ""),
        PolicyChange("windows.calendar[w].duration", "1h", ""),
        PolicyChange("windows.calendar[w].timezone", "UTC", ""),
    ]


PIECES = st.sampled_from([
    *SECTIONS, "open", "unavailable", "calendar", "name", "max", "selector", ": ", ":\n", "\n", "  ", "- ", "{", "}",
    "[", "]",
    ",", "*", "&a", "!", "'", '"', "1", "25%", "1h", "web", "#", "|", ">", "? ", "---", "%", "\\", "<<", "~", "\t",
    "\x85",
])  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(st.one_of(st.text(), st.lists(PIECES, max_size=25).map("".join)))
def test_whatever_comes_only_invalid_input_is_raised(text: str) -> None:
    try:
        policy = parse_policy(text)
    except InvalidInput as error:
        assert len(str(error).encode()) < 2000  # noqa: PT017 - not every input is refused
        return
    assert parse_policy(render_policy(policy)) == policy


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda below: (
        st.lists(below, max_size=3) | st.dictionaries(st.sampled_from([*SECTIONS, "open", "name"]), below, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(st.sampled_from(SECTIONS), VALUES, max_size=4))
def test_whatever_values_come_only_invalid_input_is_raised(document: dict[str, object]) -> None:
    try:
        parse_policy(yaml.safe_dump(document))
    except InvalidInput as error:
        assert len(str(error).encode()) < 2000  # noqa: PT017 - not every input is refused

"""Rules and dashboard name only what the code really shows, and everything that it shows is watched."""

from __future__ import annotations

import inspect
import re

import promql_parser as promql
import pytest

from rebootd.store import writer
from tests.monitoring import exposed, files
from tests.monitoring.files import Query

QUERIES = files.queries()
SHOWN = exposed.shown(exposed.daemon(exposed.busy()), exposed.daemon(None), exposed.agent())
LABELS = {name: frozenset(labels) | files.TARGET for name, labels in SHOWN.items()} | {
    name: labels | files.TARGET for name, labels in files.OWN.items()
}
OPEN = {"rack", "cycle", "gate", "kind", "version", "machine", "why", "cause"}
"""Labels whose values are names: what a fixed value of them must be is checked against the busy fleet all the same."""
UNWATCHED = re.compile(r"python_|process_|.*_created$|rebootd_agent_(epoch|waiting_since|updated|shutdown_delay)")
"""What nobody has to watch: what the libraries show, and what stands in the file of an agent for its own host."""


def test_the_busy_fleet_shows_everything() -> None:
    assert SHOWN.keys() >= exposed.shown(exposed.daemon(exposed.healthy()), exposed.daemon(None)).keys()
    empty = re.findall(r"^# TYPE (\w+) ", exposed.daemon(exposed.busy()), re.MULTILINE)
    assert {name for name in empty if not any(sample.startswith(name) for sample in SHOWN)} == set()
    assert len(SHOWN["rebootd_machines"]["state"]) == 8
    assert SHOWN["rebootd_gate"]["verdict"] == {"block"}
    assert {"window", "halt"} <= SHOWN["rebootd_blocked_machines"]["kind"]
    assert len(SHOWN["rebootd_cycle"]["state"]) == 5
    for outcome in exposed.OUTCOMES:
        assert f'"{outcome}"' in inspect.getsource(writer)


@pytest.mark.parametrize("query", QUERIES, ids=[q.where for q in QUERIES])
def test_a_query_names_only_what_is_shown(query: Query) -> None:
    for metric, matchers in files.selected(query):
        assert metric in LABELS, f"{metric} is shown nowhere"
        for label, operator, value in matchers:
            assert label in LABELS[metric], f"{metric} has no label {label}"
            if label in files.TARGET:
                continue
            values = SHOWN[metric][label]
            asked = [value] if operator in {"=", "!="} else value.split("|")
            assert label in OPEN or set(asked) - {""} <= values, f"{metric}: {label} is never one of {asked}"
            if operator == "=" and value:
                assert value in values, f"{metric}: {label} is never {value}"
    left = files.left(promql.parse(query.expr), LABELS)
    assert query.labels <= (left or set()), f"shows {set(query.labels)}, and the result has only {left}"


def test_a_wrong_query_is_found() -> None:
    for expr, labels in [
        ("rebootd_machine", ()),
        ('rebootd_machines{status="held"}', ()),
        ('rebootd_machines{state="broken"}', ()),
        ("sum by (racks) (rebootd_machines)", ()),
        ("sum by (state) (rebootd_machines)", ("rack",)),
        ("max by (job) (rebootd_halted) > on (rack) max by (job) (rebootd_epoch)", ()),
        ("sum(rebootd_leader) > max by (job) (rebootd_epoch)", ()),
        ("histogram_quantile(0.9, sum by (job) (rebootd_commit_seconds_bucket))", ()),
    ]:
        with pytest.raises((AssertionError, KeyError)):
            test_a_query_names_only_what_is_shown(Query("wrong", expr, frozenset(labels)))


def test_every_metric_is_watched() -> None:
    named = {re.sub(r"_(bucket|sum|count)$", "", s.metric) for query in QUERIES for s in files.selected(query)}
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in SHOWN if not UNWATCHED.match(name)}
    assert shown - named == set()


OF_ONE = {"RebootdDown", "RebootdAgentProblem", "RebootdCertificateExpires", "RebootdCertificatesNotTaken"}
"""Alerts about one daemon or host, and not about the fleet whose leader may be another by now."""


def test_rules_keep_fleets_apart_and_outlive_a_leader() -> None:
    for rule in files.rules():
        for node in _nodes(rule["expr"], promql.AggregateExpr):
            assert isinstance(node, promql.AggregateExpr)
            assert node.modifier is not None, rule["alert"]
            assert {"job", "dc"} <= set(node.modifier.labels), rule["alert"]
        left = files.left(promql.parse(rule["expr"]), LABELS)
        if rule["alert"] not in OF_ONE:
            assert "instance" not in (left or set()), rule["alert"]


def _nodes(expr: str, kind: type[promql.Expr]) -> list[promql.Expr]:
    found: list[promql.Expr] = []

    def visit(node: promql.Expr) -> None:
        if isinstance(node, kind):
            found.append(node)

    promql.walk(promql.parse(expr), visit)
    return found

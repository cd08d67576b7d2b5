"""The shipped files, and what the queries in them name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser as promql
import yaml

HERE = Path(__file__).parents[2] / "monitoring"
DOCS = HERE.parent / "docs"

TARGET = frozenset({"job", "instance", "node", "dc"})
"""Labels that every series of ours has from the scrape configuration."""
OWN = {"up": frozenset[str]()}
"""Series that Prometheus makes itself, with their labels beyond those."""


class Query(NamedTuple):
    """One query: where it stands, its text, and the labels that the text beside it shows."""

    where: str
    expr: str
    labels: frozenset[str] = frozenset()


class Selector(NamedTuple):
    """One vector that a query selects: the metric, and (label, operator, value) of each matcher."""

    metric: str
    matchers: tuple[tuple[str, str, str], ...]


def rules() -> list[dict[str, Any]]:
    """The alerts."""
    groups = yaml.safe_load((HERE / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def cases() -> list[dict[str, Any]]:
    """The cases for promtool."""
    tests: list[dict[str, Any]] = yaml.safe_load((HERE / "alerts_test.yml").read_text())["tests"]
    return tests


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels, rows aside."""
    board = json.loads((HERE / "grafana-rebootd.json").read_text())
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries() -> list[Query]:
    """Every query that is shipped, Grafana's variables filled in."""
    found = [
        Query(rule["alert"], rule["expr"], frozenset(re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))))
        for rule in rules()
    ]
    for panel in panels():
        for target in panel["targets"]:
            expr = target["expr"].replace("$__rate_interval", "5m")
            labels = frozenset(re.findall(r"{{\s*(\w+)\s*}}", target.get("legendFormat", "")))
            found.append(Query(f"{panel['title']} {target['refId']}", expr, labels))
    board = json.loads((HERE / "grafana-rebootd.json").read_text())
    asked = [re.fullmatch(r"label_values\((.*), (\w+)\)", v["query"]) for v in board["templating"]["list"]]
    found += [Query(f"variable {values[2]}", values[1], frozenset({values[2]})) for values in asked if values]
    return found


def selected(query: Query) -> list[Selector]:
    """The vectors of a query."""
    found: list[Selector] = []

    def visit(node: promql.Expr) -> None:
        vector = node.vector_selector if isinstance(node, promql.MatrixSelector) else node
        if isinstance(vector, promql.VectorSelector):
            matchers = tuple((m.name, _operator(m.op), m.value) for m in vector.matchers.matchers)
            found.append(Selector(vector.name or "", matchers))

    promql.walk(promql.parse(query.expr), visit)
    return list(dict.fromkeys(found))


def left(node: promql.Expr, of: dict[str, frozenset[str]]) -> frozenset[str] | None:
    """The labels that a result has, ``of`` those of each metric; None for a scalar. Raises AssertionError for a label
    that is asked for and not there.
    """
    match node:
        case promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
            return left(node.expr, of)
        case promql.VectorSelector():
            return of[node.name or ""]
        case promql.MatrixSelector():
            return left(node.vector_selector, of)
        case promql.AggregateExpr():
            return _aggregated(node, of)
        case promql.Call():
            return _called(node, of)
        case promql.BinaryExpr():
            return _joined(node, of)
    return None


def _aggregated(node: promql.AggregateExpr, of: dict[str, frozenset[str]]) -> frozenset[str]:
    inner = left(node.expr, of) or frozenset()
    by = node.modifier
    if by is None:
        # topk and its like keep the series as they are.
        return inner if node.param is not None else frozenset()
    assert by.type == promql.AggModifierType.By
    assert inner >= set(by.labels), f"by {by.labels}: there are only {sorted(inner)}"
    return frozenset(by.labels)


def _called(node: promql.Call, of: dict[str, frozenset[str]]) -> frozenset[str] | None:
    inner = next((labels for a in node.args if (labels := left(a, of)) is not None), None)
    if node.func.name == "absent":
        return frozenset()
    if node.func.name == "histogram_quantile" and inner is not None:
        assert "le" in inner
        return inner - {"le"}
    return inner


def _joined(node: promql.BinaryExpr, of: dict[str, frozenset[str]]) -> frozenset[str] | None:
    sides = [left(node.lhs, of), left(node.rhs, of)]
    vectors = [labels for labels in sides if labels is not None]
    on = node.modifier.matching if node.modifier is not None else None
    if on is not None:
        for labels in vectors:
            assert labels >= set(on.labels), f"on {on.labels}: there are only {sorted(labels)}"
    elif len(vectors) == 2:
        assert vectors[0] == vectors[1] or not vectors[1], f"these never match: {vectors}"
    return vectors[0] if vectors else None


def _operator(op: promql.MatchOp) -> str:
    kinds = (promql.MatchOp.Equal, "="), (promql.MatchOp.NotEqual, "!="), (promql.MatchOp.Re, "=~")
    return next((sign for kind, sign in kinds if op == kind), "!~")

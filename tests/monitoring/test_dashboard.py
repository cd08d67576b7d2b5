"""The dashboard: what dashboard.py makes, and a Grafana can show."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import pytest

from tests.monitoring import files


def test_it_is_what_its_script_makes() -> None:
    pytest.importorskip("grafana_foundation_sdk")
    made = subprocess.run(
        [sys.executable, str(files.HERE / "dashboard.py")], capture_output=True, text=True, timeout=60, check=True
    )
    assert made.stdout == (files.HERE / "grafana-rebootd.json").read_text(), "run monitoring/dashboard.py again"


def test_panels_can_be_told_apart_and_do_not_overlap() -> None:
    board = json.loads((files.HERE / "grafana-rebootd.json").read_text())
    assert max(Counter(panel["id"] for panel in board["panels"]).values()) == 1
    assert max(Counter(panel["title"] for panel in board["panels"]).values()) == 1
    cells: Counter[tuple[int, int]] = Counter()
    for panel in board["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells.update((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"]))
    assert max(cells.values()) == 1


def test_every_query_has_its_own_letter_and_asks_the_chosen_prometheus() -> None:
    for panel in files.panels():
        assert max(Counter(target["refId"] for target in panel["targets"]).values()) == 1
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            assert "rebootd_agent_" in target["expr"] or 'job="$job",dc=~"$dc"' in target["expr"]

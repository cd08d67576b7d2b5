"""The rules under promtool: each has a case, a healthy fleet is quiet, and what the code shows makes them fire."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from rebootd.consul.binary import PROMETHEUS
from tests.monitoring import exposed, files
from tests.support.programs import path_of

if TYPE_CHECKING:
    from pathlib import Path

FIRING = 'count by (alertname) (ALERTS{alertstate="firing"})'
A_WHILE = 75
"""Minutes that a fleet stays as it is."""


@pytest.fixture(scope="module")
def promtool() -> Path:
    """It comes with Prometheus."""
    tool = path_of(PROMETHEUS).with_name("promtool")
    if not tool.is_file():
        pytest.skip("there is a Prometheus, but no promtool beside it")
    return tool


def run(tool: Path, *arguments: str | Path, feed: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [str(tool), *map(str, arguments)]
    return subprocess.run(command, input=feed, capture_output=True, text=True, timeout=60, check=False)


def test_every_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    asked = [check for case in files.cases() for check in case["alert_rule_test"]]
    alerts = {rule["alert"] for rule in files.rules()}
    assert {check["alertname"] for check in asked if check["exp_alerts"]} == alerts
    assert {check["alertname"] for check in asked if not check["exp_alerts"]} == alerts


def test_the_cases_hold(promtool: Path) -> None:
    done = run(promtool, "test", "rules", files.HERE / "alerts_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_rule_that_is_wrong_fails_its_case(promtool: Path, tmp_path: Path) -> None:
    text = (files.HERE / "alerts.yml").read_text()
    (tmp_path / "alerts.yml").write_text(text.replace('rebootd_cycle{state="halted"}', 'rebootd_cycle{state="paused"}'))
    (case,) = [c for c in files.cases() if c["name"].startswith("a cycle halts itself")]
    assert not judged(promtool, tmp_path, tmp_path / "alerts.yml", case)


def test_a_healthy_fleet_is_quiet(promtool: Path, tmp_path: Path) -> None:
    series = fleet(exposed.daemon(exposed.healthy()), exposed.daemon(None)) + told(exposed.agent(), "web-1:9100")
    assert judged(promtool, tmp_path, files.HERE / "alerts.yml", after_a_while(series, []))


def test_what_the_code_shows_of_trouble_fires(promtool: Path, tmp_path: Path) -> None:
    series = fleet(exposed.daemon(exposed.busy()), exposed.daemon(None))
    fires = [
        "AgentsMissing", "AuditChainBroken", "AuditUnwritable", "BreakerOpen", "CycleHalted", "Faults", "GateOverdue",
        "IdentityConflict", "MachineFlagged", "MachineQuarantined", "RecordsAside",
    ]  # fmt: skip
    assert judged(promtool, tmp_path, files.HERE / "alerts.yml", after_a_while(series, fires))


def test_prometheus_own_taste_in_metrics(promtool: Path) -> None:
    done = run(promtool, "check", "metrics", feed=exposed.daemon(exposed.busy()))
    wrong = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("rebootd_")]
    # An hour is the cap's own unit; the rest is seconds.
    assert [line for line in wrong if not line.startswith("rebootd_power_cycles_per_hour_max")] == []


def test_shipped_configuration(promtool: Path, tmp_path: Path) -> None:
    whole = run(promtool, "check", "config", files.HERE / "prometheus.yml")
    config = yaml.safe_load((files.HERE / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    (consul,) = job.pop("consul_sd_configs")
    if whole.returncode:
        # Debian's build knows no Consul: all but that part is checked with another discovery in its place.
        assert "field consul_sd_configs not found" in whole.stdout + whole.stderr
        job["file_sd_configs"] = [{"files": ["targets.json"]}]
        (tmp_path / "targets.json").write_text("[]")
        config["rule_files"] = [str(files.HERE / name) for name in config["rule_files"]]
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
        checked = run(promtool, "check", "config", tmp_path / "prometheus.yml")
        assert checked.returncode == 0, checked.stdout + checked.stderr
    # The fields are those of Prometheus' documentation, "consul_sd_config".
    assert consul == {"server": "127.0.0.1:8500", "services": ["rebootd"], "tags": ["metrics"]}
    assert {rule["target_label"] for rule in job["relabel_configs"]} == files.TARGET


# ------------------------------------------------------------------------------------------------------- helpers


def judged(tool: Path, folder: Path, rules: Path, case: dict[str, Any]) -> bool:
    """Whether the case holds with these rules."""
    test = folder / "case.yml"
    test.write_text(yaml.safe_dump({"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": [case]}))
    done = run(tool, "test", "rules", test)
    assert "FAILED" in done.stdout + done.stderr or done.returncode == 0, done.stderr
    return done.returncode == 0


def after_a_while(series: list[dict[str, str]], fires: list[str]) -> dict[str, Any]:
    """A fleet that stays as it is for a while, and what fires then."""
    samples = [{"labels": f'{{alertname="Rebootd{name}"}}', "value": 1} for name in fires]
    check = {"expr": FIRING, "eval_time": f"{A_WHILE}m", "exp_samples": samples}
    return {"interval": "1m", "input_series": series, "promql_expr_test": [check]}


def fleet(leader: str, follower: str) -> list[dict[str, str]]:
    """The series of a fleet with two daemons."""
    return told(leader, "n1:8473") + told(follower, "n2:8473")


def told(text: str, instance: str) -> list[dict[str, str]]:
    """The series of one target, which shows the same all the time."""
    target = {"job": "rebootd", "dc": "dc1", "instance": instance}
    found = [_series("up", target, 1)]
    for family in text_string_to_metric_families(text):
        found += [_series(s.name, s.labels | target, s.value) for s in family.samples if s.name.startswith("rebootd")]
    return found


def _series(name: str, labels: dict[str, str], value: float) -> dict[str, str]:
    shown = ",".join(f'{label}="{word}"' for label, word in labels.items())
    return {"series": f"{name}{{{shown}}}", "values": f"{value:f}x{A_WHILE}"}

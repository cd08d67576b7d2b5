"""A real Prometheus finds a real daemon through Consul's catalog; a real Alertmanager hears of an alert and its end."""

from __future__ import annotations

import json
import os
import urllib.request
import uuid
from asyncio import to_thread
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from rebootd.cli.demo_daemons import Daemons
from rebootd.consul.binary import ALERTMANAGER, PROMETHEUS
from tests.monitoring import files
from tests.support.cluster import wait_for
from tests.support.programs import alertmanager, ask, path_of, prometheus

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.cluster import Agent


@pytest.mark.slow  # Prometheus looks at new targets every five seconds
async def test_scrape_fire_resolve(dev_consul: Agent, tmp_path: Path) -> None:
    path_of(PROMETHEUS)
    path_of(ALERTMANAGER)
    run = f"rebootd-{uuid.uuid4().hex[:8]}"
    torn = urllib.request.Request(f"{dev_consul.url}/v1/kv/{run}/machines/torn", data=b"{no json", method="PUT")
    urllib.request.urlopen(torn, timeout=5).close()
    daemons = Daemons(tmp_path, run, {**os.environ, "CONSUL_HTTP_ADDR": dev_consul.url}, 1)
    for name in ("prometheus", "alertmanager"):
        (tmp_path / name).mkdir()
    try:
        await daemons.start([])
        await daemons.ready()
        (url,) = daemons.urls.values()
        targets = await to_thread(wait_for, lambda: catalog(dev_consul, run), "the daemon to be in the catalog")
        with alertmanager(tmp_path / "alertmanager") as alerts:
            config = shipped(tmp_path, targets, alerts)
            with prometheus(tmp_path / "prometheus", config) as prom:
                found = await to_thread(wait_for, lambda: up(prom), "the daemon to be scraped")
                port = url.rpartition(":")[2]
                node = dev_consul.name
                assert found == {"job": run, "dc": "dc1", "node": node, "instance": f"{node}:{port}"}
                fired = await to_thread(wait_for, lambda: firing(alerts), "the alert to fire")
                assert fired == {"alertname": "RebootdRecordsAside", "severity": "warning", "job": run, "dc": "dc1"}
                # What its section in the runbook says to type.
                await daemons.ask("POST", "/v1/machines/torn/forget", {"reason": "torn", "by": "test", "force": True})
                await to_thread(wait_for, lambda: firing(alerts) is None, "the alert to end")
    finally:
        await daemons.close()


def catalog(consul: Agent, service: str) -> list[dict[str, Any]]:
    """The instances of a service as Prometheus' own Consul discovery describes them (the labels that we use)."""
    return [
        {
            "targets": [f"{entry['ServiceAddress'] or entry['Address']}:{entry['ServicePort']}"],
            "labels": {
                "__meta_consul_service": entry["ServiceName"],
                "__meta_consul_service_port": str(entry["ServicePort"]),
                "__meta_consul_node": entry["Node"],
                "__meta_consul_dc": entry["Datacenter"],
            },
        }
        for entry in ask(f"{consul.url}/v1/catalog/service/{service}?tag=metrics")
    ]


def shipped(folder: Path, targets: list[dict[str, Any]], alertmanager_url: str) -> str:
    """The shipped configuration, faster, with a file of targets in the place of Consul's discovery."""
    (folder / "targets.json").write_text(json.dumps(targets))
    config = yaml.safe_load((files.HERE / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "250ms", "scrape_timeout": "250ms", "evaluation_interval": "250ms"}
    config["rule_files"] = [str(files.HERE / name) for name in config["rule_files"]]
    config["alerting"]["alertmanagers"][0]["static_configs"] = [{"targets": [alertmanager_url.removeprefix("http://")]}]
    (job,) = config["scrape_configs"]
    del job["consul_sd_configs"]
    job["file_sd_configs"] = [{"files": [str(folder / "targets.json")]}]
    return yaml.safe_dump(config)


def up(prom: str) -> dict[str, str] | None:
    """The labels of the one target, once it answers."""
    active = ask(f"{prom}/api/v1/targets?state=active")["data"]["activeTargets"]
    return next((target["labels"] for target in active if target["health"] == "up"), None)


def firing(alerts: str) -> dict[str, str] | None:
    """The labels of the alert that Alertmanager has, if it has one."""
    listed = ask(f"{alerts}/api/v2/alerts?active=true")
    return listed[0]["labels"] if listed else None

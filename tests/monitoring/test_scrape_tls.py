"""A real Prometheus scrapes a real daemon under mutual TLS, with the lines that the shipped file has for it."""

from __future__ import annotations

import json
import re
from asyncio import to_thread
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from rebootd.consul.binary import PROMETHEUS
from tests.monitoring import files
from tests.support.cluster import wait_for
from tests.support.pki import Pki
from tests.support.programs import ask, path_of, prometheus
from tests.support.secure_daemon import daemon

if TYPE_CHECKING:
    from rebootd.tls.files import TlsFiles


def with_certificates() -> dict[str, Any]:
    """What the shipped file says of daemons with certificates: the lines in its comment, as they are."""
    text = (files.HERE / "prometheus.yml").read_text()
    lines = re.findall(r"^    #   (.*)$", text, re.MULTILINE)
    found = yaml.safe_load("\n".join(lines))
    assert set(found) == {"scheme", "tls_config"}
    assert isinstance(found, dict)
    return found


def config(folder: Path, port: int, shown: TlsFiles) -> str:
    """The shipped job with these lines, faster, and a file of targets in the place of Consul's discovery."""
    here = folder / "certs"
    here.mkdir()
    names = {
        "rebootd-ca.pem": shown.ca,
        "operator-prometheus.pem": shown.cert,
        "operator-prometheus-key.pem": shown.key,
    }
    for name, path in names.items():
        (here / name).write_bytes(Path(path).read_bytes())
    shipped = yaml.safe_load((files.HERE / "prometheus.yml").read_text())
    (job,) = shipped["scrape_configs"]
    del job["consul_sd_configs"]
    secured = json.loads(json.dumps(with_certificates()).replace("/etc/prometheus", str(here)))
    labels = {"__meta_consul_service": "rebootd", "__meta_consul_service_port": str(port), "__meta_consul_node": "n1"}
    (folder / "targets.json").write_text(json.dumps([{"targets": [f"127.0.0.1:{port}"], "labels": labels}]))
    job |= secured | {"file_sd_configs": [{"files": [str(folder / "targets.json")]}]}
    times = {"scrape_interval": "250ms", "scrape_timeout": "250ms", "evaluation_interval": "250ms"}
    return yaml.safe_dump({"global": times, "scrape_configs": [job]})


def judged(prom: str) -> tuple[str, str] | None:
    """The health of the one target and its last error, once it was scraped."""
    active = ask(f"{prom}/api/v1/targets?state=active")["data"]["activeTargets"]
    return next(((t["health"], t["lastError"]) for t in active if t["health"] != "unknown"), None)


@pytest.mark.slow  # Prometheus looks at new targets every five seconds
@pytest.mark.timeout(180)
@pytest.mark.parametrize(("role", "name"), [("viewer", "prometheus"), ("machine", "m1")])
async def test_a_viewers_certificate_is_enough_and_a_machines_is_not(tmp_path: Path, role: str, name: str) -> None:
    path_of(PROMETHEUS)
    pki = Pki(tmp_path / "pki")
    (tmp_path / "prometheus").mkdir()
    async with daemon(tmp_path, pki.server()) as real:
        text = config(tmp_path, real.port, pki.issue(role, name))
        with prometheus(tmp_path / "prometheus", text) as prom:
            scraped = await to_thread(wait_for, lambda: judged(prom), "the daemon to be scraped")
            assert scraped is not None
            health, error = scraped
            if role == "machine":
                assert health == "down"
                assert "403" in error
                return
            assert (health, error) == ("up", "")
            query = f"{prom}/api/v1/query?query=rebootd_tls_expiry_timestamp_seconds"
            found = await to_thread(wait_for, lambda: ask(query)["data"]["result"], "the figures")
            assert found[0]["metric"]["instance"] == f"n1:{real.port}"

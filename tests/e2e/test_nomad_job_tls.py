"""The shipped job on a real Nomad under mutual TLS: certificates from Nomad Variables, a cycle, new certificates."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from rebootd.cli.ctl_client import Client, Trouble
from rebootd.cli.ctl_tls import Wire
from tests.e2e.nomad_job import CLIENTS, ended, in_service, machines, scheduled, start, until
from tests.support.cluster import wait_for
from tests.support.pki import Pki

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rebootd.tls.files import TlsFiles
    from tests.e2e.nomad_job import Job
    from tests.support.cluster import Agent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

EXPIRY = 'rebootd_tls_expiry_timestamp_seconds{file="certificate"}'
FILES = ("ca", "crl", "cert", "key")


def variables(files: TlsFiles) -> dict[str, str]:
    """What a daemon needs, as Nomad Variables."""
    return {what: Path(getattr(files, what)).read_text(encoding="ascii") for what in FILES}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def job(dev_consul: Agent, tmp_path_factory: pytest.TempPathFactory, certificates: Pki) -> Iterator[Job]:
    """Its daemons get their certificates from Nomad Variables; alice asks."""
    read = '{{ with nomadVar \\"nomad/jobs/rebootd\\" }}{{ .%s }}{{ end }}'
    given = {"tls_templates": "{" + ", ".join(f'{what} = "{read % what}"' for what in FILES) + "}"}
    alice = Wire(certificates.issue("admin", "alice"))
    with scheduled(dev_consul, tmp_path_factory, given, alice, variables(certificates.server("first"))) as made:
        yield made


def test_daemons_speak_to_those_with_a_certificate_only(job: Job) -> None:
    assert job.nomad.running("rebootd") == list(CLIENTS)
    # Nomad's own check has no certificate: it asks another port, and is content.
    wait_for(lambda: len(job.passing(f"{job.name}-http")) == len(CLIENTS), "Nomad's own service", 60)
    place = job.passing()[0]
    assert json.loads(job.client_of(place).ask("GET", "/v1/status"))["daemon"]["url"].startswith("https://")
    for url in (f"http://{place}", f"https://{place}"):
        with pytest.raises(Trouble):
            Client([url], timeout=5.0).ask("GET", "/v1/status")


async def test_a_cycle_and_new_certificates_without_a_restart(job: Job, certificates: Pki, tmp_path: Path) -> None:
    for name in CLIENTS:
        files = certificates.issue("machine", name)
        # Beside the settings that all machines share, in the folder that the agent also reads.
        own = tmp_path / "machines" / name / "agent.d"
        own.mkdir(parents=True)
        (own / "tls.yaml").write_text(yaml.safe_dump({f"tls_{what}": getattr(files, what) for what in FILES}))
    async with machines(job, tmp_path, {}) as supervisor:
        await in_service(job)
        before, old = job.allocs(), {place: expiry(job, place) for place in job.passing()}
        await start(job, "tls", "settle: 0s\n")
        await asyncio.to_thread(job.remember, variables(certificates.server("second")))

        async def taken() -> bool:
            return all([await asyncio.to_thread(expiry, job, place) > old[place] for place in old])

        await until(taken, "the daemons to take their new certificates", 60)
        await ended(job, supervisor, "tls", 1)
        assert job.allocs() == before
        for id_ in before.values():
            assert job.nomad.ask(f"/v1/allocation/{id_}")["TaskStates"]["rebootd"]["Restarts"] == 0


def expiry(job: Job, place: str) -> float:
    """When the certificate ends that the daemon there uses."""
    text = job.client_of(place).ask("GET", "/metrics").decode()
    return next(float(row.rpartition(" ")[2]) for row in text.splitlines() if row.startswith(EXPIRY))

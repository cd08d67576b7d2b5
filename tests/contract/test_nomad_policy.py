"""The shipped Nomad policy is enough for drains and the quorum gate on a real Nomad, and nothing in it is too much."""

from __future__ import annotations

import json
import re
import urllib.request
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rebootd.coordinator.drains.nomad_api import Nomad
from rebootd.coordinator.drains.nomad_http import NomadHttp, NomadSettings
from rebootd.coordinator.gates.sight import Eyes
from rebootd.core.errors import RebootdError
from rebootd.core.gates import Servers
from rebootd.core.nomad import NomadDrain
from rebootd.core.policy_gates import Gate, NomadQuorum
from tests.support.cluster import wait_for
from tests.support.nomad import NomadAgent, binary, job, unmount

if TYPE_CHECKING:
    from collections.abc import Iterator

POLICY = Path(__file__).parents[2] / "nomad" / "acl" / "rebootd.policy.hcl"
pytestmark = pytest.mark.slow

RULES = re.findall(r"^\w+[^\n]*\{\n[^}]*\}", POLICY.read_text(), re.MULTILINE)


class Guarded(NomadAgent):
    """A Nomad of one server that is its own client, with ACLs."""

    secret = ""

    def call(self, path: str, method: str = "GET", body: Any = None) -> Any:
        """As whoever manages it."""
        data = json.dumps(body).encode() if body is not None else None
        headers = {"X-Nomad-Token": self.secret} if self.secret else {}
        request = urllib.request.Request(self.url + path, data=data, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=5) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def token(self, rules: list[str]) -> str:
        """The secret of a token with these rules."""
        name = f"p-{uuid.uuid4().hex[:8]}"
        self.call(f"/v1/acl/policy/{name}", "PUT", {"Name": name, "Rules": "\n".join(rules)})
        made = self.call("/v1/acl/token", "PUT", {"Name": name, "Type": "client", "Policies": [name]})
        return str(made["SecretID"])


@pytest.fixture(scope="module")
def nomad(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    binary()
    config = {
        "server": {"enabled": True, "bootstrap_expect": 1, "raft_multiplier": 1, "num_schedulers": 1},
        "client": {
            "enabled": True,
            "network_interface": "lo",
            "cpu_total_compute": 4000,
            "memory_total_mb": 4000,
            "options": {"fingerprint.denylist": "env_aws,env_gce,env_azure,env_digitalocean,cni,bridge"},
        },
        "plugin": [{"raw_exec": [{"config": [{"enabled": True}]}]}],
        "acl": {"enabled": True},
    }
    agent = Guarded("web1", tmp_path_factory.mktemp("nomad"), config)
    try:
        agent.spawn()
        agent.secret = wait_for(lambda: agent.call("/v1/acl/bootstrap", "POST"), "Nomad's ACLs", 60)["SecretID"]
        wait_for(lambda: [n for n in agent.call("/v1/nodes") if n["Status"] == "ready"], "the client", 60)
        agent.call("/v1/jobs", "POST", {"Job": job("dns")})
        wait_for(lambda: agent.call("/v1/job/dns/summary")["Summary"]["dns"]["Running"], "the job", 60)
        # Autopilot has looked for the first time.
        wait_for(lambda: agent.call("/v1/operator/autopilot/health")["Servers"], "autopilot", 60)
        yield agent
    finally:
        if agent.running and agent.secret:
            agent.call("/v1/job/dns?purge=true", "DELETE")
            wait_for(lambda: not agent.call("/v1/job/dns/allocations"), "the job's end", 20)
        agent.kill()
        unmount(agent.folder)


async def works(nomad: Guarded, shown: str, folder: Path) -> None:
    """A drain from its beginning to its end, and the quorum gate."""
    folder.mkdir(exist_ok=True)
    (folder / nomad.url.removeprefix("http://")).write_text(shown)
    api = Nomad(NomadHttp(NomadSettings(address=nomad.url, token_file=str(folder / nomad.url.removeprefix("http://")))))
    eyes = Eyes(None, folder)
    try:
        [client] = await api.clients("web1")
        assert {a.job for a in await api.allocs(client.id)} == {"default/dns"}
        assert await api.service("default/dns") is not None
        await api.drain(NomadDrain(node=client.id, mark="m", since=1.0, eligible=True))
        await api.stop_drain(client.id, eligible=False)
        await api.enable(client.id)
        assert (await api.clients("web1"))[0].eligible
        value = await eyes.read(Gate(name="q", test=NomadQuorum(address=nomad.url)), {})
        assert isinstance(value, Servers)
        assert value.members == {"web1": ""}
    finally:
        await api.close()
        await eyes.close()


async def test_the_policy_is_enough(nomad: Guarded, tmp_path: Path) -> None:
    assert len(RULES) == POLICY.read_text().count("\n}")
    await works(nomad, nomad.token(RULES), tmp_path / "tokens")


LESS = [("without", n, RULES[:n] + RULES[n + 1 :]) for n in range(len(RULES))]
LESS += [
    ("read only", n, [*RULES[:n], rule.replace('"write"', '"read"'), *RULES[n + 1 :]])
    for n, rule in enumerate(RULES)
    if '"write"' in rule
]


@pytest.mark.parametrize(("how", "which", "left"), LESS)
async def test_nothing_in_the_policy_is_too_much(
    nomad: Guarded, tmp_path: Path, how: str, which: int, left: list[str]
) -> None:
    with pytest.raises((RebootdError, AssertionError)):
        await works(nomad, nomad.token(left), tmp_path / "tokens")

"""``rebootctl gate list`` and what ``policy diff`` says of gates and quorum groups."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from msgspec.structs import replace

from rebootd.core.gates import Held, Reading, Samples
from rebootd.core.policy import parse_policy

if TYPE_CHECKING:
    from tests.api.server import Api
    from tests.cli.ctl_runner import Ctl

POLICY = """
gates:
- {name: load, kind: prometheus, address: 'http://127.0.0.1:9', query: load, holds_when: < 5, max_block: 1h}
- {name: dns, kind: consul-service, service: dns, minimum: 2}
quorums:
- {name: dbs, selector: role=db}
"""


async def test_gates_are_listed_and_explained(api: Api, ctl: Ctl) -> None:
    assert "no gates" in await ctl.good("gate", "list")
    policy, now = parse_policy(POLICY), time.time()
    api.desk.state = replace(api.desk.state, policy=policy)
    idle = await ctl.good("gate", "list")
    assert "idle" in idle
    assert "nobody waits" in idle
    await ctl.good("cycle", "start", "k1", "--selector", "*")
    reading = Reading(gate=policy.gates[0], at=now - 3, value=Samples((("", 9.0),)))
    api.desk.state = replace(
        api.desk.state,
        readings={"load": reading},
        gate_since={"load": Held("block", now - 9000, now - 9000), "dns": Held("unknown", now - 60, now - 60)},
    )
    shown = await ctl.good("gate", "list")
    assert "block (overdue)" in shown
    assert "the value = 9" in shown
    assert "not been read yet" in shown
    assert "dbs" in shown
    assert "gate load keeps machines in" in await ctl.good("status")
    assert "gate load blocks" in await ctl.good("explain", "r1m1")
    gates = (await ctl("gate", "list", "--json")).json()["gates"]
    assert [(g["name"], g["verdict"], g["overdue"]) for g in gates] == [
        ("load", "block", True),
        ("dns", "unknown", False),
    ]


async def test_groups_are_checked_against_the_fleet(api: Api, ctl: Ctl) -> None:
    file = ctl.folder / "policy.yaml"
    file.write_text("quorums: [{name: one, selector: name=r1m1}]\n")
    for verb in ("diff", "apply"):
        assert "quorums[0].allow_outage" in await ctl.bad(2, "policy", verb, str(file))
    file.write_text("quorums: [{name: none, selector: role=nosuch}]\n")
    assert "warning: quorums[0].selector" in await ctl.good("policy", "diff", str(file))
    await ctl.good("policy", "apply", str(file))

"""Gates and node checks on a real Consul, and a leader that stands on what they say."""

from __future__ import annotations

import asyncio
import json
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from rebootd.consul.client import connect
from rebootd.coordinator.gates.sight import Eyes
from rebootd.core.amounts import Amount
from rebootd.core.gates import Instances, Servers
from rebootd.core.model import CycleState
from rebootd.core.operations_inputs import Because
from rebootd.core.operations_policy import apply_policy
from rebootd.core.policy_gates import ConsulQuorum, ConsulService, Gate
from rebootd.core.wire import DirectiveKind
from tests.coordinator.lab import Host, Lab, eventually, record, start
from tests.support.cluster import Agent, cluster, wait_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from rebootd.coordinator.leader import Leader
    from rebootd.core.gates import Value
    from rebootd.core.policy_gates import Test


class Town:
    """Nodes with one service in the catalog of a shared Consul, under names that nobody else uses."""

    def __init__(self, agent: Agent, *names: str) -> None:
        self.agent = agent
        self.id = uuid.uuid4().hex[:6]
        self.service = f"web-{self.id}"
        self.names = [f"{n}-{self.id}" for n in names]
        for name in self.names:
            self.put(name)

    def put(self, name: str, status: str = "passing") -> None:
        body = {
            "Node": name,
            "Address": "127.0.0.1",
            "Service": {"ID": self.service, "Service": self.service, "Tags": ["v1"]},
            "Check": {"Node": name, "CheckID": f"{name}-ok", "Name": "ok", "Status": status, "ServiceID": self.service},
        }
        self._ask("/v1/catalog/register", body)

    def mark(self, name: str, check_id: str, status: str = "critical", **facts: Any) -> None:
        check = {"Node": name, "CheckID": check_id, "Name": check_id, "Status": status} | facts
        self._ask("/v1/catalog/register", {"Node": name, "Address": "127.0.0.1", "Check": check})

    def clear(self, name: str, check_id: str) -> None:
        self._ask("/v1/catalog/deregister", {"Node": name, "CheckID": check_id})

    def remove(self) -> None:
        for name in self.names:
            self._ask("/v1/catalog/deregister", {"Node": name})

    def _ask(self, path: str, body: dict[str, Any]) -> None:
        self.agent.ask(path, "PUT", json.dumps(body).encode())


@pytest.fixture
def town(dev_consul: Agent) -> Iterator[Town]:
    made = Town(dev_consul, "a1", "a2", "a3")
    yield made
    made.remove()


@asynccontextmanager
async def eyes(agent: Agent) -> AsyncIterator[Eyes]:
    client = connect(agent.settings)
    made = Eyes(client)
    try:
        yield made
    finally:
        await made.close()
        await client.close()


async def read(agent: Agent, test: Test) -> Value:
    async with eyes(agent) as made:
        return await made.read(Gate(name="g", test=test), {})


# ---------------------------------------------------------------------------------------------------- readings


async def test_instances_by_node(town: Town) -> None:
    test = ConsulService(service=town.service, minimum=Amount(2))
    a1, a2, a3 = town.names
    town.put(a2, "critical")
    town.mark(a3, "rebootd")
    value = await read(town.agent, test)
    assert value == Instances(passing={a1: 1}, total=3, nodes=frozenset(town.names))
    tagged = await read(town.agent, ConsulService(service=town.service, minimum=Amount(2), tag="v2"))
    assert tagged == Instances(passing={}, total=0)


def test_a_service_with_a_ttl_check_passes_only_while_it_is_told_so(dev_consul: Agent) -> None:
    name = f"ttl-{uuid.uuid4().hex[:6]}"
    body = {"Name": name, "ID": name, "Check": {"CheckID": f"c-{name}", "TTL": "1s", "Status": "critical"}}
    dev_consul.ask("/v1/agent/service/register", "PUT", json.dumps(body).encode())

    def passing() -> int:
        value = asyncio.run(read(dev_consul, ConsulService(service=name, minimum=Amount(1))))
        assert isinstance(value, Instances)
        assert value.total == 1
        return sum(value.passing.values())

    try:
        assert passing() == 0
        dev_consul.ask(f"/v1/agent/check/pass/c-{name}", "PUT")
        wait_for(lambda: passing() == 1, "the check to pass")
        wait_for(lambda: passing() == 0, "the TTL to run out")
    finally:
        dev_consul.ask(f"/v1/agent/service/deregister/{name}", "PUT")


def test_the_servers_of_a_real_raft(dev_consul: Agent) -> None:
    def servers() -> Servers:
        value = asyncio.run(read(dev_consul, ConsulQuorum()))
        assert isinstance(value, Servers)
        assert list(value.members) == ["dev"]
        assert value.tolerance == 0
        return value

    # Autopilot knows nothing for the first seconds of a cluster: that is not well.
    wait_for(lambda: servers().members == {"dev": ""}, "autopilot to have looked", 30)


def test_a_real_quorum_of_three_that_loses_a_server() -> None:
    with cluster(3) as three:

        def servers(asked: int) -> Servers:
            value = asyncio.run(read(three.servers[asked], ConsulQuorum()))
            assert isinstance(value, Servers)
            return value

        well = Servers(members={"server0": "", "server1": "", "server2": ""}, tolerance=1)
        wait_for(lambda: servers(0) == well, "autopilot to be content", 60)
        leader = three.leader()
        other, lost = (n for n in range(3) if n != leader)
        three.kill(lost)
        wait_for(lambda: servers(other).members[f"server{lost}"] != "", "the loss to be seen", 60)
        assert servers(other).tolerance == 0


async def test_failed_nodes_are_seen_as_soon_as_they_fail(town: Town) -> None:
    a1, a2, a3 = town.names
    async with eyes(town.agent) as made:
        failing, index = await made.failing(0, 5)
        assert not failing.keys() & set(town.names)
        # Neither our own out mark nor a service's check makes a failed machine.
        town.mark(a3, "rebootd")
        town.put(a2, "critical")
        waiting = asyncio.create_task(_until(made, index, a2))
        await asyncio.sleep(0.1)
        town.mark(a1, "serfHealth")
        town.mark(a2, "_node_maintenance", Notes="fan swap")
        failing = await asyncio.wait_for(waiting, 10)
    assert {n: why for n, why in failing.items() if n in town.names} == {
        a1: "serfHealth is critical",
        a2: "in maintenance (fan swap)",
    }


async def _until(made: Eyes, index: int, name: str) -> dict[str, str]:
    while True:
        failing, index = await made.failing(index, 5)
        if name in failing:
            return failing


# ---------------------------------------------------------------------------------------------------- a leader


def policy_of(town: Town, minimum: int) -> str:
    return (
        "racks: {unavailable: 9}\nsettle: 0s\n"
        f"gates: [{{name: web, kind: consul-service, service: {town.service}, minimum: {minimum}, max_age: 2s}}]\n"
    )


@asynccontextmanager
async def leading(town: Town, policy: str, others: tuple[str, ...] = ()) -> AsyncIterator[tuple[Leader, list[Host]]]:
    """A leader with its machines in service, under ``policy``."""
    names = [*town.names, *others]
    lab, hosts = Lab({"r1": names}), [Host(n) for n in names]
    async with eyes(town.agent) as made, lab.leader(sight=made) as leader:
        await asyncio.gather(*(h.join(leader) for h in hosts))
        await leader.apply(lambda s: apply_policy(s, policy, Because("test", "a test")))
        yield leader, hosts


async def test_a_service_gate_keeps_the_last_instances_in(town: Town) -> None:
    """Three instances, two must be left: with one gone for good, the other two never go."""
    async with leading(town, policy_of(town, 2)) as (leader, hosts):
        await start(leader)
        tasks = [asyncio.create_task(h.live(leader)) for h in hosts[1:]]
        # The first one is drained, reboots and stays away.
        await hosts[0].until(leader, "drained")
        town.put(town.names[0], "critical")
        while not (await hosts[0].ask(leader)).granted:
            await asyncio.sleep(0.05)
        hosts[0].reboot()
        await eventually(
            lambda: all("2 of 3 instances pass" in _why(leader, name) for name in town.names[1:]), seconds=20
        )
        assert [h.boot for h in hosts] == [1, 0, 0]
        # It comes back, whatever the gate says; then the others go, one after another.
        tasks.append(asyncio.create_task(hosts[0].live(leader)))
        await eventually(lambda: record(leader, town.names[0]).state == "in-service")
        assert [h.boot for h in hosts] == [1, 0, 0]
        town.put(town.names[0])
        await eventually(lambda: leader.fleet.cycles["k1"].state is CycleState.DONE, seconds=30)
        assert [h.boot for h in hosts] == [1, 1, 1]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert leader.fleet.readings["web"].value is not None


def _why(leader: Leader, name: str) -> str:
    return "; ".join(b.what for b in leader.decision().reasons.get(name, ()) if b.kind == "gate")


async def test_a_gate_that_turns_red_between_drain_and_permit_brings_the_machine_back(town: Town) -> None:
    async with leading(town, policy_of(town, 1)) as (leader, hosts):
        await start(leader, selector=f"name={town.names[0]}")
        await hosts[0].until(leader, "drained")
        for name in town.names:
            town.put(name, "critical")
        # The next reading is due within half a second, and is begun at once when the machine has been drained.
        await eventually(lambda: record(leader, town.names[0]).state == "enabling")
        assert "gate web blocks" in record(leader, town.names[0]).cause
        await hosts[0].until(leader, "in-service")
        assert (hosts[0].boot, record(leader, town.names[0]).turned_back) == (0, 1)
        for name in town.names:
            town.put(name)
        # The gate passes again, and still the machine rests before it goes again.
        await eventually(lambda: "goes again in" in _why(leader, town.names[0]))
        await eventually(lambda: leader.decision().gates["web"].word == "pass")
        assert record(leader, town.names[0]).state == "in-service"


async def test_an_unknown_gate_blocks_and_says_so_and_a_healthy_one_lets_the_permit_through(town: Town) -> None:
    policy = policy_of(town, 1).replace(town.service, "no-such-service")
    async with leading(town, policy) as (leader, hosts):
        await start(leader, selector=f"name={town.names[0]}")
        await eventually(lambda: "has no instance" in _why(leader, town.names[0]))
        assert leader.decision().gates["web"].word == "unknown"
        await leader.apply(lambda s: apply_policy(s, policy_of(town, 1), Because("test", "a test")))
        answer = await hosts[0].until(leader, "drained")
        assert answer.directive is not None
        assert answer.directive.kind is DirectiveKind.REBOOT
        # Asked at once after the drain, the request is kept until the gate has been read again.
        assert (await asyncio.wait_for(hosts[0].ask(leader), 5)).granted


async def test_a_machine_that_consul_calls_failed_uses_up_its_limit(town: Town) -> None:
    limits = "limits: [{name: all, selector: '*', max: 1}]"
    async with leading(town, f"settle: 0s\n{limits}") as (leader, hosts):
        town.mark(town.names[2], "serfHealth")
        await eventually(lambda: town.names[2] in leader.fleet.failing)
        await start(leader)
        await eventually(lambda: len(leader.decision().reasons) == 3)
        kinds = {n: {b.kind for b in leader.decision().reasons[n]} for n in town.names}
        assert all("limit" in k for k in kinds.values())
        assert "failing" in kinds[town.names[2]]
        assert "serfHealth is critical" in " ".join(b.what for b in leader.decision().reasons[town.names[0]])
        town.clear(town.names[2], "serfHealth")
        await hosts[0].until(leader, "drained")

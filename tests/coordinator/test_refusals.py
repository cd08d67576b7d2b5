from __future__ import annotations

import asyncio

import pytest

from rebootd.core.errors import NotLeader, Refused
from rebootd.core.model import CycleState, State
from rebootd.store.port import Delete, Lock, Set
from tests.coordinator.lab import Host, Lab, eventually, record, start


async def drained(lab: Lab, leader: object, host: Host) -> None:
    await host.join(leader)  # type: ignore[arg-type]  # a Leader; typed loosely for the fixture's sake
    await start(leader)  # type: ignore[arg-type]  # as above
    await host.until(leader, "drained")  # type: ignore[arg-type]  # as above


async def test_one_permit_per_boot_and_the_same_answer_to_the_same_nonce() -> None:
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    async with lab.leader() as leader:
        await drained(lab, leader, host)
        first = await host.ask(leader, "n1")
        assert first.granted
        assert 0 < first.valid_for <= 60
        version = record(leader, "a1").version
        again = await host.ask(leader, "n1")
        assert again.granted
        assert again.valid_for <= first.valid_for
        assert record(leader, "a1").version == version
        other = await host.ask(leader, "n2")
        assert not other.granted
        assert "another nonce" in other.reason
        assert [e.cause for e in leader.recent(50) if e.kind == "refused"] == ["permit refused"]
    async with lab.leader() as leader:
        assert not (await host.ask(leader, "n2")).granted
        assert (await host.ask(leader, "n1")).granted


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"boot_id": "another"}, "not the present one"),
        ({"machine_id": "another"}, "machine-id"),
        ({"name": "nobody"}, "no record"),
    ],
)
async def test_permits_that_are_refused_for_good(facts: dict[str, str], reason: str) -> None:
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    async with lab.leader() as leader:
        await drained(lab, leader, host)
        answer = await host.ask(leader, "n1", **facts)
        assert not answer.granted
        assert reason in answer.reason
        assert record(leader, "a1").state is State.DRAINED


async def test_a_permit_to_a_machine_in_service_is_refused() -> None:
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    async with lab.leader() as leader:
        await host.join(leader)
        answer = await host.ask(leader, "n1")
        assert not answer.granted
        assert "in-service" in answer.reason


async def test_a_halt_that_lands_at_the_last_moment_refuses_the_permit() -> None:
    """The transaction itself finds the halt, before the leader's watch has told of it."""
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    async with lab.leader() as leader:
        await drained(lab, leader, host)
        stop = Set("rebootd/control/halt", b"stop")
        landed = False

        def halt_first(ops: object) -> None:
            nonlocal landed
            if not landed and any(b'"rebooting"' in getattr(op, "value", b"") for op in ops):  # type: ignore[attr-defined]
                landed = True
                lab.consul.apply([stop])

        lab.store.faults.choose = halt_first
        answer = await host.ask(leader, "n1")
        assert landed
        assert not answer.granted
        await host.until(leader, "in-service")
        assert host.boot == 0


async def test_a_superseded_boot_is_refused() -> None:
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    async with lab.leader() as leader:
        await host.join(leader)
        late = host.saying()
        host.reboot()
        await host.join(leader)
        for _ in range(3):
            with pytest.raises(Refused, match="superseded"):
                await leader.report(late)
        assert [e.cause for e in leader.recent(50) if e.kind == "refused"] == ["stale boot_id"]


async def test_two_machines_under_one_name_get_nothing() -> None:
    lab, host, twin = Lab({"r1": ["a1"]}), Host("a1"), Host("a1", machine_id="twin")
    async with lab.leader() as leader:
        await host.join(leader)
        host.reboot()
        with pytest.raises(Refused, match="two machine-ids"):
            await twin.report(leader)
        before = lab.consul.index
        for _ in range(5):
            with pytest.raises(Refused):
                await twin.report(leader)
            answer = await host.report(leader, wait=0.1)
            assert answer.directive is None
        assert lab.consul.index == before
        assert record(leader, "a1").state is State.IN_SERVICE
        assert "conflict" in {b.kind for b in leader.decision().reasons["a1"]} or "a1" in leader.snapshot().conflicts


async def test_an_unknown_node_is_refused_and_a_late_one_is_looked_up() -> None:
    lab = Lab({"r1": ["a1"]})
    async with lab.leader() as leader:
        with pytest.raises(Refused, match="not a node"):
            await Host("zz").report(leader)
        assert "zz" not in leader.fleet.machines
    lab.consul.register_node("late", {"rack": "r9"})
    async with lab.leader() as leader:
        lab.consul.register_node("later", {"rack": "r9"})
        await Host("later").join(leader)
        assert record(leader, "later").rack == "r9"


async def test_the_end_of_a_leadership_lets_everybody_go() -> None:
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    async with lab.leader() as leader:
        await host.join(leader)
        waiting = asyncio.create_task(host.report(leader, wait=60.0))
        await eventually(lambda: leader.waiting == 1)
    with pytest.raises(NotLeader):
        await waiting
    with pytest.raises(NotLeader):
        await start(leader)


async def test_a_hand_edited_record_sets_only_its_machine_aside() -> None:
    racks = {"r1": ["a1", "a2", "a3", "a4"]}
    lab, hosts = Lab(racks), [Host(n) for n in racks["r1"]]
    async with lab.leader() as leader:
        await asyncio.gather(*(h.join(leader) for h in hosts))
    lab.consul.apply([Set("rebootd/machines/a1", b"{ oops")])
    lab.consul.apply([Set("rebootd/policy", b"racks: {unavailable: 2}")])
    async with lab.leader() as leader:
        assert set(leader.fleet.asides) == {"a1"}
        await start(leader)
        tasks = [asyncio.create_task(h.live(leader)) for h in hosts]
        await eventually(lambda: all(record(leader, h.name).outcomes.get("k1") == "rebooted" for h in hosts[1:]))
        assert [h.boot for h in hosts] == [0, 1, 1, 1]
        assert leader.decision().reasons["a1"][0].kind == "aside"
        assert leader.fleet.cycles["k1"].state is CycleState.RUNNING, "it waits for the one that nobody can read"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert lab.value("machines/a1") == b"{ oops"


async def test_a_record_edited_under_the_leader_is_noticed_at_the_next_write() -> None:
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    async with lab.leader() as leader:
        await host.join(leader)
        lab.consul.apply([Set("rebootd/machines/a1", b"garbage")])
        await start(leader)
        await eventually(lambda: "a1" in leader.fleet.asides)
        assert leader.fleet.asides["a1"].rack == "r1"


async def test_a_lost_rack_lock_is_taken_again_before_the_permit() -> None:
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    async with lab.leader() as leader:
        await drained(lab, leader, host)
        first = leader.fleet.rack_records["r1"].session
        await lab.store.destroy_session(first)
        await eventually(lambda: leader.fleet.rack_records["r1"].session != first)
        assert leader.fleet.rack_lock("r1").holder == "ours"
        assert (await host.ask(leader)).granted


async def test_a_foreign_rack_lock_keeps_everybody_in() -> None:
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    async with lab.leader() as leader:
        await host.join(leader)
        session = await lab.store.create_session("engineer")
        await lab.store.commit([Lock("rebootd/racks/r1/.lock", b"mine", session)])
        await eventually(lambda: leader.fleet.rack_lock("r1").holder == "other")
        await start(leader)
        await eventually(lambda: "rack-lock" in {b.kind for b in leader.decision().reasons.get("a1", ())})
        assert record(leader, "a1").state is State.IN_SERVICE
        await lab.store.destroy_session(session)
        await host.until(leader, "drained")


async def test_a_store_that_denies_blocks_and_alarms_and_deposes_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    monkeypatch.setattr("rebootd.coordinator.leader.DENIED_RETRY", 0.2)
    async with lab.leader() as leader:
        await host.join(leader)
        lab.store.faults.denied = ("rebootd/machines/",)
        await start(leader)
        await eventually(lambda: "denied" in leader.fleet.faults)
        assert record(leader, "a1").state is State.IN_SERVICE
        lab.store.faults.denied = ()
        await host.until(leader, "drained")
        assert "denied" not in leader.fleet.faults


async def test_orphaned_lock_sessions_are_collected() -> None:
    lab = Lab({"r1": ["a1"]})
    await lab.store.ensure_lock_node("rebootd-locks")
    orphan = await lab.store.create_session("rebootd/racks", node="rebootd-locks")
    foreign = await lab.store.create_session("somebody", node="rebootd-locks")
    async with lab.leader():
        left = {s.id for s in await lab.store.sessions(node="rebootd-locks")}
    assert orphan not in left
    assert foreign in left


async def test_a_policy_that_cannot_be_read_stops_what_goes_out() -> None:
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    async with lab.leader() as leader:
        await host.join(leader)
        lab.consul.apply([Set("rebootd/policy", b"racks: [")])
        await eventually(lambda: "policy" in leader.fleet.faults)
        await start(leader)
        await asyncio.sleep(0.2)
        assert record(leader, "a1").state is State.IN_SERVICE
        host.reboot()
        await host.join(leader)
        lab.consul.apply([Delete("rebootd/policy")])
        await eventually(lambda: not leader.fleet.faults)

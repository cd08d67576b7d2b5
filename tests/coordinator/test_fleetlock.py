"""The leader in the place of agents: FleetLock clients of one rack and of two, under leaders that change."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from rebootd.coordinator import fleetlock
from rebootd.coordinator.drains import nomad as room
from rebootd.core.model import Machine, State
from rebootd.core.operations import clear_quarantine, halt, hold, release, unhalt
from rebootd.core.operations_inputs import Because
from rebootd.core.wire import Tri
from rebootd.store.port import Set
from tests.coordinator.lab import Host, Lab, eventually, record, start
from tests.coordinator.lock_lab import BECAUSE, ON, RACKS, back, leading, permit, policy, pre, served
from tests.coordinator.test_nomad_room import Scripted


async def test_from_the_first_call_to_the_reboot_and_back() -> None:
    lab = Lab(RACKS)
    async with leading(lab) as leader:
        assert (await back(leader, "a1")).granted
        await eventually(lambda: record(leader, "a1").state is State.IN_SERVICE)
        first = record(leader, "a1")
        assert (first.rack, first.labels["fleetlock"], first.permit) == ("r1", "default", None)
        word = await pre(leader, "a1")
        assert (word.granted, word.state) == (True, "rebooting"), word
        assert 55 < word.valid_for <= 60
        given = permit(leader, "a1")
        assert given.boot_id == first.boot_id == record(leader, "a1").boot_id
        # Asked again, as a client does that heard nothing: the same permit, and not another one.
        assert (await pre(leader, "a1")).granted
        assert permit(leader, "a1") == given
        assert (await back(leader, "a1")).granted
        await eventually(lambda: record(leader, "a1").state is State.IN_SERVICE)
        after = record(leader, "a1")
        assert after.boot_id != first.boot_id
        assert (after.boots, after.permit, after.planned) == ((first.boot_id,), None, False)
        assert after.outcomes == {"fleetlock": "rebooted"}
        version = after.version
        assert (await back(leader, "a1")).granted
        assert record(leader, "a1").version == version
        assert not [e for k, e in lab.consul.entries.items() if k.endswith("/.lock") and e.session]


@pytest.mark.parametrize("other", ["a2", "b1"])
async def test_one_waits_for_the_other(other: str) -> None:
    """Of one rack the limit holds it, of another rack the number of open racks."""
    lab = Lab(RACKS)
    async with leading(lab) as leader:
        await served(leader, "a1", other)
        assert (await pre(leader, "a1")).granted
        refused = await pre(leader, other)
        assert (refused.granted, refused.kind) == (False, "limit" if other == "a2" else "racks")
        assert "a1" in refused.why
        assert record(leader, other).state is State.IN_SERVICE
        assert (await back(leader, "a1")).granted
        # Its wish was remembered: it is taken out without being asked again, and waits for its client.
        await eventually(lambda: record(leader, other).state is State.DRAINED)
        assert record(leader, other).permit is None
        assert (await pre(leader, other)).granted
        await served(leader, other)
        assert [m.boots != () for m in leader.fleet.machines.values()] == [True, True]


async def test_every_leader_goes_on_where_the_last_one_died() -> None:
    lab = Lab(RACKS)
    async with leading(lab) as leader:
        await served(leader, "a1", "a2")
        assert (await pre(leader, "a1")).granted
        given = permit(leader, "a1")
        assert not (await pre(leader, "a2")).granted
    async with leading(lab) as leader:
        assert record(leader, "a1").state is State.REBOOTING
        assert not (await pre(leader, "a2")).granted
        # The answer of the dead leader may have been lost: the client asks again, and no second permit is made.
        assert (await pre(leader, "a1")).granted
        assert permit(leader, "a1").nonce == given.nonce
    async with leading(lab) as leader:
        assert (await back(leader, "a1")).granted
        await eventually(lambda: record(leader, "a2").state is State.DRAINED)
    async with leading(lab) as leader:
        # A drain is brought back by halts and limits, not by a new leader.
        assert (await pre(leader, "a2")).granted
    async with leading(lab) as leader:
        await served(leader, "a2", "a1")
    boots = [leader.fleet.machines[name].boots for name in ("a1", "a2")]
    assert [len(b) for b in boots] == [1, 1]


async def test_a_client_that_is_back_by_itself_withdraws_its_wish() -> None:
    lab = Lab(RACKS)
    async with leading(lab) as leader:
        await served(leader, "a1", "a2")
        assert (await pre(leader, "a1")).granted
        assert not (await pre(leader, "a2")).granted
        assert (await back(leader, "a2")).granted
        assert record(leader, "a2").fleetlock.asked == 0  # type: ignore[union-attr]  # it has a client
        await served(leader, "a1")
        await asyncio.sleep(0.3)
        assert (record(leader, "a2").state, record(leader, "a2").cycle) == (State.IN_SERVICE, "")
        # Drained, and then back without a reboot: it comes back as it went.
        await policy(leader, ON + "permit: {valid: 1s}\n")
        assert (await pre(leader, "a1")).granted
        assert not (await pre(leader, "a2")).granted
        assert (await back(leader, "a1")).granted
        await eventually(lambda: record(leader, "a2").state is State.DRAINED)
        assert (await back(leader, "a2")).granted
        await eventually(lambda: record(leader, "a2").state is State.IN_SERVICE)
        assert record(leader, "a2").boots == ()


async def test_a_wish_that_nobody_repeats_is_forgotten() -> None:
    lab = Lab(RACKS)
    async with leading(lab, ON.replace("true", "true, wish: 1s")) as leader:
        await served(leader, "a1", "a2")
        assert (await pre(leader, "a1")).granted
        assert not (await pre(leader, "a2")).granted
        await eventually(lambda: record(leader, "a2").reboot_required.value == "no")
        await served(leader, "a1")
        assert record(leader, "a2").state is State.IN_SERVICE


async def test_a_hold_keeps_it_and_says_so() -> None:
    lab = Lab(RACKS)
    async with leading(lab) as leader:
        await served(leader, "a1")
        await leader.apply(lambda s: hold(s, "machine", "a1", Because(by="eve", reason="new disk")))
        await eventually(lambda: record(leader, "a1").state is State.HELD)
        for word in (await pre(leader, "a1"), await back(leader, "a1")):
            assert (word.granted, word.kind) == (False, "hold")
            assert "by eve: new disk" in word.why
        await leader.apply(lambda s: release(s, "machine", "a1", BECAUSE))
        await served(leader, "a1")


async def test_a_halt_keeps_it_in_and_never_out() -> None:
    lab = Lab(RACKS)
    async with leading(lab) as leader:
        await served(leader, "a1", "b1")
        assert (await pre(leader, "a1")).granted
        await leader.apply(lambda s: halt(s, Because(by="eve", reason="fire")))
        assert (await pre(leader, "b1")).kind == "halt"
        # Its permit is good until it ends, which nobody renews.
        assert (await pre(leader, "a1")).granted
        assert (await back(leader, "a1")).granted
        await eventually(lambda: record(leader, "a1").state is State.IN_SERVICE)
        await leader.apply(lambda s: unhalt(s, BECAUSE))
        assert (await pre(leader, "b1")).granted


async def test_who_never_came_back_is_quarantined_until_a_person_looks() -> None:
    lab = Lab(RACKS)
    async with leading(lab, ON + "deadlines: {rebooting: 1s}\n") as leader:
        await served(leader, "a1", "b1")
        assert (await pre(leader, "a1")).granted
        await eventually(lambda: record(leader, "a1").state is State.QUARANTINED)
        assert (await pre(leader, "b1")).kind == "cycle"
        word = await back(leader, "a1")
        assert (word.granted, word.kind) == (False, "quarantine")
        assert record(leader, "a1").permit is None
        assert len(record(leader, "a1").boots) == 1
        await leader.apply(lambda s: clear_quarantine(s, "a1", BECAUSE))
        await served(leader, "a1")
        assert len(record(leader, "a1").boots) == 1


async def test_a_cycle_takes_it_when_its_client_asks_and_does_not_wait_for_it() -> None:
    lab, host = Lab(RACKS), Host("b1")
    async with leading(lab) as leader:
        await served(leader, "a1", "a2")
        await host.join(leader)
        await start(leader, "k1")
        await eventually(lambda: record(leader, "b1").state is State.DRAINING)
        assert "fleetlock" in [b.kind for b in leader.decision().reasons["a1"]]
        assert record(leader, "a1").state is State.IN_SERVICE
        living = asyncio.create_task(host.live(leader))
        await eventually(lambda: leader.fleet.cycles["k1"].state.value == "done")
        assert leader.fleet.cycles["k1"].totals == {"selected": 3, "rebooted": 1, "failed": 0, "skipped": 2}
        living.cancel()
        # What its kernel is nobody knows, so a target is neither reached nor missed.
        await start(leader, "k2", selector="fleetlock", target="kernel=6")
        assert (await pre(leader, "a1")).granted
        await served(leader, "a1")
        assert record(leader, "a1").outcomes.get("k2") is None


async def test_back_is_not_said_before_it_is_in_the_store() -> None:
    lab = Lab(RACKS)
    async with leading(lab) as leader:
        await served(leader, "a1", "a2")
        assert (await pre(leader, "a1")).granted
        assert not (await pre(leader, "a2")).granted
        lab.store.faults.delay = 0.02
        for name in ("a2", "a1"):
            # Somebody writes the record: our next step is refused, and made anew on what stands there now.
            key = f"rebootd/machines/{name}"
            entry = lab.consul.entries[key]
            await lab.store.commit([Set(key=key, value=entry.value + b" ", cas=entry.modify_index)])
            assert (await back(leader, name)).granted
            kept = msgspec.json.decode(lab.value(f"machines/{name}"), type=Machine)
            assert kept.fleetlock is not None
            assert (kept.fleetlock.asked, kept.permit, kept.reboot_required) == (0.0, None, Tri.NO)


async def test_who_soaks_is_back_and_is_not_waited_for() -> None:
    lab = Lab(RACKS)
    async with leading(lab, ON + "soak: 10m\n") as leader:
        assert (await back(leader, "a1")).state == "enabling"
        async with asyncio.timeout(3):
            assert (await pre(leader, "a1")).kind == "soak"
            assert (await back(leader, "a1")).granted


async def test_its_nomad_client_is_drained_before_it_may_go(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("LOOK", 0.02), ("REST", 0.02), ("LIST", 0.05), ("LIST_SOON", 0.02)):
        monkeypatch.setattr(room, name, seconds)
    monkeypatch.setattr(fleetlock, "PATIENCE", 0.5)
    lab = Lab({"r1": ["m1"]})
    nomad = Scripted(lab, "m1")
    async with lab.leader(nomad=nomad) as leader:
        await policy(leader, ON + 'drains: {nomad: {machines: "*", deadline: 1m, patience: 1s}}\n')
        await served(leader, "m1")
        word = await pre(leader, "m1")
        assert (word.granted, word.kind) == (False, "nomad")
        assert "web.web[0]" in word.why
        assert record(leader, "m1").permit is None
        nomad.ends.set()
        await eventually(lambda: record(leader, "m1").state is State.DRAINED)
        assert (await pre(leader, "m1")).granted
        await served(leader, "m1")
        assert nomad.known["n-m1"].eligible

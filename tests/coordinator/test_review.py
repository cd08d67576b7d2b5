"""What a reader of the coordinator suspected: what must not be lost, loop, or cost the leadership."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from rebootd.coordinator.redfish import Redfish
from rebootd.core.errors import NotLeader, Refused
from rebootd.core.model import PowerCycle, State
from rebootd.core.operations import forget
from rebootd.core.operations_inputs import Because
from rebootd.store.memory_faults import LOST_REPLY, Fate
from rebootd.store.port import Delete, Lock, Set
from tests.coordinator.lab import Host, Lab, eventually, record, start

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rebootd.store.port import Op


async def test_each_rack_that_was_open_leaves_no_session_behind() -> None:
    racks = {f"r{n}": [f"a{n}"] for n in range(6)}
    lab, hosts = Lab(racks), [Host(f"a{n}") for n in range(6)]
    async with lab.leader() as leader:
        await asyncio.gather(*(h.join(leader) for h in hosts))
        await start(leader)
        tasks = [asyncio.create_task(h.live(leader)) for h in hosts]
        await eventually(lambda: leader.fleet.cycles["k1"].state.value == "done")
        await eventually(lambda: not any(leader.fleet.lock_holders))
        await asyncio.sleep(0.2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        left = await lab.store.sessions(node="rebootd-locks")
    assert len(left) <= 2


async def test_two_denied_writes_of_no_machine_stop_what_goes_out_and_make_no_storm() -> None:
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    async with lab.leader() as leader:
        await host.join(leader)
        lab.store.faults.denied = ("rebootd/cycles/",)
        for name in ("k1", "k2", "k3"):
            ends = b'{"id":"%s","selector":"kernel=none","created":1}' % name.encode()
            lab.consul.apply([Set(f"rebootd/cycles/{name}", ends)])
        await eventually(lambda: "denied" in leader.fleet.faults)
        tries = 0

        def count(_: Sequence[Op]) -> Fate | None:
            nonlocal tries
            tries += 1
            return None

        lab.store.faults.choose = count
        await asyncio.sleep(1.0)
        assert tries < 40
        assert "denied" in leader.fleet.faults


async def test_what_is_old_and_may_not_be_deleted_is_an_alarm_and_keeps_nobody_in() -> None:
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    ended = b'{"id":"%s","start":1,"end":2}'
    async with lab.leader() as leader:
        await host.join(leader)
        lab.store.faults.denied = ("rebootd/windows/",)
        for name in ("w1", "w2", "w3"):
            lab.consul.apply([Set(f"rebootd/windows/{name}", ended % name.encode())])
        await eventually(lambda: len(leader.snapshot().alarms) == 3)
        assert all("windows/" in alarm and "Permission denied" in alarm for alarm in leader.snapshot().alarms)
        tries = 0

        def count(_: Sequence[Op]) -> Fate | None:
            nonlocal tries
            tries += 1
            return None

        lab.store.faults.choose = count
        await asyncio.sleep(0.5)
        assert tries == 0, "they are tried again, but not at every tick"
        assert not leader.fleet.faults
        await start(leader)
        await host.until(leader, "drained")
        for name in ("w1", "w2", "w3"):
            lab.consul.apply([Delete(f"rebootd/windows/{name}")])
        await eventually(lambda: not leader.snapshot().alarms)


async def test_what_is_old_is_deleted_once_that_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rebootd.coordinator.work.DENIED_REST", 0.2)
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    async with lab.leader() as leader:
        await host.join(leader)
        lab.store.faults.denied = ("rebootd/windows/",)
        lab.consul.apply([Set("rebootd/windows/w1", b'{"id":"w1","start":1,"end":2}')])
        await eventually(lambda: len(leader.snapshot().alarms) == 1)
        lab.store.faults.denied = ()
        await eventually(lambda: not leader.snapshot().alarms)
        assert "rebootd/windows/w1" not in lab.consul.entries


async def test_a_rack_record_that_can_be_read_again_ends_its_alarm() -> None:
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    async with lab.leader() as leader:
        await host.join(leader)
        lab.consul.apply([Set("rebootd/racks/r1/record", b"oops")])
        await eventually(lambda: bool(leader.fleet.alarms))
        lab.consul.apply([Set("rebootd/racks/r1/record", b'{"rack":"r1"}')])
        await eventually(lambda: not leader.fleet.alarms)


async def test_epochs_go_on_when_their_key_is_lost() -> None:
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    for _ in range(3):
        async with lab.leader() as leader:
            last = leader.epoch
    async with lab.leader() as leader:
        await host.join(leader)
        last = leader.epoch
    for damage in (Delete("rebootd/epoch"), Set("rebootd/epoch", b"oops"), Set("rebootd/epoch", b'{"epoch":"x"}')):
        lab.consul.apply([damage])
        async with lab.leader() as leader:
            assert leader.epoch > last
            last = leader.epoch
            host.reboot()
            await host.join(leader)


async def test_a_lock_that_landed_keeps_its_session_when_its_record_was_edited_since() -> None:
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    async with lab.leader() as leader:
        await host.join(leader)
        sends = 0

        def lose(ops: Sequence[Op]) -> Fate | None:
            nonlocal sends
            if not any(isinstance(op, Lock) and "racks/" in op.key for op in ops):
                return None
            sends += 1
            if sends == 2:
                for key in ("machines/a1", "racks/r1/record"):
                    lab.consul.apply([Set(f"rebootd/{key}", lab.value(key) + b" ")])
            return LOST_REPLY if sends == 1 else None

        lab.store.faults.choose = lose
        await start(leader)
        await host.until(leader, "drained")
        assert sends >= 2
        first = leader.fleet.rack_records["r1"].session
        assert (await host.ask(leader)).granted
        assert leader.fleet.rack_records["r1"].session == first
        assert sends == 2


async def test_who_is_looked_up_while_leadership_ends_is_let_go_at_once() -> None:
    lab, host = Lab({"r1": ["a1"]}), Host("late")
    async with lab.leader() as leader:
        lab.consul.register_node("late", {"rack": "r1"})
        lab.store.faults.delay = 0.3
        asking = asyncio.create_task(host.report(leader, wait=50.0))
        await asyncio.sleep(0.05)
        leader.reception.close()
    began = time.monotonic()
    with pytest.raises(NotLeader):
        await asking
    assert time.monotonic() - began < 2


async def test_a_lock_delay_makes_no_storm() -> None:
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    async with lab.leader() as leader:
        await host.join(leader)
        session = await lab.store.create_session("engineer", lock_delay=2.0)
        await lab.store.commit([Lock("rebootd/racks/r1/.lock", b"mine", session)])
        await eventually(lambda: leader.fleet.rack_lock("r1").holder == "other")
        await start(leader)
        sends = 0

        def count(ops: Sequence[Op]) -> Fate | None:
            nonlocal sends
            sends += any(isinstance(op, Lock) for op in ops)
            return None

        lab.store.faults.choose = count
        await lab.store.destroy_session(session)
        await asyncio.sleep(1.5)
        assert record(leader, "a1").state is State.IN_SERVICE
        assert sends < 20
        await host.until(leader, "drained")


async def test_what_the_store_calls_a_bad_request_is_dropped_and_deposes_nobody() -> None:
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    async with lab.leader() as leader, asyncio.timeout(10):
        await host.join(leader)
        tries = 0

        def bad(ops: Sequence[Op]) -> Fate | None:
            nonlocal tries
            if any("windows/" in op.key for op in ops):
                tries += 1
                raise Refused("PUT /v1/txn: 400 bad request")
            return None

        lab.store.faults.choose = bad
        lab.consul.apply([Set("rebootd/windows/w1", b'{"id":"w1","start":1,"end":2}')])
        await eventually(lambda: tries > 0)
        host.reboot()
        await host.join(leader)
        tries = 0
        await asyncio.sleep(1.0)
        assert tries < 30


@pytest.mark.parametrize("rack", ["row 3/7", "..", "r" * 200, "r\n7"])
async def test_a_rack_that_is_no_name_is_unknown(rack: str) -> None:
    lab, hosts = Lab({rack: ["a1"], "": ["a2"]}), [Host("a1"), Host("a2")]
    async with lab.leader() as leader, asyncio.timeout(10):
        await hosts[0].join(leader)
        answer = await hosts[1].report(leader, rack=rack)
        while answer.state != "in-service":
            if answer.directive is not None:
                hosts[1].done(answer)
            answer = await hosts[1].report(leader, rack=rack, wait=1.0)
        await start(leader)
        await eventually(lambda: "no-rack" in {b.kind for b in leader.decision().reasons.get("a2", ())})
        assert {b.kind for b in leader.decision().reasons["a1"]} == {"no-rack"}


async def test_a_machine_whose_record_is_too_large_makes_no_storm() -> None:
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    async with lab.leader() as leader, asyncio.timeout(10):
        await host.join(leader)
        tries = 0

        def count(_: Sequence[Op]) -> Fate | None:
            nonlocal tries
            tries += 1
            return None

        lab.store.faults.choose = count
        await host.report(leader, labels={"x": "y" * 500_000})
        before = leader.fleet.index["rebootd/machines/a1"]
        ticks = 0
        prepare = leader._locks.prepare

        async def counted() -> None:
            nonlocal ticks
            ticks += 1
            await prepare()

        leader._locks.prepare = counted  # type: ignore[method-assign]
        await asyncio.sleep(1.0)
        assert leader.fleet.index["rebootd/machines/a1"] == before
        assert ticks < 40


async def test_an_estimate_that_may_not_be_written_deposes_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rebootd.coordinator.forecasts.LOOK", 0.05)
    monkeypatch.setattr("rebootd.coordinator.forecasts.EVERY", 0.1)
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    lab.consul.apply([Set("rebootd/policy", b"windows: {required: true}")])
    async with lab.leader() as leader, asyncio.timeout(10):
        await host.join(leader)
        lab.consul.apply([Set("rebootd/control/halt", b"x")])
        lab.store.faults.denied = ("rebootd/cycles/",)
        lab.consul.apply([Set("rebootd/cycles/k1", b'{"id":"k1","selector":"*","created":1}')])
        lab.consul.apply([Set("rebootd/policy", b"{}"), Delete("rebootd/control/halt")])
        await eventually(lambda: "denied" in leader.fleet.faults)
        await asyncio.sleep(1.0)
        host.reboot()
        await host.join(leader)


async def test_a_controller_whose_answer_comes_in_pieces_is_understood(tmp_path: Path) -> None:
    said = b'{"Members": [{"@odata.id": "/redfish/v1/Systems/1"}], "x": "' + b"y" * 5000 + b'"}'

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in (said[:100], said[100:]):
            await response.write(piece)
            await asyncio.sleep(0.1)
        return response

    app = web.Application()
    app.router.add_get("/redfish/v1/Systems", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    address = f"http://127.0.0.1:{runner.addresses[0][1]}"
    secret = tmp_path / "bmc"
    secret.write_text("user\npassword\n")
    asked = PowerCycle(machine="a1", boot_id="b", address=address, since=0, changed=0)
    outcome = await Redfish(secret).restart(asked, lambda: "")
    await runner.cleanup()
    assert "Systems/1" in outcome.detail


async def test_a_forgotten_machine_takes_its_conflict_and_its_clock_with_it() -> None:
    lab, hosts, twin = Lab({"r1": ["a1", "a2"]}), [Host("a1"), Host("a2")], Host("a2", machine_id="twin")
    async with lab.leader() as leader:
        await asyncio.gather(*(h.join(leader) for h in hosts))
        await hosts[1].report(leader, clock=time.time() - 9999)
        with pytest.raises(Refused):
            await twin.report(leader)
        assert leader.snapshot().conflicts
        await leader.apply(lambda s: forget(s, "a2", Because()))
        assert not leader.snapshot().conflicts
        await asyncio.sleep(0.2)
        assert "a2" not in leader.fleet.machines
        leader._clock._looked = float("-inf")
        await eventually(lambda: "a2" not in leader.reception.offsets)
        await twin.join(leader)
        assert record(leader, "a2").machine_id == "twin"


async def test_a_folder_is_no_record() -> None:
    lab, host = Lab({"r1": ["a1"]}), Host("a1")
    for folder in ("machines/", "cycles/", "windows/", "holds/machine/", "holds/rack/", "power/", "racks/r1/"):
        lab.consul.apply([Set(f"rebootd/{folder}", b"")])
    async with lab.leader() as leader:
        await host.join(leader)
        assert not leader.fleet.asides
        assert not leader.fleet.alarms
        assert not leader.snapshot().rack_holds


async def test_a_record_that_may_not_be_read_again_deposes_nobody() -> None:
    lab, hosts = Lab({"r1": ["a1", "a2"]}), [Host("a1"), Host("a2")]
    async with lab.leader() as leader, asyncio.timeout(10):
        await asyncio.gather(*(h.join(leader) for h in hosts))
        lab.consul.apply([Set("rebootd/machines/a1", lab.value("machines/a1") + b" ")])
        lab.store.faults.unreadable = ("rebootd/machines/a1",)
        hosts[0].reboot()
        await hosts[0].report(leader)
        await asyncio.sleep(0.3)
        hosts[1].reboot()
        await hosts[1].join(leader)
        lab.store.faults.unreadable = ()
        await hosts[0].join(leader)

"""Out-of-band power against an emulator of Redfish, run as a process of its own (sushy-tools, its fake driver)."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from rebootd.coordinator.redfish import Outcome, Redfish
from rebootd.core.model import PowerCycle, PowerState
from rebootd.core.operations_inputs import Because
from rebootd.core.operations_policy import apply_policy
from tests.coordinator.lab import Host, Lab, eventually, record, start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rebootd.coordinator.leader import Leader

EMULATOR = Path(sys.executable).with_name("sushy-emulator")
needs_emulator = pytest.mark.skipif(not EMULATOR.exists(), reason="sushy-tools is not installed: no Redfish emulator")
USER, PASSWORD = "rebootd", "s3cret"
UUIDS = {f"m{n}": f"27946b59-9e44-4fa7-8e91-f3527a1ef09{n}" for n in range(1, 6)}
"""A system for each test that restarts one, since that takes the fake driver up to 11 seconds; m5 stays on."""
POLICY = """
settle: 0
unreachable_after: 500ms
deadlines: {{rebooting: 500ms, verifying: 1m, enabling: 1m, draining: 1m, drained: 1m}}
failures: {{power: {{address: "http://{{meta.bmc}}", system: "{{name}}", after: 0s, per_hour: {per_hour}}}}}
"""


class Emulator:
    """Several systems behind one controller that wants credentials."""

    def __init__(self, folder: Path, port: int) -> None:
        import bcrypt

        self.address = f"http://127.0.0.1:{port}"
        hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
        (folder / "htpasswd").write_text(f"{USER}:{hashed}\n")
        systems = [
            {"uuid": uuid, "name": name, "power_state": "On", "external_notifier": False, "nics": []}
            for name, uuid in UUIDS.items()
        ]
        config = folder / "emulator.conf"
        config.write_text(
            f"SUSHY_EMULATOR_LISTEN_IP = '127.0.0.1'\nSUSHY_EMULATOR_LISTEN_PORT = {port}\n"
            f"SUSHY_EMULATOR_FAKE_DRIVER = True\nSUSHY_EMULATOR_STATE_DIR = {str(folder)!r}\n"
            f"SUSHY_EMULATOR_AUTH_FILE = {str(folder / 'htpasswd')!r}\nSUSHY_EMULATOR_FAKE_SYSTEMS = {systems!r}\n"
        )
        self._log = (folder / "emulator.log").open("wb")
        self.process = subprocess.Popen(
            [str(EMULATOR), "--config", str(config), "--fake"], stdout=self._log, stderr=self._log
        )

    async def state(self, name: str) -> str:
        """The PowerState of one system."""
        headers = {"Authorization": f"Basic {b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}"}
        url = f"{self.address}/redfish/v1/Systems/{UUIDS[name]}"
        async with aiohttp.ClientSession(headers=headers) as session, session.get(url) as response:
            said = await response.json(content_type=None)
            return str(said["PowerState"])

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        self._log.close()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    emulator = Emulator(tmp_path_factory.mktemp("redfish"), free_port())
    yield emulator
    emulator.stop()


@pytest.fixture
async def emulator(running: Emulator) -> Emulator:
    """Ready to answer."""
    async with asyncio.timeout(20):
        while True:
            try:
                await running.state("m5")
                return running
            except aiohttp.ClientError:
                assert running.process.poll() is None, "the emulator has ended"
            await asyncio.sleep(0.1)


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    path = tmp_path / "credentials"
    path.write_text(f"{USER}\n{PASSWORD}\n")
    return path


def asked(address: str, **facts: Any) -> PowerCycle:
    given: dict[str, Any] = {"machine": "m1", "boot_id": "b1", "since": 1.0, "changed": 1.0, "system": "m1"}
    return PowerCycle(address=address, **(given | facts))


def nothing() -> str:
    return ""


# --- Redfish -----------------------------------------------------------------------------


@needs_emulator
async def test_one_system_is_restarted_and_no_other(emulator: Emulator, credentials: Path) -> None:
    outcome = await Redfish(credentials).restart(asked(emulator.address), nothing)
    assert outcome.sent, outcome.detail
    assert "ForceRestart accepted" in outcome.detail
    assert (await emulator.state("m1"), await emulator.state("m5")) == ("Off", "On")


@needs_emulator
@pytest.mark.parametrize(("name", "system"), [("m2", "M2"), ("m3", UUIDS["m3"].upper())])
async def test_a_system_is_found_by_name_and_by_uuid(
    emulator: Emulator, credentials: Path, name: str, system: str
) -> None:
    outcome = await Redfish(credentials).restart(asked(emulator.address, system=system), nothing)
    assert outcome.sent, outcome.detail
    assert await emulator.state(name) == "Off"


@needs_emulator
async def test_the_last_question_calls_it_off(emulator: Emulator, credentials: Path) -> None:
    outcome = await Redfish(credentials).restart(asked(emulator.address, system="m5"), lambda: "it has reported")
    assert outcome == Outcome(sent=False, detail="it has reported", cancelled=True)
    assert await emulator.state("m5") == "On"


@needs_emulator
@pytest.mark.parametrize(
    ("system", "secret", "why"),
    [("m9", PASSWORD, "has no system m9"), ("", PASSWORD, "has 5 systems"), ("m5", "wrong", "HTTP 401")],
)
async def test_what_does_not_work_is_said(
    emulator: Emulator, credentials: Path, system: str, secret: str, why: str
) -> None:
    credentials.write_text(f"{USER}\n{secret}\n")
    outcome = await Redfish(credentials).restart(asked(emulator.address, system=system), nothing)
    assert (outcome.sent, outcome.cancelled) == (False, False)
    assert why in outcome.detail
    assert await emulator.state("m5") == "On"


async def test_nobody_there_and_no_credentials(credentials: Path, tmp_path: Path) -> None:
    gone = await Redfish(credentials).restart(asked(f"http://127.0.0.1:{free_port()}"), nothing)
    assert not gone.sent
    assert "127.0.0.1" in gone.detail
    missing = await Redfish(tmp_path / "nothing").restart(asked("http://127.0.0.1:1"), nothing)
    assert "credentials" in missing.detail
    credentials.write_text("user only\n")
    half = await Redfish(credentials).restart(asked("http://127.0.0.1:1"), nothing)
    assert "the password on its second" in half.detail
    assert PASSWORD not in half.detail


async def serving(handle: Callable[[web.Request], Any]) -> tuple[web.AppRunner, str]:
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"Members": [{"@odata.id": "//evil.example/redfish/v1/Systems/1"}]}, "no path of Redfish"),
        ({"Members": [{"@odata.id": "http://evil.example/redfish/"}]}, "no path of Redfish"),
        ({"Members": "all"}, "has 0 systems"),
        ([], "has 0 systems"),
        ("not json", "has 0 systems"),
    ],
)
async def test_a_controller_that_answers_nonsense(credentials: Path, said: Any, why: str) -> None:
    async def handle(request: web.Request) -> web.Response:
        return web.json_response(said)

    runner, address = await serving(handle)
    outcome = await Redfish(credentials).restart(asked(address, system=""), nothing)
    await runner.cleanup()
    assert not outcome.sent
    assert why in outcome.detail


async def test_credentials_do_not_follow_a_redirect(credentials: Path) -> None:
    seen: list[str] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append(request.path)
        raise web.HTTPFound("/elsewhere")

    runner, address = await serving(handle)
    outcome = await Redfish(credentials).restart(asked(address), nothing)
    await runner.cleanup()
    assert "HTTP 302" in outcome.detail
    assert seen == ["/redfish/v1/Systems"]


# --- the leader --------------------------------------------------------------------------


async def hung(lab: Lab, leader: Leader, name: str, bmc: str, **more: Any) -> Host:
    """A machine that got its permit and was not heard of since."""
    lab.consul.register_node(name, {"rack": "r1", "bmc": bmc})
    await leader._follower.look_up()
    text = POLICY.format(per_hour=more.get("per_hour", 6))
    await leader.apply(lambda s: apply_policy(s, text, Because(by="test")))
    host = Host(name)
    await host.join(leader)
    await start(leader)
    await host.until(leader, "drained")
    assert (await host.ask(leader)).granted
    return host


def power(lab: Lab, name: str) -> PowerCycle:
    return msgspec.json.decode(lab.value(f"power/{name}"), type=PowerCycle)


def told(leader: Leader) -> list[str]:
    return [e.cause for e in leader.recent(1000) if e.kind == "power"]


@needs_emulator
async def test_a_machine_that_does_not_come_back_is_power_cycled(emulator: Emulator, credentials: Path) -> None:
    lab = Lab({"r1": ["m4"]})
    async with lab.leader(restarter=Redfish(credentials)) as leader:
        host = await hung(lab, leader, "m4", emulator.address.removeprefix("http://"))
        await eventually(lambda: "power cycle sent" in told(leader))
        assert await emulator.state("m4") == "Off"
        assert told(leader) == ["power cycle decided", "power cycle sent"]
        assert (power(lab, "m4").state, power(lab, "m4").boot_id) == (PowerState.SENT, "m4-boot-0")
        host.reboot()
        await host.join(leader)
        after = record(leader, "m4")
        assert (after.state.value, after.outcomes, after.unplanned) == ("in-service", {"k1": "rebooted"}, 0)


class Slow:
    """A controller that takes its time; ``before`` happens just before the last question."""

    def __init__(self, before: Callable[[], Any]) -> None:
        self.before = before
        self.asked = 0

    async def restart(self, record: PowerCycle, objection: Callable[[], str]) -> Outcome:
        self.asked += 1
        await self.before()
        why = objection()
        return Outcome(sent=not why, detail=why or "done", cancelled=bool(why))


@pytest.mark.parametrize("new_boot", [False, True])
async def test_a_machine_that_reports_meanwhile_is_left_alone(new_boot: bool) -> None:
    lab = Lab({"r1": ["m1"]})
    hosts: list[Host] = []

    async def reports() -> None:
        if new_boot:
            hosts[0].reboot()
        await hosts[0].report(leader)

    slow = Slow(reports)
    async with lab.leader(restarter=slow) as leader:
        hosts.append(await hung(lab, leader, "m1", "127.0.0.1:1"))
        await eventually(lambda: "power cycle cancelled" in told(leader))
        assert power(lab, "m1").state is PowerState.CANCELLED
        assert slow.asked == 1


async def test_the_next_leader_does_not_send_it_again() -> None:
    lab = Lab({"r1": ["m1"]})
    never = asyncio.Event()
    slow = Slow(never.wait)
    async with lab.leader(restarter=slow) as leader:
        await hung(lab, leader, "m1", "127.0.0.1:1")
        await eventually(lambda: slow.asked == 1)
    async with lab.leader(restarter=slow) as leader:
        await eventually(lambda: record(leader, "m1").state.value == "quarantined")
        assert "nobody knows whether it was sent" in record(leader, "m1").evidence
    assert slow.asked == 1


async def test_a_leader_without_credentials_says_so_and_quarantines() -> None:
    lab = Lab({"r1": ["m1"]})
    async with lab.leader() as leader:
        await hung(lab, leader, "m1", "127.0.0.1:1")
        await eventually(lambda: record(leader, "m1").state.value == "quarantined")
        assert "no credentials" in record(leader, "m1").evidence
        assert any("no credentials" in alarm for alarm in leader.snapshot().alarms)


async def test_an_unreadable_power_record_stops_power_cycles_of_that_boot() -> None:
    lab = Lab({"r1": ["m1"]})
    slow = Slow(asyncio.Event().wait)
    async with lab.leader(restarter=slow) as leader:
        from rebootd.store.port import Set

        await lab.store.commit([Set("rebootd/power/m1", b"what?")])
        await eventually(lambda: "m1" in leader.fleet.power)
        host = Host("m1")
        await host.join(leader)
        leader.fleet.power.clear()
        leader.fleet.index.pop("rebootd/power/m1")
        await lab.store.commit([Set("rebootd/power/m1", b"what??")])
        await eventually(lambda: "m1" in leader.fleet.power)
        assert leader.fleet.power["m1"].boot_id == "m1-boot-0"
        assert leader.fleet.power["m1"].state is PowerState.FAILED

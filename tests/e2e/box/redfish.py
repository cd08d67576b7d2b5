"""A Redfish controller for the box: sushy-tools with a driver that really has power over the hosts.

``python -m tests.e2e.box.redfish FOLDER``, in the box's network, answers for every machine of the box in ``FOLDER``.
"""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.e2e.box import agents
from tests.e2e.box.control import Box
from tests.e2e.box.plan import BMC_PORT, GATEWAY

if TYPE_CHECKING:
    from collections.abc import Iterator

RULE = "{address: 'http://{meta.bmc}', system: '{name}', after: 1s}"
"""The policy's ``failures.power``: one controller for all, which each machine's Consul node meta names."""
_ORDERS: dict[str, tuple[str, dict[str, bool]]] = {
    "On": ("on", {}),
    "ForceOn": ("on", {}),
    "ForceOff": ("cut", {}),
    "GracefulShutdown": ("off", {}),
    "ForceRestart": ("cut", {"again": True}),
    "PowerCycle": ("cut", {"again": True}),
}


@contextmanager
def controller(box: Box) -> Iterator[Path]:
    """The controller while the body runs; its log. It asks for the credentials that the daemons have."""
    import bcrypt  # comes with sushy-tools

    folder = box.folder / "redfish"
    folder.mkdir(exist_ok=True)
    hashed = bcrypt.hashpw(box.plan.bmc_password.encode(), bcrypt.gensalt(4)).decode()
    (folder / "htpasswd").write_text(f"{box.plan.bmc_user}:{hashed}\n")
    systems = [
        {"uuid": str(uuid.uuid4()), "name": host.name, "power_state": "On", "external_notifier": False, "nics": []}
        for host in box.plan.machines
    ]
    (folder / "emulator.conf").write_text(
        f"SUSHY_EMULATOR_LISTEN_IP = {GATEWAY!r}\nSUSHY_EMULATOR_LISTEN_PORT = {BMC_PORT}\n"
        f"SUSHY_EMULATOR_FAKE_DRIVER = True\nSUSHY_EMULATOR_STATE_DIR = {str(folder)!r}\n"
        f"SUSHY_EMULATOR_AUTH_FILE = {str(folder / 'htpasswd')!r}\nSUSHY_EMULATOR_FAKE_SYSTEMS = {systems!r}\n"
    )
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*box.within(), sys.executable, "-m", "tests.e2e.box.redfish", str(box.folder)],
            cwd=agents.TREE,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        _wait_answer(box, process, log)
        yield log
    finally:
        process.terminate()
        process.wait(10)


def resets(box: Box) -> int:
    """How often the controller was asked to reset a host since it was started."""
    return (box.folder / "redfish" / "log").read_bytes().count(b"ComputerSystem.Reset")


def _wait_answer(box: Box, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    words = [*box.within(), "curl", "-s", "-m", "2", "-o", "/dev/null", f"http://{GATEWAY}:{BMC_PORT}/redfish/v1/"]
    while subprocess.run(words, check=False).returncode:
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"no Redfish controller: {log.read_text(errors='replace')}")
        time.sleep(0.1)


def main() -> None:
    """sushy-tools' emulator with our power."""
    # Needed by this process alone; it ships no type information.
    from sushy_tools import error  # type: ignore[import-untyped]
    from sushy_tools.emulator import main as emulator  # type: ignore[import-untyped]
    from sushy_tools.emulator.resources.systems.fakedriver import FakeDriver  # type: ignore[import-untyped]

    folder = Path(sys.argv[1])
    box = Box(folder)

    def set_power_state(driver: Any, identity: str, state: str) -> None:
        if state not in _ORDERS:
            raise error.NotSupportedError(f"Power state {state} is not supported")
        order, more = _ORDERS[state]
        box.order(order, driver.name(identity), **more)

    FakeDriver.set_power_state = set_power_state
    FakeDriver.get_power_state = lambda driver, who: "On" if box.told(driver.name(who))["on"] else "Off"
    sys.argv[1:] = ["--config", str(folder / "redfish" / "emulator.conf"), "--fake"]
    sys.exit(emulator.main())


if __name__ == "__main__":
    main()

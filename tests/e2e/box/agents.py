"""rebootd on the hosts, installed as the README says: the program, the units of ``systemd/``, a token, an agent.yaml.

The program is the one file of ``make dist`` where one is given, else this tree with the libraries of the Python that
runs the tests, bound read-only into the hosts (a Python of another version cannot use its libraries).
"""

from __future__ import annotations

import compileall
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import TYPE_CHECKING

from tests.e2e.box import layers
from tests.e2e.box.plan import WEB_PORT
from tests.e2e.box.rootfs import NoBoxError, python

if TYPE_CHECKING:
    from tests.e2e.box.plan import BoxPlan, HostPlan

TREE = Path(__file__).resolve().parents[3]
PROGRAM = "usr/local/bin/rebootd"
_WRAPPER = """#!/usr/bin/python3 -I
import sys
sys.path[:0] = ["/opt/rebootd", "/opt/libraries"]
from rebootd.cli.main import packed
packed()
"""
# Each of the two makes systemd mount a /proc of its own for the service. In a container that one shows the boot_id of
# the machine below, which never changes.
_DROP_IN = "[Service]\nProtectKernelTunables=no\nProtectControlGroups=no\n"
_AGENT = "token_file: /etc/rebootd/token\ntarget: rebootd-in-service.target\nlabels: {{role: {role}}}\n"
_POWER = "[Service]\nLoadCredential=power:/etc/rebootd/power\nEnvironment=REBOOTD_POWER_CREDENTIALS=%d/power\n"
# How a drain waits for traffic to go: until no connection from elsewhere was seen on the port for as long as the load
# balancer may take to notice the out mark. The hook asks the service itself, which counts what others ask of it.
_WAIT = f"traffic_ports: [{WEB_PORT}]\ntraffic_wait: 3\ntraffic_timeout: 60\n"
_HOOK = f"""#!/usr/bin/python3 -I
import time
from urllib.request import urlopen
QUIET, PATIENCE = 3.0, 60.0
def answered():
    return int(urlopen("http://127.0.0.1:{WEB_PORT}/count", timeout=5).read())
start = last = time.monotonic()
before = answered()
while time.monotonic() - last < QUIET:
    time.sleep(0.1)
    now = answered()
    if now != before:
        before, last = now, time.monotonic()
    if last - start > PATIENCE:
        raise SystemExit("requests do not end")
print("no request for %g s, after %.1f s" % (QUIET, last - start))
"""


def program(layer: Path, one_file: Path | None) -> list[str]:
    """Puts the program into the layer of all hosts; returns what has to be bound into them besides."""
    if one_file is not None:
        layers.write(layer, PROGRAM, "")
        shutil.copy(one_file, layer / PROGRAM)
        (layer / PROGRAM).chmod(0o755)
        binds = []
    else:
        if sys.version_info[:2] != python():
            raise NoBoxError(
                f"the hosts have Python {python()}, the tests run on {sys.version_info[:2]}: use the one file"
            )
        layers.write(layer, PROGRAM, _WRAPPER, 0o755)
        # A copy, since the tree may change while the box runs.
        package = layer / "opt/rebootd/rebootd"
        shutil.copytree(TREE / "rebootd", package, ignore=shutil.ignore_patterns("__pycache__"))
        compileall.compile_dir(package, quiet=2, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH)
        binds = [f"{sysconfig.get_path('purelib')}:/opt/libraries"]
    layers.link(layer, "usr/local/bin/rebootctl", "rebootd")
    return binds


def _reception(layer: Path) -> None:
    """What keeps a host out of service from its first moment: the out mark beside Consul, target, logind's delay."""
    shipped = {
        "out-mark": "usr/local/lib/rebootd/out-mark",
        "consul.service.d/10-rebootd-out-mark.conf": f"{layers.SYSTEM}/consul.service.d/10-rebootd-out-mark.conf",
        "rebootd-in-service.target": f"{layers.SYSTEM}/rebootd-in-service.target",
        "logind.conf.d/10-rebootd.conf.example": "etc/systemd/logind.conf.d/10-rebootd.conf",
    }
    for source, path in shipped.items():
        text = (TREE / "systemd" / source).read_text(encoding="utf-8")
        layers.write(layer, path, text, 0o755 if source == "out-mark" else 0o644)


def install(layer: Path, plan: BoxPlan, host: HostPlan) -> None:
    """The daemon and the agent in a host's own layer."""
    units = [
        name
        for name, wanted in (("rebootd.service", host.daemon and not plan.nomad), ("rebootd-agent.service", host.agent))
        if wanted
    ]
    if not units:
        return
    layers.write(layer, "etc/rebootd/token", plan.token + "\n", 0o600)
    for name in units:
        layers.write(layer, f"{layers.SYSTEM}/{name}", (TREE / "systemd" / name).read_text(encoding="utf-8"))
    subprocess.run(["systemctl", "-q", f"--root={layer}", "enable", *units], check=True, capture_output=True)
    if host.daemon:
        layers.write(layer, "etc/rebootd/power", f"{plan.bmc_user}\n{plan.bmc_password}\n", 0o600)
        layers.write(layer, f"{layers.SYSTEM}/rebootd.service.d/10-power.conf", _POWER)
        by_token = (TREE / "systemd/rebootd.service.d/10-token.conf.example").read_text(encoding="utf-8")
        layers.write(layer, f"{layers.SYSTEM}/rebootd.service.d/10-token.conf", by_token)
    if host.agent:
        layers.write(layer, f"{layers.SYSTEM}/rebootd-agent.service.d/10-container.conf", _DROP_IN)
        layers.write(layer, "etc/rebootd/agent.yaml", _AGENT.format(role="web" if host.web else "consul"))
        _reception(layer)
    if host.agent and host.web:
        # Both ways that there are: a hook of one's own, and the agent's own wait.
        if host.number % 2:
            layers.write(layer, "etc/rebootd/drain.d/50-traffic", _HOOK, 0o755)
        else:
            layers.write(layer, "etc/rebootd/agent.d/10-traffic.yaml", _WAIT)

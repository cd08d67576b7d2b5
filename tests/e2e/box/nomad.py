"""Nomad on the hosts: servers beside Consul's, clients on the workers, and rebootd as the job that it ships."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.e2e.box import layers
from tests.e2e.box.agents import PROGRAM, TREE
from tests.e2e.box.rootfs import NoBoxError

if TYPE_CHECKING:
    from tests.e2e.box.control import Box
    from tests.e2e.box.plan import BoxPlan, HostPlan

DRIVER = os.environ.get("BOX_DRIVER", "exec")
"""How Nomad runs the daemons: ``raw_exec`` is for where ``exec`` cannot work."""
BINARY = "/opt/nomad/nomad"
JOB = "etc/nomad/rebootd.nomad.hcl"
# Nomad's exec driver writes to every controller, and systemd-nspawn binds those of cgroup v1 read-only.
_CGROUPS = """[Unit]
Description=make the controllers of cgroup v1 writable
DefaultDependencies=no
Before=nomad.service basic.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'for c in /sys/fs/cgroup/*/; do mount -o remount,bind,rw,nosuid,nodev,noexec "$$c" || true; done'
[Install]
WantedBy=multi-user.target
"""
# A client that registers before the servers have keys tries again only after 20 s.
_WAIT = (
    "ExecStartPre=/bin/sh -c 'while true; do for s in {servers}; do curl -sf -m 1"
    ' http://$$s:4646/v1/operator/keyring/keys | grep -q "\\"active\\"" && exit 0; done; sleep 0.2; done\'\n'
)
_UNIT = f"""[Unit]
Description=nomad
After=network-online.target consul.service
Wants=network-online.target consul.service
StartLimitIntervalSec=0
[Service]
{{wait}}ExecStart={BINARY} agent -config=/etc/nomad.json
Restart=always
RestartSec=1
KillSignal=SIGINT
KillMode=process
TimeoutStartSec=infinity
TimeoutStopSec=10
LimitNOFILE=65536
Delegate=yes
[Install]
WantedBy=multi-user.target
"""
# What the exec driver lays into a task's root: the default copies 310 MB for each task.
_LIBRARIES = f"/usr/lib/{os.uname().machine}-linux-gnu"
_CHROOT = {
    "/usr/bin/dash": "/bin/sh",
    _LIBRARIES: _LIBRARIES.removeprefix("/usr"),
    **{
        path: path
        for path in (
            *("/lib64", "/usr/bin/env", "/usr/bin/python3.11", "/usr/lib/python3.11", f"/{PROGRAM}"),
            *("/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/ssl/certs"),
        )
    },
}


def binary() -> Path | None:
    """Nomad itself: ``$NOMAD_BIN``, or on PATH; None where there is none, and the box goes without."""
    named = os.environ.get("NOMAD_BIN") or shutil.which("nomad")
    return Path(named) if named and Path(named).is_file() else None


def fetched(folder: Path) -> str:
    """What has to be bound into the hosts: a folder with Nomad in it, made in the box's own.

    Not the file alone: the exec driver starts itself through an overlay over the folder that it is in, where a file
    that was mounted there is an empty one.
    """
    program = binary()
    if program is None:
        raise NoBoxError("there is no nomad: name one with $NOMAD_BIN")
    (folder / "nomad").mkdir()
    shutil.copy(program, folder / "nomad")
    return f"{folder / 'nomad'}:{Path(BINARY).parent}"


def install(layer: Path, plan: BoxPlan, host: HostPlan) -> None:
    """Nomad in a host's own layer, where the plan wants one."""
    if not plan.nomad or not (host.consul_server or host.web):
        return
    servers = [server.address for server in plan.consul_servers]
    config: dict[str, Any] = {
        "name": host.name,
        "datacenter": "box",
        "data_dir": "/var/lib/nomad",
        "bind_addr": host.address,
        "leave_on_terminate": False,
        "disable_update_check": True,
        "log_level": "INFO",
        "consul": {"address": "127.0.0.1:8500"},
    }
    if host.consul_server:
        config["server"] = {
            "enabled": True,
            "bootstrap_expect": len(servers),
            "raft_multiplier": 1,
            "raft_protocol": 3,
            "server_join": {"retry_join": servers, "retry_interval": "1s"},
        }
    else:
        config["client"] = {
            "enabled": True,
            "servers": servers,
            "network_interface": "host0",
            "cpu_total_compute": 4000,
            "memory_total_mb": 4000,
            "meta": {"rack": host.rack},
            "chroot_env": _CHROOT,
            "options": {"fingerprint.denylist": "env_aws,env_gce,env_azure,env_digitalocean,cni,bridge"},
        }
        config["plugin"] = {"raw_exec": {"config": {"enabled": True}}}
    layers.write(layer, "etc/nomad.json", json.dumps(config, indent=1))
    wait = "" if host.consul_server else _WAIT.format(servers=" ".join(servers))
    layers.unit(layer, "nomad.service", _UNIT.format(wait=wait))
    layers.unit(layer, "cgroups-writable.service", _CGROUPS)
    if host.consul_server:
        layers.write(layer, JOB, (TREE / "nomad/rebootd.nomad.hcl").read_text(encoding="utf-8"))


def ready(box: Box) -> bool:
    """Whether a server leads and every client is ready."""
    nodes = ask(box, "/v1/nodes")
    return {n["Name"] for n in nodes if n["Status"] == "ready"} >= {h.name for h in box.plan.hosts if h.web}


def run_rebootd(box: Box, driver: str, **variables: str | int) -> str:
    """Runs the shipped job, or updates it; what ``nomad job run`` says."""
    given = {
        "datacenters": '["box"]',
        "driver": driver,
        # Both workers of a rack may be out at once, and the others must hold all daemons then.
        "per_rack": 2,
        "token_template": box.plan.token,
        "nomad_address": "http://${attr.unique.network.ip-address}:4646",
        "power_template": f"{box.plan.bmc_user}\n{box.plan.bmc_password}\n",
        **variables,
    }
    words = [word for name, value in given.items() for word in ("-var", f"{name}={value}")]
    host = box.plan.consul_servers[0]
    address = f"-address=http://{host.address}:4646"
    return box.run(host.name, BINARY, "job", "run", address, "-detach", *words, f"/{JOB}", timeout=60)


def ask(box: Box, path: str) -> Any:
    """What Nomad's API answers, of any server that does. Raises ``RuntimeError``."""
    for host in box.plan.consul_servers:
        with suppress(RuntimeError):
            return json.loads(box.run("lb", "curl", "-sf", "-m", "3", f"http://{host.address}:4646{path}"))
    raise RuntimeError(f"no Nomad server answers {path}")

"""Consul on the hosts: servers and clients, and the web service that clients register."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

from tests.e2e.box import layers
from tests.e2e.box.plan import BMC_PORT, GATEWAY, WEB_PORT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.box.plan import BoxPlan, HostPlan

PROGRAM = "/opt/bin/consul"
_UNIT = f"""[Unit]
Description=consul
After=network-online.target
Wants=network-online.target
StartLimitIntervalSec=0
[Service]
ExecStart={PROGRAM} agent -config-file=/etc/consul.json -config-dir=/etc/consul.d
Restart=always
RestartSec=1
TimeoutStopSec=10
LimitNOFILE=65536
[Install]
WantedBy=multi-user.target
"""


def install(layer: Path, plan: BoxPlan, host: HostPlan) -> None:
    """Consul in a host's own layer."""
    servers = [server.address for server in plan.consul_servers]
    config: dict[str, Any] = {
        "node_name": host.name,
        "datacenter": "box",
        "data_dir": "/var/lib/consul",
        "server": host.consul_server,
        "bind_addr": host.address,
        "client_addr": "0.0.0.0",
        "retry_join": servers,
        "retry_interval": "1s",
        # With true, the raft peers are one fewer at each reboot, and a client's marks are gone for a moment.
        "leave_on_terminate": False,
        "skip_leave_on_interrupt": True,
        "performance": {"raft_multiplier": 1},
        "dns_config": {"node_ttl": "0s", "allow_stale": True},
        "disable_update_check": True,
        "log_level": "INFO",
    }
    if host.consul_server:
        config["bootstrap_expect"] = len(servers)
    if host.stateless:
        # Drawn anew at each boot, an id would clash with the one that the catalog knows under this name.
        config["node_id"] = str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{host.name}.box"))
    if host.rack:
        config["node_meta"] = {"rack": host.rack, "bmc": f"{GATEWAY}:{BMC_PORT}"}
    layers.write(layer, "etc/consul.json", json.dumps(config, indent=1))
    layers.unit(layer, "consul.service", _UNIT)
    (layer / "etc/consul.d").mkdir(exist_ok=True)
    if host.web:
        check = {"id": "web", "http": f"http://127.0.0.1:{WEB_PORT}/health", "interval": "1s", "timeout": "1s"}
        service = {"name": "web", "port": WEB_PORT, "checks": [check]}
        layers.write(layer, "etc/consul.d/web.json", json.dumps({"service": service}))

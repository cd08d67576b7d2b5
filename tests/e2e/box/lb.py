"""HAProxy in front of the web services, fed by Consul DNS, set up so that it hides no lost request: no retries."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e.box import layers, web
from tests.e2e.box.plan import FRONT_PORT

if TYPE_CHECKING:
    from tests.e2e.box.plan import HostPlan

STATISTICS = """import socket
s = socket.socket(socket.AF_UNIX); s.connect("/run/haproxy.sock"); s.sendall(b"show stat\\n")
print(s.makefile().read())
"""
_CONFIG = f"""global
  stats socket /run/haproxy.sock mode 600 level admin
  maxconn 4000
defaults
  mode http
  timeout connect 500ms
  timeout client 10s
  timeout server 5s
  # Retries would hide what a reboot loses.
  retries 0
  no option redispatch
resolvers consul
  nameserver local 127.0.0.1:8600
  accepted_payload_size 8192
  resolve_retries 3
  timeout resolve 500ms
  timeout retry 500ms
  hold valid 500ms
  hold obsolete 0s
  # When Consul is down the pool stays as it was.
  hold nx 24h
  hold timeout 24h
  hold refused 24h
  hold other 24h
frontend front
  bind 0.0.0.0:{FRONT_PORT}
  default_backend web
backend web
  balance roundrobin
  # Connections that are kept idle would never let a host's sessions fall to zero.
  option http-server-close
  server-template web 12 _web._tcp.service.consul resolvers consul resolve-prefer ipv4 init-addr none
"""
_HAPROXY = """[Unit]
Description=haproxy
After=network-online.target consul.service
[Service]
Type=notify
ExecStart=/usr/sbin/haproxy -Ws -f /etc/haproxy/haproxy.cfg
KillMode=mixed
Restart=always
[Install]
WantedBy=multi-user.target
"""
_WEB = """[Unit]
Description=web service
# Not before rebootd has put this boot into service, and no longer than it leaves it there.
After=network-online.target rebootd-in-service.target
PartOf=rebootd-in-service.target
[Service]
ExecStart=/usr/bin/python3 -I /opt/bin/web.py
Restart=always
RestartSec=1
[Install]
WantedBy=rebootd-in-service.target
"""


def install(layer: Path, host: HostPlan) -> None:
    """The load balancer or the web service in a host's own layer."""
    if host.balancer:
        layers.write(layer, "etc/haproxy/haproxy.cfg", _CONFIG)
        layers.unit(layer, "haproxy.service", _HAPROXY)
    if host.web:
        layers.unit(layer, "web.service", _WEB, wanted_by="rebootd-in-service.target")
        layers.write(layer, "opt/bin/web.py", Path(web.__file__).read_text(encoding="utf-8"))


def servers_up(table: str) -> set[str]:
    """Addresses of the servers that get requests, of HAProxy's ``show stat``."""
    return {
        row["addr"].partition(":")[0]
        for row in _rows(table)
        if row["svname"].startswith("web") and row["addr"] and row["status"] in {"UP", "no check"}
    }


def hidden(table: str) -> dict[str, int]:
    """What HAProxy counts as trouble with its servers: connection and response errors, retries, redispatches."""
    backend = next(row for row in _rows(table) if row["pxname"] == "web" and row["svname"] == "BACKEND")
    return {name: int(backend[name] or 0) for name in ("econ", "eresp", "wretr", "wredis")}


def _rows(table: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table.removeprefix("# ").strip())))

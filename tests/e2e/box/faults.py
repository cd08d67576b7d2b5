"""What goes wrong in the box on purpose."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.e2e.box import nomad

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from tests.e2e.box.control import Box
    from tests.e2e.box.desk import Desk

OVERRIDE = "/etc/rebootd/agent.d/90-fault.yaml"
CHECKS = "/etc/rebootd/post-boot.d"


def kill(box: Box, host: str, unit: str) -> None:
    """SIGKILL to the main process of a unit; systemd starts it again."""
    box.run(host, "systemctl", "kill", "-s", "KILL", "--kill-whom=main", unit)


def kill_daemon(box: Box, host: str) -> None:
    """SIGKILL to the rebootd daemon of a host; whoever started it starts it again."""
    box.run(host, "pkill", "-KILL", "-f", "server --listen")


def reboot_unannounced(box: Box, host: str) -> None:
    """A reboot that asks nobody: not rebootd, and not logind, whose delay locks would be waited for."""
    box.run(host, "systemctl", "--no-block", "start", "reboot.target")


@contextmanager
def told(box: Box, hosts: Sequence[str], **settings: object) -> Iterator[None]:
    """Agents with other settings than usual while the body runs."""
    text = json.dumps(settings)
    for host in hosts:
        box.run(host, "sh", "-c", f"mkdir -p /etc/rebootd/agent.d && echo '{text}' > {OVERRIDE}")
        box.run(host, "systemctl", "restart", "rebootd-agent")
    try:
        yield
    finally:
        for host in hosts:
            box.run(host, "rm", "-f", OVERRIDE)
            box.run(host, "systemctl", "restart", "rebootd-agent")


def without_wait(box: Box) -> AbstractContextManager[None]:
    """Drains set the out mark, and wait for nothing."""
    webs = [host.name for host in box.plan.machines if host.web]
    return told(box, webs, hooks_dir="/none", traffic_ports=[], traffic_wait=0)


def slow_to_reboot(box: Box, host: str, seconds: float) -> AbstractContextManager[None]:
    """The host's agent takes so long between its permit and the reboot."""
    return told(box, [host], reboot_command=["sh", "-c", f"sleep {seconds:g}; exec systemctl reboot"])


@contextmanager
def slow_checks(box: Box, hosts: Sequence[str], seconds: float) -> Iterator[None]:
    """The hosts' checks after a boot take so long."""
    for host in hosts:
        write = f"mkdir -p {CHECKS} && printf '#!/bin/sh\\nsleep {seconds:g}\\n' > {CHECKS}/50-slow"
        box.run(host, "sh", "-c", f"{write} && chmod 755 {CHECKS}/50-slow")
    try:
        yield
    finally:
        for host in hosts:
            box.run(host, "rm", "-f", f"{CHECKS}/50-slow")


def hang_at_shutdown(box: Box, host: str, seconds: float) -> None:
    """The host's next shutdown waits so long for a unit that does not end."""
    unit = f"[Service]\nExecStart=/bin/sh -c 'trap : TERM; while :; do sleep 1; done'\nTimeoutStopSec={seconds:g}\n"
    write = "mkdir -p /run/systemd/system && cat > /run/systemd/system/hang.service"
    box.order("run", host, command=["sh", "-c", write], timeout=10, input=unit)
    box.run(host, "systemctl", "daemon-reload")
    box.run(host, "systemctl", "start", "hang.service")


@contextmanager
def cut_off(box: Box, hosts: Sequence[str]) -> Iterator[None]:
    """The cables of these hosts are pulled while the body runs."""
    for host in hosts:
        box.order("link", host, up=False)
    try:
        yield
    finally:
        for host in hosts:
            box.order("link", host, up=True)


@contextmanager
def frozen(box: Box, hosts: Sequence[str], unit: str) -> Iterator[None]:
    """A unit on these hosts stands still (SIGSTOP) while the body runs."""
    for host in hosts:
        box.run(host, "systemctl", "kill", "-s", "STOP", unit)
    try:
        yield
    finally:
        for host in hosts:
            box.run(host, "systemctl", "kill", "-s", "CONT", unit)


def lose_power(box: Box, hosts: Sequence[str]) -> None:
    """Power loss of several hosts at the same time."""
    with ThreadPoolExecutor(len(hosts)) as pool:
        list(pool.map(box.cut, hosts))


def cold_start(desk: Desk, timeout: float, *, traffic: bool = True, driver: str = "") -> dict[str, float]:
    """Power for all hosts at once: seconds until Consul leads, rebootd leads, all are in service, ``traffic`` flows.

    ``driver``: Nomad has no job yet; it is told to run rebootd with that driver once it is ready.
    """
    box, start, wall = desk.box, time.monotonic(), time.time()
    box.on()

    def received() -> set[str]:
        return {event.machine for event in desk.events() if event.to == "in-service" and event.time > wall}

    steps: dict[str, Callable[[], object]] = {
        "consul leads": lambda: _consul_leads(box),
        **({"nomad is ready": lambda: nomad.ready(box)} if box.plan.nomad else {}),
        "rebootd leads": desk.status,
        "all in service": lambda: received() == {host.name for host in box.plan.machines},
        "all get requests": lambda: len(desk.pool()) == sum(host.web for host in box.plan.hosts),
    }
    if not traffic:
        del steps["all get requests"]
    took = {}
    for name, question in steps.items():
        desk.until(question, name, timeout)
        took[name] = round(time.monotonic() - start, 1)
        if name == "nomad is ready" and driver:
            nomad.run_rebootd(box, driver)
    return took


def _consul_leads(box: Box) -> bool:
    host = box.plan.consul_servers[0].name
    return ":" in box.run(host, "curl", "-sf", "-m", "1", "http://127.0.0.1:8500/v1/status/leader")

"""What goes wrong in the box on purpose."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.e2e.box.plan import API_PORT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.e2e.box.control import Box
    from tests.e2e.box.desk import Desk

HOOK = "/etc/rebootd/drain.d/50-traffic"
SLOW_REBOOT = "/etc/rebootd/agent.d/slow.yaml"


def kill(box: Box, host: str, unit: str) -> None:
    """SIGKILL to the main process of a unit; systemd starts it again."""
    box.run(host, "systemctl", "kill", "-s", "KILL", "--kill-whom=main", unit)


def reboot_unannounced(box: Box, host: str) -> None:
    """A reboot that asks nobody: not rebootd, and not logind, whose delay locks would be waited for."""
    box.run(host, "systemctl", "--no-block", "start", "reboot.target")


@contextmanager
def without_wait(box: Box) -> Iterator[None]:
    """Drains set the out mark, and wait for nothing."""
    webs = [host.name for host in box.plan.machines if host.web]
    for host in webs:
        box.run(host, "chmod", "-x", HOOK)
    try:
        yield
    finally:
        for host in webs:
            box.run(host, "chmod", "+x", HOOK)


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


def reboot_slowly(box: Box, host: str, seconds: float) -> None:
    """From now on the host's agent takes so long between its permit and the reboot."""
    text = f"reboot_command: [sh, -c, 'sleep {seconds:g}; exec systemctl reboot']"
    box.run(host, "sh", "-c", f'mkdir -p /etc/rebootd/agent.d && echo "{text}" > {SLOW_REBOOT}')
    box.run(host, "systemctl", "restart", "rebootd-agent")


def reboot_promptly(box: Box, host: str) -> None:
    """The agent's own reboot command again."""
    box.run(host, "rm", "-f", SLOW_REBOOT)
    box.run(host, "systemctl", "restart", "rebootd-agent")


def cold_start(desk: Desk, timeout: float) -> dict[str, float]:
    """Power for all hosts at once: seconds until Consul leads, rebootd leads, all are in service, traffic flows."""
    box, start = desk.box, time.monotonic()
    box.on()
    steps: dict[str, Callable[[], object]] = {
        "consul leads": lambda: _consul_leads(box),
        "rebootd leads": desk.status,
        "all in service": lambda: list(desk.states().values()) == ["in-service"] * len(box.plan.machines),
        "all get requests": lambda: len(desk.pool()) == sum(host.web for host in box.plan.hosts),
    }
    took = {}
    for name, question in steps.items():
        desk.until(question, name, timeout)
        took[name] = round(time.monotonic() - start, 1)
    return took


def _consul_leads(box: Box) -> bool:
    host = box.plan.consul_servers[0].name
    return ":" in box.run(host, "curl", "-sf", "-m", "1", "http://127.0.0.1:8500/v1/status/leader")


def answers(box: Box, host: str) -> bool:
    """Whether the daemon of a host answers from inside it."""
    return bool(box.run(host, "curl", "-sf", "-m", "1", f"http://127.0.0.1:{API_PORT}/healthz", check=False))

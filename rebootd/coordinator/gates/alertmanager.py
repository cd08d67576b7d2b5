"""``alertmanager``: alerts that fire and match (Alertmanager's API v2, ``/api/v2/alerts``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from rebootd.core.gates import Firing

if TYPE_CHECKING:
    from rebootd.coordinator.gates.tools import Tools
    from rebootd.core.policy_gates import NoAlerts

SHOWN = ("instance", "job", "severity")


class _Status(msgspec.Struct, rename="camel"):
    state: str
    silenced_by: list[str] = []
    inhibited_by: list[str] = []


class _Alert(msgspec.Struct):
    labels: dict[str, str]
    status: _Status


async def read(test: NoAlerts, tools: Tools) -> Firing:
    """Raises ``Unreachable``."""
    params = [("active", "true"), ("silenced", "false"), ("inhibited", "false"), ("unprocessed", "true")]
    params += [("filter", matcher) for matcher in test.matchers]
    alerts = await tools.http_json(f"{test.address}/api/v2/alerts", list[_Alert], params, tools.bearer(test.address))
    return Firing(tuple(sorted(_name(a.labels) for a in alerts if _fires(a.status))))


def _fires(status: _Status) -> bool:
    # Asked for, and looked at again: a proxy between may have dropped a parameter.
    return status.state != "suppressed" and not status.silenced_by and not status.inhibited_by


def _name(labels: dict[str, str]) -> str:
    shown = ", ".join(f"{key}={labels[key]}" for key in SHOWN if key in labels)
    name = labels.get("alertname", "an alert")
    return f"{name} ({shown})" if shown else name

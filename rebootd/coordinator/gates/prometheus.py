"""``prometheus``: an instant query (Prometheus' page "HTTP API": ``/api/v1/query``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from rebootd.core.errors import Unreachable
from rebootd.core.gates import Samples

if TYPE_CHECKING:
    from rebootd.coordinator.gates.tools import Tools
    from rebootd.core.policy_gates import PrometheusQuery

MOST = 10_000
"""Series that an answer may have; a gate that needs more wants an aggregation."""
REFUSED = (400, 422, 503)
"""Statuses whose body is Prometheus' own account of what went wrong."""

Sample = tuple[float, str]


class _Series(msgspec.Struct):
    metric: dict[str, str]
    value: Sample


class _Data(msgspec.Struct, rename="camel"):
    result_type: str
    result: Any


class _Answer(msgspec.Struct, rename="camel"):
    status: str
    data: _Data | None = None
    error: str = ""
    warnings: list[str] = []


async def read(test: PrometheusQuery, tools: Tools) -> Samples:
    """Raises ``Unreachable``, also for a query that Prometheus refuses and for a partial answer."""
    said = await tools.http_json(
        f"{test.address}/api/v1/query", _Answer, [("query", test.query)], tools.bearer(test.address), also=REFUSED
    )
    if said.status != "success" or said.data is None:
        raise Unreachable(f"{test.address} refuses the query: {said.error or said.status}")
    if said.warnings:
        raise Unreachable(f"{test.address} answers in part only: {said.warnings[0]}")
    try:
        return Samples(_series(said.data))
    except (msgspec.ValidationError, ValueError) as error:
        raise Unreachable(f"{test.address}: the answer cannot be read: {error}") from error


def _series(data: _Data) -> tuple[tuple[str, float], ...]:
    if data.result_type == "scalar":
        return (("", float(msgspec.convert(data.result, Sample)[1])),)
    if data.result_type != "vector":
        raise ValueError(f"the query gives a {data.result_type}, not a vector or a number")
    found = msgspec.convert(data.result, list[_Series])
    if len(found) > MOST:
        raise ValueError(f"{len(found)} series, at most {MOST} are looked at")
    return tuple((_name(s.metric), float(s.value[1])) for s in found)


def _name(metric: dict[str, str]) -> str:
    labels = ", ".join(f'{k}="{v}"' for k, v in sorted(metric.items()) if k != "__name__")
    name = metric.get("__name__", "")
    return f"{name}{{{labels}}}" if labels else name

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from rebootd.agent.settings import validate
from rebootd.agent.traffic import Traffic, connections
from rebootd.core.errors import InvalidInput

if TYPE_CHECKING:
    from pathlib import Path

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
V4 = HEAD + "".join(
    f"  {n}: {row} 00000000:00000000 00:00000000 00000000     0        0 1 1 0000000000000000 100 0 0 10 0\n"
    for n, row in enumerate(
        [
            "00000000:1F90 00000000:0000 0A",  # 8080 listens
            "1F58580A:1F90 0258580A:D431 01",  # from the load balancer
            "1F58580A:1F90 0258580A:D432 06",  # over
            "1F58580A:1F90 0258580A:D433 08",  # half closed: an answer may be under way
            "0100007F:1F90 0100007F:A001 01",  # Consul's check
            "1F58580A:0016 0258580A:D434 01",  # ssh
        ]
    )
)
V6 = HEAD + "".join(
    f"  {n}: {local}:1F90 {remote}:D431 01 0 0 0 0 0 0\n"
    for n, (local, remote) in enumerate(
        [
            ("0000000000000000FFFF00001F58580A", "0000000000000000FFFF00000258580A"),
            ("0000000000000000FFFF00000100007F", "0000000000000000FFFF00000100007F"),
            ("00000000000000000000000001000000", "00000000000000000000000001000000"),
            ("000080FE00000000FF005450B6AA1CFE", "000080FE00000000FF005450B6AA1CFF"),
        ]
    )
)


async def always() -> bool:
    return True


def test_connections_from_elsewhere_are_counted(tmp_path: Path) -> None:
    four, six = tmp_path / "tcp", tmp_path / "tcp6"
    four.write_text(V4)
    six.write_text(V6)
    assert connections(frozenset({8080}), [four, six]) == 4
    assert connections(frozenset({22}), [four, six]) == 1
    assert connections(frozenset({8080, 22}), [four, tmp_path / "absent"]) == 3


async def test_it_waits_until_nobody_came_for_long_enough() -> None:
    seen = [3, 0, 0, 1, 0]
    loop = asyncio.get_running_loop()
    times = []

    def look(ports: frozenset[int]) -> int:
        times.append(loop.time())
        return seen.pop(0) if seen else 0

    assert not await Traffic([80], 0.3, 5, look).gone(always)
    assert times[-1] - times[3] >= 0.3, "counted from the last connection that was seen"


async def test_what_does_not_leave_is_named() -> None:
    problem = await Traffic([80, 443], 0.1, 0.2, lambda _: 7).gone(always)
    assert problem == "traffic has not left within 0.2 s: 7 connections on 80, 443"


async def test_what_cannot_be_counted_has_not_left() -> None:
    def look(ports: frozenset[int]) -> int:
        raise PermissionError(13, "Permission denied")

    assert "cannot be counted" in await Traffic([80], 0.1, 0.2, look).gone(always)


async def test_a_fixed_time_looks_at_nothing() -> None:
    def look(ports: frozenset[int]) -> int:
        raise AssertionError

    loop = asyncio.get_running_loop()
    start = loop.time()
    assert not await Traffic([], 0.2, 1, look).gone(always)
    assert loop.time() - start >= 0.19


@pytest.mark.parametrize("ports", [[], [80]])
async def test_no_time_passes_while_nobody_can_read_the_mark(ports: list[int]) -> None:
    """Short connections are not seen by looking: the wait must be one in which a load balancer can notice."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    away = asyncio.Event()

    async def shown() -> bool:
        if not 0.3 < loop.time() - start < 2.5:
            return True
        # A server that stands still answers nothing at all.
        await away.wait()
        return True

    assert not await Traffic(ports, 1.5, 30, lambda _: 0).gone(shown)
    assert loop.time() - start >= 2.5 + 1.0


async def test_a_mark_that_nobody_can_read_ends_the_wait_in_time() -> None:
    async def shown() -> bool:
        return False

    problem = await Traffic([], 1.2, 0.3, lambda _: 0).gone(shown)
    assert problem == "traffic has not left within 0.3 s: the out mark cannot be read in Consul"


@pytest.mark.parametrize(
    "values",
    [{"traffic_ports": [80]}, {"traffic_ports": [0], "traffic_wait": 3}, {"traffic_ports": ["x"], "traffic_wait": 3}],
)
def test_settings_that_make_no_sense(values: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        validate(values)


def test_settings() -> None:
    settings = validate({"traffic_ports": [80, 443], "traffic_wait": 5})
    assert settings.traffic_ports == (80, 443)

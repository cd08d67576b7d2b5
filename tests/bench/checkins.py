"""Check-ins per second at the leader beside a bare handler, in turns."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tests.bench.crowd import Crowd, Load
from tests.bench.figures import Figure, percentile
from tests.bench.fleet import bare, fleet

if TYPE_CHECKING:
    from tests.bench.fleet import Process

SHARE = 0.5
RACKS = 10


class _Turn(NamedTuple):
    rate: float
    cpu: float
    """Seconds of the server's CPU for one check-in."""


def run(machines: int = 200, rounds: int = 11, seconds: float = 1.2, connections: int = 32) -> list[Figure]:
    """Idle re-reports of known machines in service; leader and bare handler in turns, the median of the ratios."""
    ours: list[_Turn] = []
    theirs: list[_Turn] = []
    with fleet(machines, RACKS) as found, Crowd(machines) as crowd, bare(found.folder) as plain:
        leader = found.start()
        crowd.order("meet", host="127.0.0.1", port=leader.port)
        crowd.order("storm", reboot=True, checked=True)
        for number in range(-1, rounds):
            # Each goes first in every other pair, so that a machine that gets faster or slower favours neither.
            pair = [(plain.port, plain, theirs), (leader.port, leader.process, ours)]
            for port, server, turns in pair if number % 2 else reversed(pair):
                turn = _turn(crowd, port, server, connections, seconds)
                if number >= 0:  # the first pair warms both up
                    turns.append(turn)
    ratios = [a.rate / b.rate for a, b in zip(ours, theirs, strict=True)]
    ratio = percentile(ratios, 0.5)
    rates = [percentile([t.rate for t in turns], 0.5) for turns in (ours, theirs)]
    cpus = [percentile([t.cpu for t in turns], 0.5) * 1e6 for turns in (ours, theirs)]
    return [
        Figure(
            what="check-ins at the leader: idle re-reports of machines in service",
            value=f"{ratio:.2f} x ({rates[0]:.0f} per second)",
            beside=f"bare handler: {rates[1]:.0f} per second; {rounds} pairs in turns, {min(ratios):.2f} to "
            f"{max(ratios):.2f}; CPU for each: {cpus[0]:.0f} and {cpus[1]:.0f} µs",
            limit=f"at least {SHARE}",
            met=ratio >= SHARE,
        )
    ]


def _turn(crowd: Crowd, port: int, server: Process, connections: int, seconds: float) -> _Turn:
    crowd.order("meet", host="127.0.0.1", port=port)
    before = server.cpu()
    loads: list[Load] = crowd.order("check_in", connections=connections, seconds=seconds)
    used = server.cpu() - before
    return _Turn(sum(load.answered / load.seconds for load in loads), used / sum(load.answered for load in loads))

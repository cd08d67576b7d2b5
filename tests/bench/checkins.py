"""Check-ins per second at the leader beside a bare handler, in turns."""

from __future__ import annotations

import statistics

from tests.bench.crowd import Crowd, Load
from tests.bench.figures import Figure, percentile
from tests.bench.fleet import bare, fleet

SHARE = 0.5
RACKS = 10


def run(machines: int = 200, rounds: int = 5, seconds: float = 2.5, connections: int = 32) -> list[Figure]:
    """Idle re-reports of known machines in service; leader and bare handler in turns, the median of the ratios."""
    with fleet(machines, RACKS) as found, Crowd(machines) as crowd, bare(found.folder) as plain:
        leader = found.start()
        crowd.order("meet", host="127.0.0.1", port=leader.port)
        crowd.order("storm", reboot=True, checked=True)
        ours, theirs = [], []
        for number in range(-1, rounds):
            pair = []
            for port in (plain, leader.port):
                crowd.order("meet", host="127.0.0.1", port=port)
                loads: list[Load] = crowd.order("check_in", connections=connections, seconds=seconds)
                pair.append(sum(load.answered / load.seconds for load in loads))
            if number >= 0:  # the first pair warms both up
                theirs.append(pair[0])
                ours.append(pair[1])
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    ratio = percentile(ratios, 0.5)
    return [
        Figure(
            what="check-ins at the leader: idle re-reports of machines in service",
            value=f"{ratio:.2f} x ({statistics.median(ours):.0f} per second)",
            beside=f"bare handler: {statistics.median(theirs):.0f} per second; "
            f"{rounds} pairs in turns, {min(ratios):.2f} to {max(ratios):.2f}",
            limit=f"at least {SHARE}",
            met=ratio >= SHARE,
        )
    ]

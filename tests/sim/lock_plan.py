"""Which machines of a seed have a FleetLock client, when updates come to them, and what goes wrong with them.

Drawn from a source of chance of its own: seeds without such machines stay what they are.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.sim.plan import Plan

FLEETLOCK = "fleetlock"
"""The profile in which every seed has clients. It is asked for, never drawn: other seeds have them, too."""
SHARE = 0.2
"""Of all other seeds, this share has clients."""
FIRST = 30.0
LOCK_FAULTS = (
    "lossy", "slow", "repeats", "cut-agents", "cut-machine", "dns-away", "store-late", "store-loses", "store-twice",
    "store-away", "kill-leader", "kill-leader", "stop-leader", "fuse-leader", "hand-over", "kill-daemon",
    "ambush-kill", "ambush-kill", "ambush-lost", "ambush-late", "ambush-session", "ambush-halt", "ambush-hold",
    "ambush-policy", "ambush-lock", "kill-agent", "ambush-kill-client", "ambush-kill-client", "client-away",
    "client-away", "client-away", "stop-agent", "power-cut", "rack-power", "hang", "never", "stuck", "other-rack",
    "halt", "raw-halt", "hold", "hold-rack", "pause", "cancel", "start", "policy", "window-close", "clear",
    "rack-lock", "end-lock-session", "edit-record", "spoil",
)  # fmt: skip


def draw_clients(plan: Plan, policy: dict[str, Any]) -> None:
    """Gives some machines of some seeds clients, and lets them ask."""
    rng = random.Random(f"locks {plan.seed}")
    if plan.profile != FLEETLOCK and rng.random() >= SHARE:
        return
    names = [n for members in plan.racks.values() for n in members]
    chosen = rng.sample(names, max(2, round(len(names) * rng.choice([0.3, 0.5, 0.8]))))
    # Zincati calls itself by a number that the node's meta names; a client may as well use the node's name.
    plan.lock_clients = {name: rng.choice([name, f"{rng.getrandbits(128):032x}"]) for name in sorted(chosen)}
    policy["fleetlock"] = {"enabled": True, "wish": rng.choice(["2m", "5m", "15m"])}
    for name in plan.lock_clients:
        for _ in range(rng.choice([1, 2, 3])):
            plan.staged.append((round(rng.uniform(FIRST, plan.faults_for), 1), name))

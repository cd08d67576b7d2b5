"""The network of a box: a bridge in the plant's namespace, and each host's cable to it, which can be pulled."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from tests.e2e.box.plan import BRIDGE, GATEWAY

if TYPE_CHECKING:
    from collections.abc import Sequence


def lay() -> None:
    """The bridge, in the network namespace of the caller."""
    _ip("link", "set", "lo", "up")
    _ip("link", "add", BRIDGE, "type", "bridge", "stp_state", "0", "forward_delay", "0")
    _ip("address", "add", f"{GATEWAY}/24", "dev", BRIDGE)
    _ip("link", "set", BRIDGE, "up")


def plug(host: str, *, up: bool) -> bool:
    """Plugs a host's cable in or pulls it; False while the host has none, since it is off."""
    done = subprocess.run(["ip", "link", "set", f"vb-{host}", "up" if up else "down"], capture_output=True, check=False)
    return done.returncode == 0


def _ip(*words: str) -> Sequence[str]:
    subprocess.run(["ip", *words], check=True, capture_output=True)
    return words

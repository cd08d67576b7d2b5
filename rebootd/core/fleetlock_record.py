"""What is kept and heard of machines that ask for their reboots by FleetLock (see :mod:`rebootd.core.fleetlock`)."""

from __future__ import annotations

import msgspec

CYCLE = "fleetlock"
"""The id of the cycle that takes machines whose FleetLock clients ask for it: it is the policy's and never ends."""


class FleetLock(msgspec.Struct, frozen=True):
    """The FleetLock client of a machine without an agent.

    ``id`` is what it calls itself. ``asked`` is when it last asked for a reboot (0: it does not want one), ``called``
    when it last called at all; both are about right, since they are not written at each call.
    """

    id: str
    asked: float = 0.0
    called: float = 0.0


class Word(msgspec.Struct, frozen=True, kw_only=True):
    """What a FleetLock client is answered: ``granted``, or why not (``why``) and of which ``kind`` that is, in a word.

    Granted, and ``state`` with it, is said of what is committed. ``valid_for`` is how long (s) a permit is good.
    """

    granted: bool
    kind: str = ""
    why: str = ""
    state: str = ""
    valid_for: float = 0.0


class Call(msgspec.Struct, frozen=True):
    """A FleetLock client's request that waits for its answer: it is back (``steady``), or it asks for a reboot."""

    id: str
    group: str
    steady: bool = False

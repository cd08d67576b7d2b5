"""Every route of a daemon, in the order in which they are looked through. The one table: what it says is served,
guarded by role, and described in the OpenAPI document.
"""

from __future__ import annotations

from rebootd.api import audit, daemon, fleetlock, machines, operator, plans, stream

# Machine routes come first: they are nearly all of the traffic.
ROUTES = (
    *machines.ROUTES,
    *fleetlock.ROUTES,
    *stream.ROUTES,
    *operator.ROUTES,
    *plans.ROUTES,
    *audit.ROUTES,
    *daemon.ROUTES,
)

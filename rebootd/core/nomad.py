"""Nomad's words as frozen values: what a drain found before it began, and what was last read of Nomad's clients.

A *client* is Nomad's agent on one machine (Nomad's API says ``node``). Times are seconds since the Unix epoch on the
leader's clock, durations are seconds. Jobs are written ``<namespace>/<id>``.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

MARK = "rebootd"
"""The key in the metadata of a Nomad drain that says whose drain it is."""
WAS = "rebootd-was"
"""The key beside it: ``eligible`` or ``ineligible``, what the client was before."""


class NomadDrain(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine's Nomad client was before rebootd drained it, kept in the machine's record until it is so again.

    Committed before anything is asked of Nomad. ``node`` is the client's id, ``mark`` what our drain carries, so that
    it is told from others'. ``eligible``: it took new allocations, so it is given that back. ``foreign``: others were
    draining it; theirs is waited for and never undone. ``force``: after ``deadline`` Nomad stops what is left, else the
    drain has failed then. ``system`` are the system jobs that ran on it, ``services`` the service jobs, with how many
    allocations of each were running anywhere.
    """

    node: str
    mark: str
    since: float
    eligible: bool = False
    foreign: bool = False
    force: bool = False
    keep_system: bool = False
    deadline: float = 600.0
    system: tuple[str, ...] = ()
    services: dict[str, int] = {}


class NomadClient(msgspec.Struct, frozen=True, kw_only=True):
    """One Nomad client as its servers see it.

    ``mark`` and ``was`` are what the last drain carries if it is one of rebootd's; ``drain`` is how that last drain
    stands (``draining``, ``complete``, ``canceled``, ``""``: there was none).
    """

    id: str
    name: str
    status: str = "ready"
    datacenter: str = ""
    eligible: bool = True
    draining: bool = False
    drain: str = ""
    mark: str = ""
    was: str = ""
    index: int = 0


class NomadAlloc(msgspec.Struct, frozen=True, kw_only=True):
    """One allocation on a client. ``live``: its tasks run or may run; ``running``: they run, and are meant to."""

    name: str
    job: str
    type: str
    live: bool
    running: bool


class NomadService(msgspec.Struct, frozen=True):
    """One service job: how many allocations run anywhere, and how many it asks for."""

    running: int
    wanted: int


class NomadSeen(msgspec.Struct, frozen=True, kw_only=True):
    """What was last read of the Nomad side of one machine that is out, at ``at`` (0: nothing yet).

    ``error`` says why the latest reading failed. ``allocs`` None: not read. ``well_since`` is since when the client is
    as it was before with everything it is expected to run (0: it is not).
    """

    at: float = 0.0
    clients: tuple[NomadClient, ...] = ()
    allocs: tuple[NomadAlloc, ...] | None = None
    services: Mapping[str, NomadService] = {}
    error: str = ""
    well_since: float = 0.0


class NomadSight(msgspec.Struct, frozen=True, kw_only=True):
    """What a leader knows of Nomad. ``at`` is when all clients were last listed (0: never), ``error`` why the latest
    attempt failed. ``clients`` and ``seen`` are by machine; a machine's client is the one of its name in Nomad.
    """

    at: float = 0.0
    error: str = ""
    clients: Mapping[str, tuple[NomadClient, ...]] = {}
    seen: Mapping[str, NomadSeen] = {}


def client_of(clients: tuple[NomadClient, ...], node: str = "") -> NomadClient | str:
    """The one that is the machine's now, or a sentence that says why nobody can tell.

    A machine that lost its disk comes back as a new client, and the old one stays in Nomad as ``down`` for a while.
    ``node`` is preferred as long as it lives.
    """
    alive = [c for c in clients if c.status not in {"down", "disconnected"}]
    for client in alive:
        if client.id == node:
            return client
    if len(alive) > 1:
        return f"Nomad has {len(alive)} clients of its name: {', '.join(sorted(c.id[:8] for c in alive))}"
    if alive:
        return alive[0]
    if clients:
        return max(clients, key=lambda c: (c.id == node, c.index))
    return "Nomad has no client of its name"


def mark_of(prefix: str, machine: str, version: int) -> str:
    """What the drain of one step of one machine carries; ``prefix`` tells fleets apart that share a Nomad."""
    return f"{prefix}{machine}/{version}"

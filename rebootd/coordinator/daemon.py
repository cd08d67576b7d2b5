"""One daemon without its HTTP side: election, registration, and the leader while it leads."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from typing import TYPE_CHECKING

import msgspec
import structlog

from rebootd import __version__
from rebootd.consul.election import Election
from rebootd.coordinator.leader import Leader, LeaderSettings
from rebootd.coordinator.records import Keys, decode
from rebootd.coordinator.rooms import HAND_OVER, Means
from rebootd.core.errors import StoreError
from rebootd.core.model import Machine
from rebootd.core.own_host import LEAVING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rebootd.consul.leadership import Candidate, Leadership, Tuning
    from rebootd.coordinator.audit_file import AuditFile
    from rebootd.coordinator.desk import Desk
    from rebootd.coordinator.drains.nomad_api import NomadApi
    from rebootd.coordinator.gates.sight import Sight
    from rebootd.coordinator.metrics import Metrics
    from rebootd.coordinator.peers import Peers
    from rebootd.coordinator.redfish import Restarter
    from rebootd.coordinator.silences import Alerts
    from rebootd.core.decision import Decision
    from rebootd.core.model import Snapshot
    from rebootd.store.port import Store

ALONE = 60.0
"""Seconds after a hand-over in which a daemon that leads again takes it that nobody else can."""
DEFER = 5.0
"""Seconds that a daemon whose host is about to go down lets others take a leadership that is free."""
LOOK_OUT = 0.05
"""Seconds between two looks whether the desk is open."""

log = structlog.get_logger(__name__)


def new_id() -> str:
    """A write id: unique, so that a record tells whose write it was."""
    return uuid.uuid4().hex


class Daemon:
    """Competes for leadership and leads. Implements :class:`~rebootd.coordinator.desk.Office`.

    ``checks`` are the Consul checks that a leader's session hangs on. ``election_store`` is a client of its own for
    the election, so that its proofs never queue behind the leader's traffic. ``audit`` is closed when it ends.
    """

    def __init__(
        self,
        store: Store,
        candidate: Candidate,
        settings: LeaderSettings,
        metrics: Metrics,
        *,
        election_store: Store | None = None,
        checks: Sequence[str] = (),
        tuning: Tuning | None = None,
        wall: Callable[[], float] = time.time,
        ids: Callable[[], str] = new_id,
        rng: random.Random | None = None,
        sight: Sight | None = None,
        restarter: Restarter | None = None,
        nomad: NomadApi | None = None,
        peers: Peers | None = None,
        audit: AuditFile | None = None,
        alerts: Alerts | None = None,
    ) -> None:
        self._store = store
        self._candidate = candidate
        self._settings = settings
        self._metrics = metrics
        self._wall = wall
        self._ids = ids
        self._rng = rng or random.Random()
        self._means = Means(sight, restarter, nomad, peers, alerts)
        self._handed_over = float("-inf")
        self._audit = audit
        self._leader: Leader | None = None
        self._leadership: Leadership | None = None
        self._outlook: asyncio.Task[None] | None = None
        self.election = Election(
            election_store or store,
            Keys(settings.prefix).leader,
            candidate,
            self._lead,
            checks=checks,
            tuning=tuning,
            wall=wall,
            rng=self._rng,
            defers=self._defers,
        )

    async def run(self) -> None:
        """Until :meth:`stop`; raises only programming errors."""
        try:
            await self.election.run()
        finally:
            if self._outlook is not None:
                self._outlook.cancel()
            if self._audit is not None:
                await self._audit.close()

    async def stop(self) -> None:
        """Hands leadership over, if we have it, and ends :meth:`run`."""
        await self.election.stop()

    async def _lead(self, leadership: Leadership) -> None:
        self._metrics.elections.inc()
        now = asyncio.get_running_loop().time
        means = self._means
        if now() - self._handed_over < ALONE:
            # Nobody took over: then its own host goes while it leads itself.
            means = means._replace(peers=None)
        leader = Leader(
            self._store,
            leadership,
            self._settings,
            self._metrics,
            wall=self._wall,
            new_id=self._ids,
            jitter=self._rng.random,
            means=means,
            audit=self._audit,
        )
        self._leadership = leadership
        try:
            await leader.run(self._open)
        finally:
            self._leader = self._leadership = None
            if leadership.reason == HAND_OVER:
                self._handed_over = now()

    async def _defers(self) -> float:
        """How long (s) others are to go first: some time, if our host may go down at any moment."""
        if not self._candidate.node:
            return 0.0
        try:
            entry = await self._store.get(Keys(self._settings.prefix).machine(self._candidate.node))
            leaving = entry is not None and decode(entry.value, Machine).state in LEAVING
        except (StoreError, msgspec.MsgspecError):
            return 0.0
        return DEFER if leaving else 0.0

    def _open(self, leader: Leader) -> None:
        self._leader = leader

    @property
    def audit_file(self) -> AuditFile | None:
        """Where this daemon, leading or not, writes its part of the audit log."""
        return self._audit

    # --- the office ----------------------------------------------------------------------

    def desk(self) -> Desk | None:
        """The desk, if this daemon leads and may speak now."""
        if self._leader is None or self._leadership is None or not self._leadership.may_speak():
            return None
        return self._leader

    def leader_url(self) -> str:
        """The leader's url, if another daemon leads."""
        leader = self.election.leader
        return leader.url if leader is not None and leader.id != self._candidate.id else ""

    async def wait_leader(self, timeout: float) -> bool:
        """Waits until this daemon has a desk or knows another leader."""
        if self.desk() is not None or self.leader_url():
            return True
        if self._outlook is None or self._outlook.done():
            # One looks out for all: ten thousand parked requests must not look at their watch each tenth of a second.
            self._outlook = asyncio.create_task(self._look_out())
        until = asyncio.get_running_loop().time() + timeout
        await asyncio.wait({self._outlook}, timeout=timeout)
        if self._outlook.cancelled():
            # We are stopping: whoever waits here is better off when its connection ends, for then it asks another.
            await asyncio.sleep(until - asyncio.get_running_loop().time())
        return self.desk() is not None or bool(self.leader_url())

    async def _look_out(self) -> None:
        while self.desk() is None and not self.leader_url():
            # Between winning and an open desk lies the load of the fleet: nobody tells of its end but the desk itself.
            await self.election.wait_change(self.election.leader, LOOK_OUT)

    def describe(self) -> dict[str, object]:
        """This daemon in a few words."""
        leader = self._leader
        seen = self.election.leader
        return {
            "id": self._candidate.id,
            "url": self._candidate.url,
            "node": self._candidate.node,
            "version": __version__,
            "leading": leader is not None,
            "epoch": leader.epoch if leader is not None else 0,
            "leader": seen.id if seen is not None else "",
        }

    def look(self) -> tuple[Snapshot, Decision, int] | None:
        """What the metrics show: snapshot, decision, waiting agents; None while we do not lead."""
        leader = self._leader
        return (leader.snapshot(), leader.decision(), leader.waiting) if leader is not None else None

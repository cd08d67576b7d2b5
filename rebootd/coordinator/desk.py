"""What the HTTP side may ask of the leader: one narrow protocol, so that api never reaches inside.

A daemon that does not lead has no desk; :class:`Office` tells which daemon does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from rebootd.core.audit import Asked, Head
    from rebootd.core.decision import Change, Decision
    from rebootd.core.fleetlock_record import Call, Word
    from rebootd.core.forecast_told import Estimate, Forecast
    from rebootd.core.model import Cycle, Event, Snapshot
    from rebootd.core.wire import Answer, PermitAnswer, PermitRequest, Report


class AuditState(Protocol):
    """What :class:`rebootd.coordinator.audit.Chain` tells of itself."""

    @property
    def enabled(self) -> bool:
        """Whether any daemon of the fleet keeps an audit log."""
        ...

    @property
    def head(self) -> Head:
        """The last committed entry."""
        ...

    @property
    def broken(self) -> str:
        """What is wrong with the chain, or ``""``."""
        ...

    @property
    def problem(self) -> str:
        """Why this daemon cannot write its file, or ``""``."""
        ...


class Clients(Protocol):
    """Where FleetLock clients ask. Both methods may raise ``NotLeader``."""

    async def machine(self, client: str) -> str:
        """The machine that the client's id stands for. Raises ``Refused``."""
        ...

    async def ask(self, name: str, call: Call) -> Word:
        """What the machine's client is answered, within seconds."""
        ...


class Desk(Protocol):
    """The present leader, as its HTTP routes see it. Every method may raise ``NotLeader``."""

    epoch: int

    @property
    def audit(self) -> AuditState:
        """Where the audit chain stands."""
        ...

    @property
    def clients(self) -> Clients:
        """Where FleetLock clients ask."""
        ...

    def snapshot(self) -> Snapshot:
        """The fleet as the leader holds it now."""
        ...

    def decision(self) -> Decision:
        """The latest decision, made on a snapshot not older than the last tick."""
        ...

    async def forecast(self, cycle_id: str = "", extra: Cycle | None = None) -> Forecast:
        """What is expected of a cycle, of all cycles (``""``), or of ``extra``, which does not exist yet."""
        ...

    def estimate(self, cycle_id: str) -> Estimate | None:
        """The latest estimate of a running cycle (None: not yet). Asking keeps it about half a minute young."""
        ...

    def policy_text(self) -> tuple[str, int]:
        """The policy's YAML as stored (``""`` when there is none) and its index."""
        ...

    async def report(self, report: Report) -> Answer:
        """Takes a report and waits as it asks. Raises ``Refused`` (stale boot_id, identity conflict),
        ``InvalidInput``.
        """
        ...

    async def permit(self, request: PermitRequest) -> PermitAnswer:
        """Judges and commits a permit; returns only when the outcome is known."""
        ...

    async def apply(self, plan: Callable[[Snapshot], Change], asked: Asked | None = None) -> Change:
        """Runs ``plan`` on a fresh snapshot inside the leader's loop and commits what it returns.

        ``plan`` raises InvalidInput, NotFound or Refused to say no. A lost race is tried again on
        a fresh snapshot a few times. Raises ``Refused`` when it keeps losing. ``asked`` goes into the audit log.
        """
        ...

    def recent(self, limit: int) -> list[Event]:
        """The newest events, oldest first."""
        ...

    def follow(self, limit: int) -> AsyncIterator[Event]:
        """The newest ``limit`` events and then every new one, until the leader ends."""
        ...


class Office(Protocol):
    """Where the leader is: this daemon's desk, or another daemon's url."""

    def desk(self) -> Desk | None:
        """The desk if this daemon leads and may speak now, else None."""
        ...

    def leader_url(self) -> str:
        """The leader's url if another daemon leads, else ``""``."""
        ...

    async def wait_leader(self, timeout: float) -> bool:
        """Waits until some daemon leads; False after ``timeout`` seconds."""
        ...

    def describe(self) -> dict[str, object]:
        """This daemon in a few words for ``status``: id, url, node, version, leading, epoch."""
        ...

"""Silences in Alertmanager: made before a drain, ended when the machine is back, by this leader or by the next.

What there should be is read from the committed records, what there is from Alertmanager, and the difference is asked
for (:mod:`rebootd.core.silences`). Nothing is remembered, so a leader that died leaves nothing that the next one does
not see. An Alertmanager that does not answer holds up a drain for :data:`PATIENCE` at most, and the next ones not at
all until it answers again; ticks and returns never wait for it.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

import msgspec
import structlog

from rebootd.core.errors import RebootdError
from rebootd.core.policy_silences import Matcher
from rebootd.core.silences import Seen, asks, out_by_us, wanted

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebootd.coordinator.fleet import Fleet
    from rebootd.coordinator.gates.tools import Tools
    from rebootd.core.model import Machine
    from rebootd.core.silences import Ask

log = structlog.get_logger(__name__)

LOOK_EVERY = 15.0
"""Seconds between two looks at what Alertmanager has."""
PATIENCE = 1.0
"""Seconds that a drain waits for its silence."""
MINE = "rebootd"


class Alerts(Protocol):
    """What is asked of one Alertmanager. Every call raises a ``RebootdError``."""

    async def silences(self, address: str, owner: str) -> list[Seen]:
        """Those that ``owner`` made and that have not ended."""
        ...

    async def ask(self, address: str, owner: str, what: Ask) -> None:
        """Makes, extends or ends one."""
        ...


class _Matcher(msgspec.Struct, rename="camel"):
    name: str
    value: str
    is_regex: bool = False
    is_equal: bool = True


class _Status(msgspec.Struct):
    state: str


class _Silence(msgspec.Struct, rename="camel"):
    id: str
    created_by: str
    starts_at: datetime
    ends_at: datetime
    status: _Status
    matchers: list[_Matcher]


class Alertmanager:
    """The real :class:`Alerts` (Alertmanager's API v2); its token is found as those of gates are."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    async def silences(self, address: str, owner: str) -> list[Seen]:
        """As the protocol says."""
        url = f"{address}/api/v2/silences"
        rows = await self._tools.http_json(url, list[_Silence], (), self._tools.bearer(address))
        return [
            Seen(
                row.id,
                row.created_by.removeprefix(f"{owner} "),
                tuple(Matcher(m.name, m.value, m.is_regex, m.is_equal) for m in row.matchers),
                row.ends_at.timestamp(),
                row.starts_at.timestamp(),
            )
            for row in rows
            if row.status.state != "expired" and row.created_by.startswith(f"{owner} ")
        ]

    async def ask(self, address: str, owner: str, what: Ask) -> None:
        """As the protocol says."""
        headers, wish = self._tools.bearer(address), what.wanted
        if wish is None:
            await self._tools.send("DELETE", f"{address}/api/v2/silence/{what.id}", None, headers)
            return
        body = {
            **({"id": what.id} if what.id else {}),
            "matchers": [
                {"name": m.name, "value": m.value, "isRegex": m.regex, "isEqual": m.equal} for m in wish.matchers
            ],
            "startsAt": _stamp(what.starts),
            "endsAt": _stamp(what.ends),
            "createdBy": f"{owner} {wish.machine}",
            "comment": f"{wish.machine} is out of service by rebootd: {wish.comment}",
        }
        await self._tools.send("POST", f"{address}/api/v2/silences", body, headers)

    async def close(self) -> None:
        """Ends every connection."""
        await self._tools.close()


def _stamp(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class SilenceRoom:
    """Belongs to one leadership."""

    def __init__(
        self, fleet: Fleet, alerts: Alerts, may_speak: Callable[[], bool], *, wall: Callable[[], float]
    ) -> None:
        self._fleet = fleet
        self._may_speak = may_speak
        self._alerts = alerts
        self._wall = wall
        self._owner = f"{MINE} {fleet.keys.prefix}"
        self._poke = asyncio.Event()
        self._news = asyncio.Condition()
        self._until: dict[str, float] = {}
        self._ill = False

    def changed(self, before: Machine | None, machine: Machine) -> None:
        """A machine's record has landed."""
        if (before is not None and out_by_us(before)) != out_by_us(machine):
            self._poke.set()

    async def before_drain(self, name: str) -> None:
        """Returns when the machine has its silence, or will not get it in time."""
        if not self._fleet.policy.silences.address or self._ill:
            return
        try:
            async with asyncio.timeout(PATIENCE), self._news:
                await self._news.wait_for(lambda: self._ill or self._until.get(name, 0.0) > self._wall())
        except TimeoutError:
            # The next ones do not wait for what keeps silent; the next answer ends that.
            self._ill = True
            log.warning("drain-without-silence", machine=name)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._poke.clear()
            address = self._fleet.policy.silences.address
            if address:
                await self._reconcile(address)
            try:
                async with asyncio.timeout(LOOK_EVERY):
                    await self._poke.wait()
            except TimeoutError:
                continue
            if self._ill:
                # Machines come and go all the time: one that does not answer is not asked for each of them.
                await asyncio.sleep(PATIENCE)

    async def _reconcile(self, address: str) -> None:
        try:
            async with asyncio.timeout(LOOK_EVERY):
                seen = await self._alerts.silences(address, self._owner)
                wishes = wanted(self._fleet.machines, self._fleet.policy.silences)
                now = self._wall()
                until = {s.machine: s.ends for s in seen if s.machine in wishes}
                for what in asks(wishes, seen, now):
                    if what.wanted is None and not self._may_speak():
                        # Who may have been frozen takes machines for back that the next leader has taken out.
                        continue
                    await self._alerts.ask(address, self._owner, what)
                    if what.wanted is not None:
                        until[what.wanted.machine] = what.ends
                        await self._tell(until, ill=False)
                    log.info("silence", id=what.id, machine=what.wanted.machine if what.wanted else "", ends=what.ends)
        except (RebootdError, TimeoutError) as error:
            if not self._ill:
                log.warning("alertmanager-unreachable", address=address, error=str(error) or type(error).__name__)
            await self._tell({}, ill=True)
        else:
            await self._tell(until, ill=False)

    async def _tell(self, until: dict[str, float], *, ill: bool) -> None:
        async with self._news:
            self._until, self._ill = until, ill
            self._news.notify_all()

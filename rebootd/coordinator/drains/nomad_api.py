"""What is asked of Nomad, with its answers as the core's values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

import msgspec

from rebootd.core.errors import NotFound
from rebootd.core.nomad import MARK, WAS, NomadAlloc, NomadClient, NomadService

if TYPE_CHECKING:
    from rebootd.coordinator.drains.nomad_http import NomadHttp
    from rebootd.core.nomad import NomadDrain

PAGE = 500
"""Clients that are listed in one answer."""
RUNS = frozenset({"pending", "running", "unknown"})
"""Statuses of an allocation whose tasks run or may run (``unknown``: its client is away)."""


class NomadApi(Protocol):
    """All that a leader asks of Nomad. Every call raises a ``RebootdError``."""

    async def clients(self, name: str = "") -> list[NomadClient]:
        """Every client, or those of one name."""
        ...

    async def allocs(self, node: str) -> tuple[NomadAlloc, ...]:
        """The allocations of one client."""
        ...

    async def service(self, job: str) -> NomadService | None:
        """How one job (``<namespace>/<id>``) stands; None: there is none."""
        ...

    async def drain(self, drain: NomadDrain) -> None:
        """Begins the drain that the record tells of."""
        ...

    async def stop_drain(self, node: str, *, eligible: bool) -> None:
        """Ends the client's drain."""
        ...

    async def enable(self, node: str) -> None:
        """Makes the client eligible; refused by Nomad while anybody drains it."""
        ...

    async def close(self) -> None:
        """Ends every connection."""
        ...


class _LastDrain(msgspec.Struct, rename="pascal"):
    status: str = ""
    meta: dict[str, str] | None = None


class _Stub(msgspec.Struct, rename="pascal"):
    name: str
    status: str
    scheduling_eligibility: str
    id: str = msgspec.field(name="ID")
    datacenter: str = ""
    drain: bool = False
    last_drain: _LastDrain | None = None
    modify_index: int = 0


class _Job(msgspec.Struct, rename="pascal"):
    type: str


class _Alloc(msgspec.Struct, rename="pascal"):
    name: str
    namespace: str
    client_status: str
    desired_status: str
    job: _Job
    job_id: str = msgspec.field(name="JobID")


class _Group(msgspec.Struct, rename="pascal"):
    count: int | None = None


class _Wanted(msgspec.Struct, rename="pascal"):
    type: str
    stop: bool = False
    task_groups: list[_Group] | None = None


class _Counts(msgspec.Struct, rename="pascal"):
    running: int = 0


class _Summary(msgspec.Struct, rename="pascal"):
    summary: dict[str, _Counts]


class Nomad:
    """The real :class:`NomadApi`."""

    def __init__(self, http: NomadHttp) -> None:
        self._http = http

    async def clients(self, name: str = "") -> list[NomadClient]:
        """As the protocol says; in pages, since a client is a kilobyte and more."""
        params = {"per_page": str(PAGE)}
        if name:
            params["filter"] = f"Name == {msgspec.json.encode(name).decode()}"
        found: list[NomadClient] = []
        while True:
            rows, headers = await self._http.get("/v1/nodes", list[_Stub], params)
            found += [_client(row) for row in rows]
            following = headers.get("X-Nomad-NextToken", "")
            if not following:
                return found
            params["next_token"] = following

    async def allocs(self, node: str) -> tuple[NomadAlloc, ...]:
        """As the protocol says."""
        rows, _ = await self._http.get(f"/v1/node/{_part(node)}/allocations", list[_Alloc], {"namespace": "*"})
        return tuple(
            NomadAlloc(
                name=row.name,
                job=f"{row.namespace}/{row.job_id}",
                type=row.job.type,
                live=row.client_status in RUNS,
                running=row.client_status == "running" and row.desired_status == "run",
            )
            for row in rows
        )

    async def service(self, job: str) -> NomadService | None:
        """As the protocol says."""
        namespace, _, name = job.partition("/")
        path, params = f"/v1/job/{_part(name)}", {"namespace": namespace}
        try:
            wanted, _ = await self._http.get(path, _Wanted, params)
            counts, _ = await self._http.get(f"{path}/summary", _Summary, params)
        except NotFound:
            return None
        # A system job has no count: it is wanted once on every client that it fits.
        groups = [1 if wanted.type == "system" else g.count or 0 for g in wanted.task_groups or []]
        running = sum(c.running for c in counts.summary.values())
        return NomadService(running, 0 if wanted.stop else sum(groups))

    async def drain(self, drain: NomadDrain) -> None:
        """As the protocol says. Without ``force`` Nomad gets no deadline: it would stop what is left then."""
        spec = {
            "Deadline": round(drain.deadline * 1_000_000_000) if drain.force else 0,
            "IgnoreSystemJobs": drain.keep_system,
        }
        meta = {MARK: drain.mark, WAS: "eligible" if drain.eligible else "ineligible", "message": "rebootd"}
        await self._put_drain(drain.node, {"DrainSpec": spec, "MarkEligible": False, "Meta": meta})

    async def stop_drain(self, node: str, *, eligible: bool) -> None:
        """As the protocol says."""
        await self._put_drain(node, {"DrainSpec": None, "MarkEligible": eligible})

    async def enable(self, node: str) -> None:
        """As the protocol says."""
        body = {"NodeID": node, "Eligibility": "eligible"}
        await self._http.put(f"/v1/node/{_part(node)}/eligibility", body)

    async def _put_drain(self, node: str, body: dict[str, Any]) -> None:
        await self._http.put(f"/v1/node/{_part(node)}/drain", {"NodeID": node, **body})

    async def close(self) -> None:
        """Ends every connection."""
        await self._http.close()


def _part(text: str) -> str:
    return quote(text, safe="")


def _client(row: _Stub) -> NomadClient:
    last = row.last_drain
    meta = last.meta or {} if last is not None else {}
    return NomadClient(
        id=row.id,
        name=row.name,
        status=row.status,
        datacenter=row.datacenter,
        eligible=row.scheduling_eligibility == "eligible",
        draining=row.drain,
        drain=last.status if last is not None else "",
        mark=meta.get(MARK, ""),
        was=meta.get(WAS, ""),
        index=row.modify_index,
    )

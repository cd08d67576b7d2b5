"""Redfish in as much as rebootd needs: find one system behind a controller, and restart it by force.

Sources: DMTF DSP0266 (Redfish Specification) and the schema ComputerSystem, action ``ComputerSystem.Reset``.
"""

from __future__ import annotations

import asyncio
import ssl
from base64 import b64encode
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import aiohttp
import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rebootd.core.model import PowerCycle

MAX_BODY = 1_000_000
MAX_SYSTEMS = 32
"""So many systems behind one controller are looked at."""
SYSTEMS = "/redfish/v1/Systems"
RESET = "#ComputerSystem.Reset"


class Outcome(msgspec.Struct, frozen=True):
    """How it ended: ``sent`` (the controller took it, or nobody knows), ``cancelled``, or neither: it failed."""

    sent: bool
    detail: str
    cancelled: bool = False


class Restarter(Protocol):
    """Whoever can power-cycle a machine."""

    async def restart(self, record: PowerCycle, objection: Callable[[], str]) -> Outcome:
        """Power-cycles it unless ``objection``, asked right before, says why not. Raises nothing."""
        ...


class Redfish:
    """Plain HTTP with basic authentication. ``credentials`` is a file: the user, and below it the password."""

    def __init__(self, credentials: Path, *, ca: Path | None = None, timeout: float = 20.0) -> None:
        self._credentials = credentials
        self._ca = ca
        self._timeout = aiohttp.ClientTimeout(total=timeout, connect=5.0)

    async def restart(self, record: PowerCycle, objection: Callable[[], str]) -> Outcome:
        """Finds the system and its reset, asks once more, and sends it. One POST, never repeated."""
        try:
            headers, context = await asyncio.to_thread(self._prepare)
        except (OSError, ValueError) as error:
            return Outcome(sent=False, detail=f"the credentials cannot be used: {error}")
        posted = False
        try:
            connector = aiohttp.TCPConnector(ssl=context if context is not None else True)
            async with aiohttp.ClientSession(connector=connector, headers=headers, timeout=self._timeout) as session:
                target, kind = await _reset(session, record)
                why = objection()
                if why:
                    return Outcome(sent=False, detail=why, cancelled=True)
                posted = True
                await _call(session, "POST", record.address + target, {"ResetType": kind})
        except _NoSuchThing as error:
            return Outcome(sent=False, detail=str(error))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            said = f"{record.address}: {str(error) or type(error).__name__}"
            return Outcome(
                sent=posted, detail=f"no answer to the reset, it may have been done: {said}" if posted else said
            )
        return Outcome(sent=True, detail=f"{kind} accepted by {record.address}{target}")

    def _prepare(self) -> tuple[dict[str, str], ssl.SSLContext | None]:
        """Read anew each time: credentials are rotated while a leader lives."""
        lines = self._credentials.read_text(encoding="utf-8").splitlines()
        if len(lines) < 2 or not lines[0]:
            raise ValueError(f"{self._credentials} must have the user on its first line and the password on its second")
        context = ssl.create_default_context(cafile=str(self._ca)) if self._ca is not None else None
        token = b64encode(f"{lines[0]}:{lines[1]}".encode()).decode()
        return {"Authorization": f"Basic {token}"}, context


class _NoSuchThing(Exception):
    """The controller answered, and not with what is needed."""


async def _reset(session: aiohttp.ClientSession, record: PowerCycle) -> tuple[str, str]:
    """The path of the system's reset action and the type to ask for."""
    system = await _system(session, record)
    found = _get(system, "Actions", RESET)
    target = _path(found.get("target") if isinstance(found, dict) else None)
    allowed = found.get("ResetType@Redfish.AllowableValues") if isinstance(found, dict) else None
    # ForceRestart of a system that is off is an error on many controllers; On is what brings it up.
    wishes = ("On", "ForceOn") if system.get("PowerState") == "Off" else ("ForceRestart", "PowerCycle")
    kind = next((w for w in wishes if not isinstance(allowed, list) or w in allowed), None)
    if kind is None:
        raise _NoSuchThing(f"{record.address}{target} allows none of {', '.join(wishes)}")
    return target, kind


async def _system(session: aiohttp.ClientSession, record: PowerCycle) -> dict[str, Any]:
    listed = (await _call(session, "GET", record.address + SYSTEMS)).get("Members")
    members = [_path(m.get("@odata.id")) for m in listed if isinstance(m, dict)] if isinstance(listed, list) else []
    if not record.system and len(members) != 1:
        raise _NoSuchThing(f"{record.address} has {len(members)} systems: the policy must say which (power.system)")
    for member in members[:MAX_SYSTEMS]:
        system = await _call(session, "GET", record.address + member)
        names = {str(system.get(key, "")).casefold() for key in ("Id", "Name", "UUID")}
        if not record.system or record.system.casefold() in names:
            return system
    raise _NoSuchThing(f"{record.address} has no system {record.system}")


async def _call(
    session: aiohttp.ClientSession, method: str, url: str, body: dict[str, str] | None = None
) -> dict[str, Any]:
    # A redirect would carry the credentials to wherever it points.
    async with session.request(method, url, json=body, allow_redirects=False) as response:
        raw = b""
        while len(raw) < MAX_BODY and (more := await response.content.read(MAX_BODY - len(raw))):
            raw += more
        if response.status >= 300:
            raise _NoSuchThing(f"{url} answered HTTP {response.status}: {raw[:200].decode(errors='replace')}")
    if not raw:
        return {}
    try:
        said = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _NoSuchThing(f"{url} answered no JSON: {error}") from None
    return said if isinstance(said, dict) else {}


def _path(value: object) -> str:
    """A path on the controller itself; whatever it says, nothing is sent anywhere else."""
    if not isinstance(value, str) or not value.startswith("/redfish/") or urlsplit(value).netloc:
        raise _NoSuchThing(f"the controller names {str(value)[:80]!r}, which is no path of Redfish")
    return value


def _get(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value

"""Who proved to be somebody and asked for a change without a right to it stands in the audit log, however often."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from rebootd.coordinator import refusals
from rebootd.coordinator.audit_file import AuditFile
from rebootd.coordinator.refusals import Refusals
from rebootd.core.audit import Asked, Kind, Line
from rebootd.core.audit_verify import verify
from rebootd.core.caller import Caller
from rebootd.tls import follow
from tests.api.secure import secured
from tests.support.pki import Pki

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


async def eventually(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.01)


PERMIT = {"name": "r1m2", "boot_id": "b", "nonce": "n1"}
WRONG: list[tuple[str, str, str, str, Any]] = [
    ("viewer", "bob", "PUT", "/v1/halt", {}),
    ("viewer", "bob", "POST", "/v1/cycles", {"id": "k", "selector": "*"}),
    ("operator", "alice", "POST", "/v1/cycles", {"id": "k", "selector": "*", "emergency": True}),
    ("operator", "alice", "PUT", "/v1/policy", b"settle: 0\n"),
    ("machine", "r1m1", "POST", "/v1/machines/r1m2/permit", PERMIT),
    ("machine", "r1m1", "PUT", "/v1/halt", {}),
    ("admin", "carol", "POST", "/v1/machines/r1m2/report", {}),
]


@pytest.mark.parametrize("case", WRONG, ids=[f"{w[0]} {w[2]} {w[3]}" for w in WRONG])
async def test_a_change_without_a_right_to_it_is_told(case: tuple[str, str, str, str, Any], pki: Pki) -> None:
    role, name, method, path, body = case
    told: list[tuple[Asked, str]] = []
    async with secured(pki, turned_away=lambda asked, why: told.append((asked, why))) as api:
        status, said = await api.ask(pki.issue(role, name), method, path, body)
    assert status == 403
    ((asked, why),) = told
    assert (asked.caller.identity, asked.what, why) == (name, f"{method} {path}", said["error"])
    assert asked.caller.address == "127.0.0.1"


async def test_reading_nobody_and_unknown_paths_are_not(pki: Pki) -> None:
    told: list[Any] = []
    async with secured(pki, token="secret", turned_away=lambda *what: told.append(what)) as api:
        machine = pki.issue("machine", "r1m1")
        nobody = msgspec.structs.replace(machine, cert="", key="")
        assert (await api.ask(machine, "GET", "/v1/status"))[0] == 403
        assert (await api.ask(machine, "POST", "/v1/policy/diff", b"x"))[0] == 403
        assert (await api.ask(machine, "POST", "/v1/nothing"))[0] == 404
        assert (await api.ask(nobody, "PUT", "/v1/halt", {}))[0] == 401
    assert told == []


async def test_a_revoked_certificate_on_an_open_connection_is_named(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    import aiohttp

    from rebootd.tls.contexts import client_context
    from rebootd.tls.identity import SERVER_NAME
    from tests.support.pki import field

    monkeypatch.setattr(follow, "LOOK_EVERY", 0.02)
    told: list[tuple[Asked, str]] = []
    files = pki.issue("operator", "alice")
    async with secured(pki, turned_away=lambda asked, why: told.append((asked, why))) as api:
        context = client_context(files, field)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as client:

            async def halt() -> int:
                url = f"{api.url}/v1/halt"
                async with client.put(url, json={}, ssl=context, server_hostname=SERVER_NAME) as response:
                    return response.status

            assert await halt() == 200
            pki.revoke(files)
            await eventually(lambda: bool(api.tls.state.revoked))
            assert await halt() == 401
    ((asked, why),) = told
    assert (asked.caller.identity, asked.caller.role) == ("alice", "")
    assert why.endswith("of rebootd://operator/alice is revoked")


def asked_by(name: str) -> Asked:
    who = Caller(identity=name, kind="person", role="viewer", address="10.0.0.7")
    return Asked(caller=who, what="PUT /v1/halt")


async def test_a_flood_leaves_few_lines_and_a_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "WINDOW", 0.3)
    path = tmp_path / "d1.log"
    file = AuditFile(path, "d1", time.time)
    doors = Refusals(lambda: file, time.time)
    for _ in range(5000):
        doors.refused(asked_by("bob"), "needs the role operator")
    doors.refused(asked_by("eve"), "needs the role operator")

    def lines() -> list[Line]:
        return [msgspec.json.decode(raw, type=Line) for raw in path.read_bytes().splitlines()]

    await eventually(lambda: "left out" in lines()[-1].result)
    doors.refused(asked_by("bob"), "again")
    await file.close()
    doors.refused(asked_by("bob"), "after the end: in the log stream only")
    found = [line for line in lines() if line.kind is Kind.REFUSED]
    assert len(found) == refusals.LINES + 1 + 1 + 1
    (summary,) = [line for line in found if "left out" in line.result]
    assert (
        summary.result
        == f"{5000 - refusals.LINES} more refusals of person bob were left out; this was the last of them"
    )
    assert summary.who is not None
    assert summary.who.identity == "bob"
    assert {line.leader for line in found} == {"d1"}
    assert verify({"d1.log": path.read_bytes().splitlines(keepends=True)}, None).findings == ()


async def test_a_flood_of_many_identities_is_bounded_too(tmp_path: Path) -> None:
    path = tmp_path / "d1.log"
    file = AuditFile(path, "d1", time.time)
    doors = Refusals(lambda: file, time.time)
    for number in range(20 * refusals.IDENTITIES):
        for _ in range(20):
            doors.refused(asked_by(f"p{number}"), "no")
    await file.close()
    most = (refusals.IDENTITIES + 1) * refusals.LINES + 1
    assert len(path.read_bytes().splitlines()) == most

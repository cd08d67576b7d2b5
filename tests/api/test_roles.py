"""Every route and every role, tried over real TLS, and the page that tells of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rebootd.api import roles
from rebootd.api.table import ROUTES
from rebootd.core.caller import PEOPLE, Caller, Role
from rebootd.tls.contexts import client_context
from tests.api.secure import Secure, secured
from tests.support.pki import Pki, field

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

    from rebootd.api.route import Route

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
NAMES = {"name": "r1m1", "id": "k1", "rack": "r1", "kind": "machine", "verb": "pause"}
TOKEN = "correct-horse"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def contexts(pki: Pki) -> dict[str, ssl.SSLContext]:
    """What each column of the table shows."""
    shown: dict[str, ssl.SSLContext] = {
        role: client_context(pki.issue(role, "alice"), field) for role in roles.COLUMNS if role in PEOPLE
    }
    nobody = pki.server()
    return {
        **shown,
        "machine": client_context(pki.issue("machine", "r1m1"), field),
        "nobody": client_context(type(nobody)(ca=nobody.ca), field),
    }


@pytest.fixture
async def api(pki: Pki) -> AsyncIterator[Secure]:
    # With a token beside it, a handshake without a certificate succeeds: nobody gets as far as the routes.
    async with secured(pki, token=TOKEN) as api:
        yield api


def path_of(route: Route) -> str:
    return route.plain_path.format(**NAMES)


CELLS = [
    pytest.param(route, given, column, may, id=f"{column} {route.method} {route.plain_path} {given}".strip())
    for route in sorted(ROUTES, key=lambda r: (r.plain_path, r.method))
    for given in ("", *sorted(route.stricter))
    for column, may in zip(roles.COLUMNS, roles.cells(route, given), strict=True)
]


@pytest.mark.parametrize(("route", "given", "column", "may"), CELLS)
async def test_every_cell(
    route: Route, given: str, column: str, may: bool, api: Secure, contexts: dict[str, ssl.SSLContext]
) -> None:
    body: Any = None
    if given:
        wanted = {"id": "k9", "selector": "*", "reason": "a test"} if "cycles" in route.path else {}
        body = {**wanted, "emergency": True} if given != "force" else wanted
        body[given] = ["errors"] if given == "skip_gates" else True
    assert api.office.held is not None
    before = api.office.held.applied
    status, answer = await api.ask(contexts[column], route.method, path_of(route), body)
    if may:
        assert status not in {401, 403}, answer
        return
    assert status == (401 if column == "nobody" else 403), answer
    assert api.office.held.applied == before
    said = answer["error"] if "error" in answer else answer["value"]
    assert TOKEN not in said
    if column == "nobody":
        assert "certificate" in said
    else:
        # Both what is wanted and who asks stand in the answer.
        assert any(f"the role {least}" in said for least in (route.role, route.stricter.get(given)))
        assert "alice" in said or "r1m1" in said


def test_the_page_is_made_from_the_code() -> None:
    begin, end = "<!-- roles:begin -->\n", "<!-- roles:end -->"
    page = PAGE.read_text()
    table = page[page.index(begin) + len(begin) : page.index(end)]
    assert table == roles.table(), "put the output of `python -m rebootd.api.roles` between the marks"


def test_everybody_has_a_row_and_nobody_has_more_than_health() -> None:
    cells = dict(roles.rows())
    assert len(ROUTES) == len({(r.method, r.path) for r in ROUTES}) <= len(cells)
    assert [asked for asked, may in cells.items() if may[0]] == ["GET /healthz"]
    for asked, (_, machine, *people) in cells.items():
        assert people == sorted(people), f"{asked}: a higher role may less"
        theirs = ("/report", "/permit", "/pre-reboot", "/steady-state", "/healthz")
        assert machine is asked.endswith(theirs), asked


def test_an_unknown_role_may_nothing() -> None:
    stranger = Caller(identity="x", kind="person", role="root")
    assert not any(stranger.may(role) for role in Role)
    admin = Caller(identity="x", kind="person", role=Role.ADMIN)
    assert not any(admin.may(role) for role in ("root", "Admin", "admin "))
    assert not admin.may_speak_for("x")


async def test_what_is_in_no_table_is_for_nobody(api: Secure, contexts: dict[str, ssl.SSLContext]) -> None:
    assert (await api.ask(contexts["nobody"], "GET", "/nowhere"))[0] == 401
    assert (await api.ask(contexts["viewer"], "GET", "/nowhere"))[0] == 404
    assert (await api.ask(contexts["viewer"], "PATCH", "/v1/halt"))[0] == 405

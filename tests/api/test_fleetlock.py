"""FleetLock over HTTP: the protocol as its clients know it, its errors, and who may speak for whom."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from msgspec.structs import replace

from rebootd.api.fleetlock import KINDS, ROUTES
from rebootd.core.errors import Denied, NotLeader, OutcomeUnknown, Unreachable
from rebootd.core.fleetlock_record import Call, FleetLock, Word
from rebootd.core.model import State
from rebootd.core.policy import parse_policy
from rebootd.core.wire import Problem
from rebootd.tls.contexts import client_context
from tests.api.fake_desk import FakeDesk, FakeOffice, fleet
from tests.api.secure import secured
from tests.api.server import running
from tests.support.pki import Pki, field

if TYPE_CHECKING:
    from pathlib import Path

    from tests.api.server import Api

PRE, STEADY = "/fleetlock/v1/pre-reboot", "/fleetlock/v1/steady-state"
HEADER = {"fleet-lock-protocol": "true"}
TOKEN = "correct-horse"
both = pytest.mark.parametrize("path", [PRE, STEADY])


def body(client: str = "client-of-r1m1", group: str = "default") -> dict[str, Any]:
    return {"client_params": {"id": client, "group": group}}


async def ask(api: Api, path: str, said: object, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    return await api.ask("POST", path, said, **(HEADER if headers is None else headers))


@pytest.mark.parametrize(("path", "steady"), [(PRE, False), (STEADY, True)])
async def test_yes(path: str, steady: bool, api: Api) -> None:
    status, answer = await ask(api, path, body(group="workers.eu-1"))
    assert (status, answer) == (200, {"machine": "r1m1", "state": "rebooting", "valid_for": 60.0})
    assert api.desk.clients.asked == [("r1m1", Call("client-of-r1m1", "workers.eu-1", steady))]


@both
async def test_no_is_a_kind_and_a_sentence(path: str, api: Api) -> None:
    api.desk.clients.word = Word(granted=False, kind="window", why="no maintenance window is open")
    status, answer = await ask(api, path, body())
    assert (status, answer) == (409, {"kind": "window", "value": "no maintenance window is open"})


@both
async def test_as_zincati_says_it(path: str, api: Api) -> None:
    """Laid out over lines, with no content type; more than is known is not looked at."""
    said = b'{\n  "client_params": {\n    "id": "client-of-r1m1",\n    "group": "default", "more": 1\n  }, "and": []\n}'
    async with api.client.post(api.url + path, data=said, headers=HEADER, skip_auto_headers=["Content-Type"]) as answer:
        assert (answer.status, answer.content_type) == (200, "application/json")


BAD: dict[str, tuple[object, str]] = {
    "no body": (b"", "body"),
    "no JSON": (b"{", "body"),
    "a list": ([], "body"),
    "nothing in it": ({}, "client_params"),
    "null": ({"client_params": None}, "client_params"),
    "no id": ({"client_params": {"group": "g"}}, "client_params.id"),
    "no group": ({"client_params": {"id": "r1m1"}}, "client_params.group"),
    "a number for an id": ({"client_params": {"id": 7, "group": "g"}}, "client_params.id"),
    "an empty id": (body(client=""), "client_params.id"),
    "a long id": (body(client="x" * 129), "client_params.id"),
    "an id of two lines": (body(client="a\nb"), "client_params.id"),
    "an empty group": (body(group=""), "client_params.group"),
    "a group with a slash": (body(group="a/b"), "client_params.group"),
    "a group with a newline after it": (body(group="a\n"), "client_params.group"),
    "a long group": (body(group="g" * 129), "client_params.group"),
}


@both
@pytest.mark.parametrize("case", sorted(BAD))
async def test_bad_input(case: str, path: str, api: Api) -> None:
    said, where = BAD[case]
    status, answer = await ask(api, path, said)
    assert (status, answer["kind"], sorted(answer)) == (400, "bad-input", ["kind", "value"])
    assert answer["value"].startswith(f"{where}: ")
    assert api.desk.clients.asked == []


@both
@pytest.mark.parametrize("given", [{}, {"fleet-lock-protocol": "false"}, {"fleet-lock-protocol": "True"}])
async def test_it_must_be_meant_for_fleetlock(given: dict[str, str], path: str, api: Api) -> None:
    status, answer = await ask(api, path, body(), given)
    assert (status, answer["kind"]) == (400, "bad-input")
    assert answer["value"].startswith("fleet-lock-protocol: ")
    assert api.desk.clients.asked == []


@both
async def test_an_unknown_client(path: str, api: Api) -> None:
    status, answer = await ask(api, path, body("client-of-nobody"))
    assert (status, answer["kind"]) == (409, "refused")
    assert "client-of-nobody is not known" in answer["value"]


@pytest.mark.parametrize(
    "error", [NotLeader("over"), Unreachable("gone"), OutcomeUnknown("?"), Denied("no")], ids=lambda e: type(e).__name__
)
async def test_what_is_not_committed_is_no_yes(error: Exception, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    api.desk.error = error
    if isinstance(error, NotLeader):
        # Whoever asks while nobody leads is parked first.
        api.desk.ended = True
        api.office.elect(None)
        monkeypatch.setattr(api.office, "wait_leader", nobody_leads)
    status, answer = await ask(api, PRE, body())
    assert (status, answer["kind"]) == (503, "unavailable")


async def nobody_leads(_timeout: float) -> bool:
    return False


@both
async def test_a_follower_sends_it_on_with_its_body(path: str) -> None:
    async with running() as leader, running(FakeOffice(elsewhere=leader.url)) as follower:
        async with follower.client.post(follower.url + path, json=body(), headers=HEADER) as answer:
            assert answer.status == 200
        assert [name for name, _ in leader.desk.clients.asked] == ["r1m1"]


@both
async def test_others_get_errors_in_its_words(path: str, api: Api) -> None:
    async with running(token=TOKEN) as closed:
        status, answer = await ask(closed, path, body())
        assert (status, answer["kind"]) == (401, "unauthorized")
    assert (await api.ask("GET", path))[0] == 405


@both
async def test_a_machine_speaks_for_itself_alone(path: str, tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    context = client_context(pki.issue("machine", "r1m1"), field)
    async with secured(pki, office=FakeOffice(FakeDesk(fleet()))) as api:
        status, _ = await api.ask(context, "POST", path, body("client-of-r1m1"), **HEADER)
        assert status == 200
        status, answer = await api.ask(context, "POST", path, body("client-of-r1m2"), **HEADER)
        assert (status, answer["kind"]) == (403, "forbidden")
        assert "machine r1m1's" in answer["value"]
        assert api.office.held is not None
        assert [name for name, _ in api.office.held.clients.asked] == ["r1m1"]


def test_every_error_has_a_kind() -> None:
    for route in ROUTES:
        assert {s for s in route.statuses if s >= 400} <= KINDS.keys()
        assert route.wording is not None
        worded = route.wording(418, Problem(error="tea"))
        assert msgspec.json.encode(worded) == b'{"kind":"refused","value":"tea"}'


async def test_what_people_see_of_such_a_machine(api: Api) -> None:
    m = api.desk.state.machines["r1m1"]
    called = m.since + 5
    theirs = replace(m, fleetlock=FleetLock("c988", called, called), state=State.DRAINED, since=time.time())
    policy = parse_policy("fleetlock: {enabled: true, wish: 1h}")
    api.desk.state = replace(api.desk.state, machines={**api.desk.state.machines, "r1m1": theirs}, policy=policy)
    shown = await api.good("GET", "/v1/machines/r1m1")
    # Nobody reported: what the leader says in its place is not shown as if it had.
    assert (shown["report"], shown["seen"], shown["record"]["fleetlock"]["id"]) == (None, called, "c988")
    told = await api.good("GET", "/v1/machines/r1m1/explain")
    assert told["deadline"] == pytest.approx(theirs.since + 3600, abs=1)
    assert told["report_age"] == pytest.approx(time.time() - called, abs=5)

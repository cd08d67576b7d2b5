"""Whatever bytes come as JSON (over the wire, from Consul, from a disk), only an error of ours comes out."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rebootd.agent import journal, statefile
from rebootd.agent.client import Coordinators
from rebootd.agent.journal import Intent, Journal, JournalCorrupt, Record
from rebootd.agent.settings import AgentSettings
from rebootd.api import bodies, shapes
from rebootd.api.fleetlock import ClientParams, LockRequest, read_call
from rebootd.coordinator import records
from rebootd.coordinator.ring import Chunk
from rebootd.core.durations import Durations
from rebootd.core.errors import InvalidInput, NotFound, RebootdError
from rebootd.core.model import (
    Cycle,
    CycleState,
    Event,
    FleetLock,
    Hold,
    Machine,
    OpenWindow,
    Permit,
    PowerCycle,
    RackRecord,
    State,
)
from rebootd.core.wire import (
    Answer,
    CheckResult,
    Directive,
    DirectiveKind,
    PermitAnswer,
    PermitRequest,
    Report,
    Result,
    Tri,
)
from tests.fuzz.fuzzing import fuzz, nearly, quickly

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

DEEP = b'{"a":' + b"[" * 200_000
"""Brackets without end, where nothing is known of their meaning."""

REPORT = Report(
    name="r1m1", machine_id="id", boot_id="b", rack="r1", labels={"role": "web"}, reboot_required=Tri.YES,
    reboot_reasons=("kernel",), boot_check=CheckResult("passed"), index=7, wait=5.0,
    result=Result("r1m1/7/drain", DirectiveKind.DRAIN, ok=True, detail="x", epoch=3), clock=1.5,
)  # fmt: skip
ANSWER = Answer(
    index=7, epoch=3, state="draining", directive=Directive("r1m1/7/drain", DirectiveKind.DRAIN, 3, 7, "b", "k1")
)
REQUESTS: list[msgspec.Struct] = [
    REPORT,
    PermitRequest(name="r1m1", machine_id="id", boot_id="b", nonce="n", epoch=3),
    shapes.Asked(by="me", reason="because"),
    shapes.CycleAsked(id="k1", selector="role=web", failure_budget="5%", skip_gates=("g",)),
    shapes.PlanAsked(selector="*", target="kernel=6"),
    shapes.WindowAsked(duration="2h", start=None),
    LockRequest(client_params=ClientParams(id="c988d2509fdf4cdcbed39037c56406fb", group="workers")),
]
ANSWERS: list[msgspec.Struct] = [
    ANSWER,
    PermitAnswer(granted=True, nonce="n", boot_id="b", epoch=3, valid_for=60.0),
]
RECORDS: list[msgspec.Struct] = [
    Machine(
        name="r1m1", rack="r1", state=State.REBOOTING, since=5.0, boot_id="b", labels={"a": "b"}, outcomes={"k": "x"},
        permit=Permit("b", "n", 5.0, 3), fleetlock=FleetLock("c988", 5.0, 6.0),
    ),
    Cycle(id="r1m1", selector="role=web", target="kernel=6.*", created=1.0, changed=2.0, state=CycleState.RUNNING),
    Hold(kind="machine", name="r1m1", since=1.0, by="me", reason="disk"),
    OpenWindow(id="r1m1", start=1.0, end=2.0),
    RackRecord(rack="r1", session="s", since=1.0),
    PowerCycle(machine="r1m1", boot_id="b", address="https://bmc", since=1.0, changed=2.0),
    Durations(),
    Chunk(1, (Event(time=1.0, kind="state", machine="r1m1"),)),
]  # fmt: skip


def text(struct: msgspec.Struct) -> str:
    return msgspec.json.encode(struct).decode()


def kind(struct: msgspec.Struct) -> str:
    return type(struct).__name__


# ------------------------------------------------------------------------------------------------------- the wire


@pytest.mark.parametrize("request_", REQUESTS, ids=kind)
@fuzz
@given(data=st.data())
@quickly
def test_a_request_is_read_or_refused(request_: msgspec.Struct, data: st.DataObject) -> None:
    body = data.draw(nearly(text(request_)) | st.just(DEEP))
    decoder: Any = msgspec.json.Decoder(type(request_))
    try:
        read = bodies.decode(decoder, body)
    except InvalidInput as error:
        assert len(str(error)) < 400_000  # noqa: PT017  not every input is refused
        return
    assert bodies.decode(decoder, msgspec.json.encode(read)) == read


@fuzz
@given(st.data(), st.booleans())
@quickly
def test_a_fleetlock_body_is_a_call_or_refused(data: st.DataObject, steady: bool) -> None:
    seeds = (text(REQUESTS[-1]), '{"client_params":{"id":"node-1.dc/eu","group":"a.B-9","x":[]},"y":{}}')
    body = data.draw(nearly(*seeds) | st.binary() | st.just(DEEP))
    try:
        call = read_call(body, steady=steady)
    except InvalidInput as error:
        assert error.field.split(".")[0].split("[")[0] in {"client_params", "body"}, error  # noqa: PT017
        return
    assert call.steady is steady
    # What goes into records, labels and log lines is short and plain.
    assert 0 < len(call.id) <= 128
    assert 0 < len(call.group) <= 128
    assert (call.id + call.group).isascii()
    assert (call.id + call.group).isprintable()
    said = LockRequest(client_params=ClientParams(id=call.id, group=call.group))
    assert read_call(msgspec.json.encode(said), steady=steady) == call


@pytest.mark.parametrize("answer", ANSWERS, ids=kind)
@fuzz
@given(status=st.sampled_from([200, 200, 200, 400, 401, 404, 409, 500, 503]), data=st.data())
@example(status=200, data=None)
@example(status=503, data=None)
@quickly
def test_an_agent_believes_an_answer_or_asks_the_next(
    answer: msgspec.Struct, status: int, data: st.DataObject | None
) -> None:
    body = DEEP if data is None else data.draw(nearly(text(answer)))
    said: list[bytes] = [body]

    class Line:
        async def post(self, *_: object) -> tuple[int, dict[str, str], bytes]:
            return status, {}, said[0]

        async def close(self) -> None: ...

    async def find() -> AsyncIterator[list[str]]:
        yield ["http://127.0.0.1:1"]

    async def ask() -> None:
        ours = Coordinators(AgentSettings(), find, Line())
        if isinstance(answer, Answer):
            await ours.report("r1m1", REPORT)
        else:
            await ours.permit("r1m1", PermitRequest(name="r1m1", machine_id="i", boot_id="b", nonce="n"))

    try:
        asyncio.run(ask())
    except RebootdError as error:
        assert str(error)  # noqa: PT017


# ---------------------------------------------------------------------------------------------------------- Consul


@pytest.mark.parametrize("record", RECORDS, ids=kind)
@fuzz
@given(data=st.data())
@quickly
def test_a_record_is_read_or_set_aside(record: msgspec.Struct, data: st.DataObject) -> None:
    value = data.draw(nearly(text(record)) | st.just(DEEP))
    try:
        read = records.checked(records.decode(value, type(record)), "r1m1")
    except (msgspec.MsgspecError, InvalidInput) as error:
        assert str(error)  # noqa: PT017
        return
    assert records.decode(records.encode(read), type(record)) == read


@fuzz
@given(nearly('{"reason": "storage", "since": 5}', "storage is degraded", "") | st.binary() | st.just(DEEP))
@quickly
def test_any_value_is_a_halt(value: bytes) -> None:
    assert records.halt_of(value, 5.0).since >= 0 or value


# ------------------------------------------------------------------------------------------------ the agent's files

JOURNAL = Record(
    boot_id="b", name="r1m1", epoch=3, nonce="n", intent=Intent(directive="d", boot_id="b", nonce="n", sent=1.5),
    results=(Result("d", DirectiveKind.ENABLE, ok=True),), in_service=True, boot_check=CheckResult("passed"), since=2.0,
)  # fmt: skip
WRITTEN = journal.encode(JOURNAL).decode()


@fuzz
@given(nearly(WRITTEN) | st.binary() | st.just(DEEP))
@quickly
def test_a_journal_is_whole_or_kept_aside(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    try:
        read = journal.decode(data)
    except JournalCorrupt as error:
        assert str(error)  # noqa: PT017
    else:
        assert journal.decode(journal.encode(read)) == read
    path = tmp_path_factory.mktemp("journal") / "journal.json"
    path.write_bytes(data)
    ours = Journal(path)
    found = ours.load()
    assert (found == "whole") is (ours.aside is None)
    ours.update(epoch=9)
    assert journal.decode(path.read_bytes()).epoch == 9


@fuzz
@given(nearly('{"machine": "r1m1", "in_service": true}') | st.just(DEEP))
@quickly
def test_a_state_file_is_read_or_not_there(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path: Path = tmp_path_factory.mktemp("state") / "agent.json"
    path.write_bytes(data)
    try:
        assert isinstance(statefile.read(path).machine, str)
    except NotFound as error:
        assert str(error)  # noqa: PT017

"""The audit chain with real files: over leaders, crashes, rotations and tampering."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from rebootd.coordinator import audit as audit_room
from rebootd.core import operations
from rebootd.core.audit import Head, Kind
from rebootd.core.audit_verify import verify
from rebootd.core.errors import NotFound, OutcomeUnknown, RebootdError
from rebootd.core.operations_cycles import start_cycle
from rebootd.core.operations_policy import apply_policy
from rebootd.store.memory_faults import LOST_REPLY, NEVER, late
from rebootd.store.port import Set
from tests.coordinator.audit_office import ANN, ASKED, HEAD, WHY, Office, cycle_through, halt, unhalt
from tests.coordinator.lab import Host, eventually

if TYPE_CHECKING:
    from pathlib import Path

# ---------------------------------------------------------------------------------------------- what is written


async def test_who_what_when_why_and_what_came_of_it(tmp_path: Path) -> None:
    office = Office(tmp_path)
    before = time.time()
    async with office.leads("d1") as leader:
        await halt(leader)
    first, entry, outcome = office.lines()
    assert first.kind is Kind.FILE
    assert entry.who == ANN
    assert (entry.what, entry.reason, entry.by, entry.request) == ("halt", "smoke in r7", "ann@desk", "r-1")
    assert (entry.seq, entry.epoch, entry.leader) == (1, leader.epoch, "d1")
    assert before <= entry.time <= time.time()
    assert [w.split()[0] for w in entry.writes] == ["control/halt"]
    assert (outcome.kind, outcome.result, outcome.seq) == (Kind.OUTCOME, "committed", 1)
    assert office.verdict().findings == ()
    assert stat.S_IMODE((tmp_path / "d1.log").stat().st_mode) == 0o600


async def test_a_change_that_is_refused_is_written_too_and_moves_nothing(tmp_path: Path) -> None:
    office = Office(tmp_path)
    async with office.leads("d1") as leader:
        with pytest.raises(NotFound):
            await leader.apply(partial(operations.release, kind="rack", target="r9", because=WHY), ASKED)
        await halt(leader)
    refused = office.lines()[1]
    assert (refused.kind, refused.who) == (Kind.REFUSED, ANN)
    assert "r9" in refused.result
    assert office.verdict().findings == ()
    assert office.verdict().last == 1


async def test_permits_cycles_and_policies_are_in_the_chain(tmp_path: Path) -> None:
    office = Office(tmp_path, {"r1": ["m1"]})
    host = Host("m1")
    async with office.leads("d1") as leader:
        await host.join(leader)
        await leader.apply(partial(apply_policy, text="settle: 0\n", because=WHY), ASKED)
        start = partial(start_cycle, cycle_id="k", selector="*", because=WHY, target="", failure_budget=None)
        await leader.apply(start, ASKED)
        await cycle_through(leader, host)
        await eventually(lambda: leader.snapshot().cycles["k"].state.value == "done")
        await eventually(lambda: leader.audit.head.seq == 4)
    whats = [(line.what, line.machine, line.who is not None) for line in office.lines() if line.kind is Kind.ENTRY]
    permit = next(line for line in office.lines() if line.what == "permit")
    assert [w[0] for w in whats[:3]] == ["policy-apply", "cycle-start", "permit"]
    assert (permit.machine, permit.cycle, permit.boot_id, permit.who) == ("m1", "k", "m1-boot-0", None)
    assert len(whats) == 4
    assert office.verdict().findings == ()
    assert office.verdict().committed == 4


async def test_the_log_stream_has_the_same_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    office = Office(tmp_path)
    async with office.leads("d1") as leader:
        await halt(leader)
    said = [line for line in capsys.readouterr().out.splitlines() if "smoke in r7" in line and "audit" in line]
    head = office.head()
    assert head is not None
    assert any(head.hash in line for line in said)


# ------------------------------------------------------------------------------------------ over leaders and crashes


async def test_the_chain_goes_on_over_leaders(tmp_path: Path) -> None:
    office = Office(tmp_path)
    for name in ("d1", "d2", "d1", "d3"):
        async with office.leads(name) as leader:
            await halt(leader)
            await unhalt(leader)
            assert leader.audit.broken == ""
    verdict = office.verdict()
    assert verdict.findings == ()
    assert (verdict.first, verdict.last, verdict.committed) == (1, 8, 8)
    for name in ("d1.log", "d2.log", "d3.log"):
        left = {k: v for k, v in office.files().items() if k != name}
        assert not verify(left, office.head()).whole


async def test_a_leader_without_a_file_goes_on_with_the_chain_and_is_missed(tmp_path: Path) -> None:
    office = Office(tmp_path)
    async with office.leads("d0", file=False) as leader:
        await halt(leader)
        assert not leader.audit.enabled
    assert office.head() is None
    async with office.leads("d1") as leader:
        await unhalt(leader)
    async with office.leads("d2", file=False) as leader:
        await halt(leader)
    async with office.leads("d1") as leader:
        await unhalt(leader)
        assert leader.audit.broken == ""
    [finding] = office.verdict().findings
    assert finding.what.startswith("entry 2 before this one")


@pytest.mark.parametrize("fate", [LOST_REPLY, NEVER, late(0.3)], ids=["landed", "never", "late"])
async def test_an_answer_that_was_lost_leaves_one_chain(tmp_path: Path, fate: Any) -> None:
    office = Office(tmp_path)
    async with office.leads("d1") as leader:
        await halt(leader)
        office.lab.consul.faults.fates.append(fate)
        await unhalt(leader)
        await halt(leader)
    verdict = office.verdict()
    assert verdict.findings == ()
    assert verdict.committed == 3


@pytest.mark.parametrize("fate", [LOST_REPLY, NEVER], ids=["landed", "never"])
async def test_a_leader_that_dies_before_it_hears_leaves_no_doubt(tmp_path: Path, fate: Any) -> None:
    office = Office(tmp_path)
    async with office.leads("d1") as leader:
        await halt(leader)
        office.lab.consul.faults.choose = lambda ops: fate if any(op.key == HEAD for op in ops) else None
        dying = asyncio.create_task(unhalt(leader))
        await eventually(lambda: len(office.lines()) == 4)
        await asyncio.sleep(0.05)
    with pytest.raises(RebootdError):
        await dying
    assert isinstance(dying.exception(), OutcomeUnknown)
    office.lab.consul.faults.heal()
    alone = office.verdict()
    assert (alone.findings, alone.unanswered) == ((), 1)
    landed = fate is LOST_REPLY
    assert (alone.committed, alone.dropped) == ((2, 0) if landed else (1, 1))
    async with office.leads("d2") as leader:
        assert (leader.snapshot().halt is None) is landed
        await (halt if landed else unhalt)(leader)
    verdict = office.verdict()
    assert verdict.findings == ()
    assert verdict.committed == (3 if landed else 2)


async def test_a_line_that_a_crash_cut_short_is_marked_and_no_fault(tmp_path: Path) -> None:
    office = Office(tmp_path)
    async with office.leads("d1") as leader:
        await halt(leader)
    with (tmp_path / "d1.log").open("ab") as file:
        file.write(b'{"kind":"entry","time":17')
    async with office.leads("d1") as leader:
        await unhalt(leader)
    verdict = office.verdict()
    assert verdict.whole
    assert [(f.line, f.fault) for f in verdict.findings] == [(4, False)]


async def test_rotation_by_renaming_goes_on_in_the_next_file(tmp_path: Path) -> None:
    office = Office(tmp_path)
    async with office.leads("d1") as leader:
        for number in range(4):
            await (unhalt if number % 2 else halt)(leader)
            (tmp_path / "d1.log").rename(tmp_path / f"d1.log.{number}")
        await halt(leader)
    assert len(office.files()) == 5
    assert office.verdict().findings == ()
    (tmp_path / "d1.log.2").unlink()
    assert not office.verdict().whole


# -------------------------------------------------------------------------------------------------------- tampering


async def test_a_file_that_somebody_else_writes_or_cuts_is_noticed(tmp_path: Path) -> None:
    office = Office(tmp_path)
    async with office.leads("d1") as leader:
        await halt(leader)
        await eventually(lambda: len(office.lines()) == 3)
        os.truncate(tmp_path / "d1.log", 10)
        await unhalt(leader)
        assert "somebody else" in leader.audit.broken
    assert office.metric("rebootd_audit_chain_broken") == 1
    assert not office.verdict().whole


@pytest.mark.parametrize("value", [b'{"seq":9,"hash":"00"}', b"rubbish", None], ids=["forged", "rubbish", "deleted"])
async def test_a_head_that_somebody_changes_is_noticed_and_the_chain_goes_on(
    tmp_path: Path, value: bytes | None
) -> None:
    office = Office(tmp_path)
    async with office.leads("d1") as leader:
        await halt(leader)
        if value is None:
            del office.lab.consul.entries[HEAD]
        else:
            await office.lab.store.commit([Set(HEAD, value)])
        await unhalt(leader)
        assert "somebody changed the head" in leader.audit.broken
    assert office.metric("rebootd_audit_chain_broken") == 1
    # What the daemons wrote is still one chain.
    assert office.verdict().committed == 2
    assert office.verdict().whole


async def test_a_head_that_was_changed_between_leaders_is_noticed_by_a_daemon_that_knows_better(tmp_path: Path) -> None:
    office = Office(tmp_path)
    async with office.leads("d1") as leader:
        await halt(leader)
        await unhalt(leader)
    del office.lab.consul.entries[HEAD]
    async with office.leads("d1") as leader:
        assert "is gone" in leader.audit.broken
        await halt(leader)
    assert office.verdict().whole
    await office.lab.store.commit([Set(HEAD, msgspec.json.encode(Head(seq=1, hash="ab")))])
    async with office.leads("d1") as leader:
        assert "our file has a committed entry 3" in leader.audit.broken


async def test_a_head_that_is_changed_while_nothing_happens_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_room, "LOOK_EVERY", 0.05)
    office = Office(tmp_path)
    async with office.leads("d1") as leader:
        await halt(leader)
        await asyncio.sleep(0.2)
        assert leader.audit.broken == ""
        await office.lab.store.commit([Set(HEAD, b"{}")])
        await eventually(lambda: leader.audit.broken != "")

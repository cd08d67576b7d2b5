from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebootd.agent import journal as module
from rebootd.agent.boot import begin
from rebootd.agent.host import Host, _age_of_init
from rebootd.agent.journal import Intent, Journal, JournalCorrupt, JournalUnwritable, Record, decode, encode
from rebootd.agent.settings import AgentSettings
from rebootd.core.wire import CheckResult, DirectiveKind, Result

texts = st.text(max_size=40)
results = st.builds(Result, texts, st.sampled_from(DirectiveKind), st.booleans(), texts, st.integers(0, 9))
records = st.builds(
    Record,
    boot_id=texts,
    epoch=st.integers(0, 2**53),
    nonce=texts,
    intent=st.none() | st.builds(Intent, directive=texts, boot_id=texts, nonce=texts, sent=st.floats(0, 1e9)),
    results=st.lists(results, max_size=4).map(tuple),
    in_service=st.booleans(),
    by_hand=texts,
    boot_check=st.builds(CheckResult, texts, texts),
)


@given(records, st.data())
@settings(deadline=None)
def test_truncated_or_changed_at_any_byte_is_detected(record: Record, data: st.DataObject) -> None:
    whole = encode(record)
    assert decode(whole) == record
    cut = data.draw(st.integers(0, len(whole) - 2))
    with pytest.raises(JournalCorrupt):
        decode(whole[:cut])
    at = data.draw(st.integers(whole.index(b"journal") + 9, len(whole) - 3))
    changed = bytearray(whole)
    changed[at] ^= data.draw(st.integers(1, 127))
    with pytest.raises(JournalCorrupt):
        decode(bytes(changed))


@given(st.binary(max_size=200))
@settings(max_examples=50, deadline=None)
def test_any_garbage_is_kept_aside(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.json"
        path.write_bytes(data)
        journal = Journal(path)
        assert journal.load() == "corrupt"
        assert journal.aside is not None
        assert journal.aside.read_bytes() == data
        assert not path.exists()
        journal.update(epoch=3)
        assert Journal(path).load() == "whole"


def test_two_writers_do_not_lose_each_others_fields(tmp_path: Path) -> None:
    ours, theirs = Journal(tmp_path / "j"), Journal(tmp_path / "j")
    ours.update(boot_id="b", epoch=1)
    theirs.load()
    theirs.update(by_hand="why", in_service=True)
    assert ours.update(epoch=2).by_hand == "why"
    theirs.update(nonce="n")
    assert ours.refresh().nonce == "n"
    assert decode((tmp_path / "j").read_bytes()) == ours.record


def test_results_are_bounded_and_replaced() -> None:
    record = Record()
    for number in range(40):
        record = Record(results=record.with_result(Result(str(number % 20), DirectiveKind.DRAIN, ok=True)))
    assert len(record.results) == module.RESULTS_KEPT
    assert len({r.id for r in record.results}) == module.RESULTS_KEPT


def test_disk_full_is_told_and_made_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "j")
    journal.update(boot_id="b")
    before = (tmp_path / "j").read_bytes()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(JournalUnwritable, match="No space left"):
        journal.update(in_service=True)
    assert journal.record.in_service
    assert "No space left" in journal.problem
    assert (tmp_path / "j").read_bytes() == before
    monkeypatch.undo()
    journal.update(epoch=7)
    stored = decode((tmp_path / "j").read_bytes())
    assert stored.in_service
    assert stored.epoch == 7
    assert not journal.problem


def host_settings(folder: Path, boot_id: str, fresh_boot: float = 0) -> AgentSettings:
    (folder / "boot_id").write_text(boot_id)
    return AgentSettings(state_dir=str(folder), boot_id_file=str(folder / "boot_id"), fresh_boot=fresh_boot)


@pytest.mark.parametrize("fresh", [0.0, 1e12])
def test_first_contact(tmp_path: Path, fresh: float) -> None:
    settings_ = host_settings(tmp_path, "b1", fresh)
    record = begin(Journal(settings_.journal), Host(settings_), settings_, "m")
    assert record.in_service is (fresh == 0)
    assert record.boot_check.status == ("passed" if fresh == 0 else "pending")


def test_a_container_is_as_old_as_its_init(tmp_path: Path) -> None:
    """Its kernel's uptime is that of the machine below: without a journal every boot would pass for an old one."""
    stat = tmp_path / "stat"
    ticks = os.sysconf("SC_CLK_TCK")
    stat.write_text(f"1 (a (odd) name) S {' '.join(['0'] * 18)} {int(9000.5 * ticks)} 0 0\n")
    assert _age_of_init(9010.0, stat) == pytest.approx(9.5, abs=0.02)
    stat.write_text("1 (init")
    assert _age_of_init(9010.0, stat) == _age_of_init(9010.0, tmp_path / "none") == float("inf")
    host = Host(host_settings(tmp_path, "b1"))
    assert 0 <= host.age() <= host.boottime()


def test_a_host_is_judged_by_its_age_when_the_agent_started(tmp_path: Path) -> None:
    """It may have waited long for its name, which the local Consul agent tells."""
    settings_ = host_settings(tmp_path, "b1", fresh_boot=600)
    assert not begin(Journal(settings_.journal), Host(settings_), settings_, "m", age=5.0).in_service
    settings_.journal.unlink()
    assert begin(Journal(settings_.journal), Host(settings_), settings_, "m", age=601.0).in_service


def test_new_boot_closes_the_old(tmp_path: Path) -> None:
    settings_ = host_settings(tmp_path, "b1")
    journal = Journal(settings_.journal)
    begin(journal, Host(settings_), settings_, "m")
    intent = Intent(directive="m/3/reboot", boot_id="b1", nonce="n", sent=1)
    journal.update(nonce="n", intent=intent, epoch=4, by_hand="x")
    (tmp_path / "reboot-b1.started").mkdir()
    assert Host(settings_).reboot_started("b1")
    settings_ = host_settings(tmp_path, "b2")
    record = begin(Journal(settings_.journal), Host(settings_), settings_, "m")
    assert (record.boot_id, record.nonce, record.intent, record.in_service, record.by_hand) == (
        "b2",
        "",
        None,
        False,
        "",
    )
    assert record.epoch == 4
    assert record.results[-1].id == "m/3/reboot"
    assert record.results[-1].ok
    assert not list(tmp_path.glob("*.started"))


def test_unreadable_journal_keeps_out(tmp_path: Path) -> None:
    settings_ = host_settings(tmp_path, "b1")
    settings_.journal.mkdir()
    record = begin(Journal(settings_.journal), Host(settings_), settings_, "m")
    assert not record.in_service
